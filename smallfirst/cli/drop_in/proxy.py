"""`smallfirst proxy`: in front of a large model's API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from smallfirst.cli.options import LEDGER, PATH, verb

if TYPE_CHECKING:
    from smallfirst.gateway.settings import GatewaySettings


@verb(
    "smallfirst proxy --upstream https://api.openai.com/v1 --capture",
    "smallfirst proxy gateway.yaml --port 9000",
)
@click.argument("gateway_yaml", type=PATH, required=False, metavar="[GATEWAY]")
@click.option("--upstream", metavar="URL", help="Address of the API, up to and including /v1.")
@click.option("--capture", "keep", is_flag=True, help="Keep what passes, redacted, as `capture: {}` in GATEWAY does.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--everybody", is_flag=True, help="Serve whoever reaches the address, without a key of the proxy.")
@LEDGER
def proxy(gateway_yaml: Path | None, upstream: str | None, keep: bool, host: str, port: int, everybody: bool) -> None:
    """Stand in front of a large model: pass on, record, take over.

    Set the application's OPENAI_BASE_URL to the printed address; nothing else changes. GATEWAY is a gateway.yaml or its
    folder, which names upstreams, models and what may be kept.
    """
    from smallfirst.gateway.access import Access, check_exposure
    from smallfirst.gateway.app import Gateway
    from smallfirst.gateway.capture import Capture
    from smallfirst.gateway.decisions.routes import DecisionRoutes
    from smallfirst.gateway.server import run
    from smallfirst.gateway.settings import CaptureSettings, read_gateway_file
    from smallfirst.gateway.takeover.page import page_routes
    from smallfirst.gateway.takeover.tasks import TakenOverTasks
    from smallfirst.gateway.task_table import DISCOVERED, task_routes
    from smallfirst.paths import home, ledger_place, state_of
    from smallfirst.serving.auth.keys import home_key_store
    from smallfirst.serving.ledger.ledger import Ledger
    from smallfirst.serving.server import listen

    settings = read_gateway_file(gateway_yaml, upstream=upstream)
    if keep and settings.capture is None:
        settings = settings.model_copy(update={"capture": CaptureSettings()})
    click.get_current_context().with_resource(state_of(settings.folder))
    keys = home_key_store()
    check_exposure(host, keys, everybody=everybody)
    listener = listen(host, port)
    capture = Capture(settings, settings.capture, home()) if settings.capture else None
    ledger = Ledger(ledger_place(create=True))
    ledger.start_expiry()
    ledger.start_uptime()
    local = TakenOverTasks(ledger, prices=settings.prices)
    routes = {
        **DecisionRoutes(settings.decisions, local).routes,
        **task_routes(home(), settings.folder / DISCOVERED),
        **page_routes(ledger, local),
    }
    access = Access(keys, everybody=everybody, state=ledger.shared)
    gateway = Gateway(settings, capture=capture, local=local, access=access, routes=routes)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"
    click.echo(f"smallfirst passes {address} on to {', '.join(one.base_url for one in settings.upstreams.values())}")
    click.echo(_kept(settings, home()))
    click.echo(f"its page: {address.removesuffix('v1')}")
    click.echo(f"in the application:  export OPENAI_BASE_URL={address}")
    run(gateway, listener)


def _kept(settings: GatewaySettings, state: Path) -> str:
    from smallfirst.traffic.capture_store import FILE_NAME

    if settings.capture is None:
        return "nothing is kept of it; with --capture it is, redacted, for  smallfirst discover"
    return f"kept in {state / FILE_NAME} for  smallfirst discover"
