"""Start or join a Ray cluster. A token is always needed, and no usage data is sent.

Ray runs what its clients send, so whoever reaches its ports without a token owns its machines. A cluster that is
started here listens on loopback alone and has no dashboard.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smallfirst.base.errors import ConfigError, as_missing_extra
from smallfirst.base.paths import state_folder

ADDRESS = "RAY_ADDRESS"
"""Environment variable with the address of a running cluster; without one a cluster is started on this machine."""
TOKEN_FILE = "ray.token"
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
"""Environment variables of a cluster started here. With the first, which Ray reads on every system, a node's address
and all that listens is 127.0.0.1; with the second its workers get as much of a busy processor as other programs."""
OBJECT_STORE_BYTES = 256 * 1024**2
"""Shared memory of a cluster started here: workers are given settings and paths, never rows or weights."""


@contextmanager
def ray_session(*, num_cpus: int | None = None) -> Iterator[Any]:
    """Yield the module `ray`, connected; afterwards the connection ends, and with it a cluster started here.

    A connection that is open already is used and stays open. Raise MissingExtra without Ray, ConfigError for a
    running cluster without a token.
    """
    address = os.environ.get(ADDRESS)
    prepare_environment(address)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise (as_missing_extra(error) or error) from None
    if ray.is_initialized():
        yield ray
        return
    local = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    options: dict[str, Any] = {"address": address} if address else local
    try:
        ray.init(**options, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot use the Ray cluster{f' at {address}' if address else ''}: {str(error).splitlines()[0]}",
            hint=f"check {ADDRESS} and the token (RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH)",
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported: token authentication, no usage statistics, loopback without an address.

    Raise ConfigError for a running cluster without a token.
    """
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="token")
    if not address:
        os.environ.update(LOCAL)
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    if address:
        raise ConfigError(
            f"the Ray cluster at {address} needs a token",
            hint="set RAY_AUTH_TOKEN_PATH to the file with the token that the cluster was started with",
        )
    path = state_folder() / TOKEN_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32), encoding="utf-8")
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
