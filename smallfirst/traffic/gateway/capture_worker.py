"""The process that keeps exchanges: it reads, prices, redacts and stores what the proxy hands over, and outlives it.

    python -m smallfirst.traffic.gateway.capture_worker ORDER

ORDER is a `WorkerOrder` as JSON. The process ends once the proxy has ended and everything is stored.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

from smallfirst.base.errors import SmallfirstError
from smallfirst.data.redaction import redact_logs
from smallfirst.traffic.capture_store import CaptureStore, CaptureUnavailable
from smallfirst.traffic.exchange import Exchange, billed
from smallfirst.traffic.gateway.capture import BUFFER_BYTES, FRAME, Ring, WorkerOrder
from smallfirst.traffic.gateway.http import read_response

_log = logging.getLogger("smallfirst.gateway")
_BATCH = 100
_GATHER_S = 0.05
"""After the first of a batch, time for more of them."""
_EXPIRE_S = 3600.0
_RETRY_S = 1.0
_LAST_TRIES = 30
"""How often a full disk is tried again after the proxy has ended."""


def read_entry(entry: bytes, order: WorkerOrder) -> Exchange | None:
    """Return the exchange of a ring's entry; None if its bodies are no JSON objects."""
    n_facts, n_request = FRAME.unpack_from(entry)
    start = FRAME.size + n_facts
    facts: dict[str, Any] = json.loads(entry[FRAME.size : start])
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in facts.pop("headers")]
    try:
        request = json.loads(entry[start : start + n_request])
    except (ValueError, RecursionError):
        return None
    response = read_response(headers, entry[start + n_request :])
    if not isinstance(request, dict) or response is None:
        return None
    model, answered_by = _text(request.get("model")), _text(response.get("model"))
    upstream = order.settings.upstreams.get(facts.pop("upstream"))
    exchange = Exchange(
        **{**facts, "at": datetime.fromtimestamp(facts["at"], UTC)},
        request=request,
        response=response,
        model=model,
        answered_by=answered_by,
    )
    named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    address = upstream.base_url if upstream else None
    return billed(exchange, order.settings.prices, api_url=address, headers=named)


class Worker:
    """Moves entries from the ring to the store."""

    def __init__(self, order: WorkerOrder, store: CaptureStore, ring: Ring) -> None:
        self._order, self._store, self._ring = order, store, ring
        self._ended = False
        self._expired_s = -_EXPIRE_S

    def run(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Store entries until the proxy has ended and nothing waits."""
        while not self._ended:
            if time.monotonic() - self._expired_s >= _EXPIRE_S:
                self._expired_s = time.monotonic()
                with suppress(Exception):  # a full disk, which the next entry reports
                    self._store.expire()
            self._listen(_EXPIRE_S)
            sleep(_GATHER_S)
            while (found := self._ring.entries(_BATCH))[0]:
                entries, end = found
                exchanges = [one for one in map(self._read, entries) if one is not None]
                kept = self._append(exchanges, sleep)
                self._ring.take(end, stored=kept, unreadable=len(entries) - kept)

    def _listen(self, timeout_s: float) -> None:
        """Wait until the proxy has put something, or has ended, at most so long."""
        if not self._ended and select.select([self._order.wake_fd], [], [], timeout_s)[0]:
            self._ended = not os.read(self._order.wake_fd, 65536)

    def _read(self, entry: bytes) -> Exchange | None:
        try:
            return read_entry(entry, self._order)
        except Exception:
            _log.exception("an exchange cannot be kept")
            return None

    def _append(self, exchanges: list[Exchange], sleep: Callable[[float], None]) -> int:
        """Append all that are not too long, and return how many; wait while the disk is full.

        Once the proxy has ended, the wait is not for ever.
        """
        tries = 0
        while not self._ended or tries < _LAST_TRIES:
            try:
                return self._store.append(exchanges)
            except CaptureUnavailable as error:
                if not tries:
                    _log.warning("%s", error)
                tries += 1
                sleep(_RETRY_S)
                self._listen(0)
            except (SmallfirstError, ValueError):
                _log.exception("exchanges cannot be kept")
                break
        return 0


def main() -> None:
    """Serve one proxy."""
    logging.basicConfig(format="%(name)s: %(message)s")
    redact_logs()
    order = WorkerOrder.model_validate_json(sys.argv[1])
    os.nice(5)  # an answer comes before its copy
    with closing(order.open_store()) as store:
        Worker(order, store, Ring(order.ring_fd, BUFFER_BYTES)).run()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


if __name__ == "__main__":
    main()
