"""`smallfirst proxy`: in front of a large model's API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smallfirst.cli.options import PATH, verb

if TYPE_CHECKING:
    from smallfirst.gateway.settings import GatewaySettings


@verb(
    "smallfirst proxy --upstream https://api.openai.com/v1",
    "smallfirst proxy gateway.yaml --port 9000",
)
@click.argument("gateway_yaml", type=PATH, required=False, metavar="[GATEWAY]")
@click.option("--upstream", metavar="URL", help="Address of the API, up to and including /v1.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--everybody", is_flag=True, help="Serve whoever reaches the address, without a key of the proxy.")
def proxy(gateway_yaml: Path | None, upstream: str | None, host: str, port: int, everybody: bool) -> None:
    """Stand in front of a large model: pass on, record, take over.

    Set the application's OPENAI_BASE_URL to the printed address; nothing else changes. GATEWAY is a gateway.yaml or its
    folder, which names upstreams, models and what may be kept; without it, nothing is kept.
    """
    from smallfirst.gateway.access import Access, check_exposure
    from smallfirst.gateway.app import Gateway
    from smallfirst.gateway.capture import Capture
    from smallfirst.gateway.decisions.routes import DecisionRoutes
    from smallfirst.gateway.server import run
    from smallfirst.gateway.settings import read_gateway_file
    from smallfirst.gateway.task_table import DISCOVERED, task_routes
    from smallfirst.paths import home, state_of
    from smallfirst.serving.auth.keys import home_key_store
    from smallfirst.serving.server import listen

    settings = read_gateway_file(gateway_yaml, upstream=upstream)
    click.get_current_context().with_resource(state_of(settings.folder))
    keys = home_key_store()
    check_exposure(host, keys, everybody=everybody)
    capture = Capture(settings, settings.capture, home()) if settings.capture else None
    routes = {**DecisionRoutes(settings.decisions).routes, **task_routes(home(), settings.folder / DISCOVERED)}
    gateway = Gateway(settings, capture=capture, access=Access(keys, everybody=everybody), routes=routes)
    listener = listen(host, port)
    name = f"[{host}]" if ":" in host else host
    click.echo(f"smallfirst passes http://{name}:{listener.getsockname()[1]}/v1 on to {_addresses(settings)}")
    run(gateway, listener)


def _addresses(settings: GatewaySettings) -> str:
    return ", ".join(upstream.base_url for upstream in settings.upstreams.values())
