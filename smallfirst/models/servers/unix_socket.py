"""HTTP to a server of our own over a Unix socket, which no other user of the machine can reach.

One connection pool per event loop, since sockets cannot be shared between loops. Closing the client leaves the pools
open: whoever owns the server closes them with it.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import httpx

BASE_URL = "http://localhost"
"""What stands in front of a path where the socket is the address."""
MAX_PATH_BYTES = 100
"""The system's limit for a socket's path is 108 on Linux and 104 on macOS."""


class Sockets(httpx.AsyncBaseTransport):
    """Requests over one socket from any event loop."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self._path = str(path)
        self._by_loop: dict[asyncio.AbstractEventLoop, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The response, its body unread."""
        loop = asyncio.get_running_loop()
        for old in [known for known in list(self._by_loop) if known.is_closed()]:
            self._by_loop.pop(old, None)
        if loop not in self._by_loop:
            # A connection for each request: an engine closes idle ones, and a request that meets such a one is lost.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            self._by_loop[loop] = httpx.AsyncHTTPTransport(uds=self._path, trust_env=False, limits=limits)
        return await self._by_loop[loop].handle_async_request(request)

    async def aclose(self) -> None:
        """Nothing: a client that ends leaves the connections to the next one."""

    async def close(self) -> None:
        """Close the connections of the running event loop. Those of other loops end with the server."""
        transport = self._by_loop.pop(asyncio.get_running_loop(), None)
        if transport is not None:
            await transport.aclose()


class SocketFolder:
    """A folder that only this user may enter, for one socket."""

    def __init__(self) -> None:
        """Made now. The path of the socket is `socket`."""
        self.path = Path(tempfile.mkdtemp(prefix="smallfirst-"))
        if len(str(self.path)) + 8 > MAX_PATH_BYTES:  # a deep TMPDIR
            self.path.rmdir()
            self.path = Path(tempfile.mkdtemp(prefix="smallfirst-", dir="/tmp"))

    @property
    def socket(self) -> Path:
        """Where the server listens; the ending tells llama.cpp that it is no host name."""
        return self.path / "e.sock"

    def remove(self) -> None:
        """Delete it. Safe to call twice."""
        shutil.rmtree(self.path, ignore_errors=True)
