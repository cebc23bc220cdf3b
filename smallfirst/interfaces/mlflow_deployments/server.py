"""The process of one endpoint: `python -m smallfirst.interfaces.mlflow_deployments.server FOLDER LOCK`.

It holds the endpoint's lock as long as it lives, serves OpenAI's, MLflow's and Databricks' routes under the endpoint's
name, follows its config and its aliases, and drains at SIGTERM.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from smallfirst.errors import SmallfirstError
from smallfirst.files import try_lock
from smallfirst.interfaces.mlflow_deployments.endpoint_folder import EndpointFolder
from smallfirst.interfaces.mlflow_deployments.live_endpoint import LiveEndpoint
from smallfirst.paths import home
from smallfirst.progress import disable_tqdm_in_pipes
from smallfirst.serving.app import build_app
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.server import listen, run


def main(arguments: Sequence[str]) -> int:
    """0 after SIGTERM, 1 if it could not serve, 2 if another process serves the endpoint."""
    endpoint = EndpointFolder(Path(arguments[0]).absolute())
    held = int(arguments[1]) if len(arguments) > 1 else try_lock(endpoint.lock)
    if held is None:
        print(f"{endpoint.name} is served by another process", file=sys.stderr)
        return 2
    disable_tqdm_in_pipes()
    os.set_inheritable(held, False)  # this process alone stands for the endpoint
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    try:
        serve_endpoint(endpoint)
    except SmallfirstError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def serve_endpoint(endpoint: EndpointFolder) -> None:
    """Nothing, once the server was told to stop and has drained. Raises SmallfirstError if it cannot serve."""
    live = LiveEndpoint(endpoint)
    kept = endpoint.config
    assert kept is not None
    settings = live.parsed.settings.model_copy(update={"port": kept.port})
    with closing(Ledger(home() / "ledger.db")) as ledger:
        app = build_app(live.fleet, ledger=ledger, settings=settings, extension=live)
        listener = listen(settings.host, kept.port)
        live.start()
        print(f"smallfirst serves {endpoint.name} at {settings.host}:{kept.port}", flush=True)

        def stopping() -> None:
            app.state.readiness.stopping = True

        run(app, listener, drain_s=settings.drain_s, stopping=stopping, held=[live])
    print(f"smallfirst stopped; the ledger is {ledger.path}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
