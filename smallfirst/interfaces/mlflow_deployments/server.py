"""The process of one endpoint: `python -m smallfirst.interfaces.mlflow_deployments.server FOLDER LOCK`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from smallfirst import Ledger, serve
from smallfirst.errors import SmallfirstError
from smallfirst.interfaces.mlflow_deployments.endpoint_folder import EndpointFolder
from smallfirst.interfaces.mlflow_deployments.live_endpoint import LiveEndpoint
from smallfirst.jobs.supervisor import claim_lock
from smallfirst.paths import ledger_place
from smallfirst.serving.plugins import installed_plugins


def main(arguments: Sequence[str]) -> int:
    """Return 0 after SIGTERM, 1 if the endpoint could not be served, 2 if another process serves it."""
    endpoint = EndpointFolder(Path(arguments[0]).absolute())
    if claim_lock(endpoint.lock, arguments) is None:
        print(f"{endpoint.name} is served by another process", file=sys.stderr)
        return 2
    try:
        serve_endpoint(endpoint)
    except SmallfirstError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def serve_endpoint(endpoint: EndpointFolder) -> None:
    """Serve the endpoint until the process is told to stop and has drained. Raise SmallfirstError if it cannot."""
    with closing(Ledger(ledger_place(create=True))) as ledger:
        live = LiveEndpoint(endpoint, ledger)
        record = endpoint.config
        assert record is not None
        settings = live.config.parsed.settings.model_copy(update={"port": record.port})
        serve(live.models, ledger=ledger, settings=settings, plugins=[live, *installed_plugins(live.models)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
