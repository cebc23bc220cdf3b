import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from smallfirst.traffic.capture_store import CaptureStore, CaptureUnavailable
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.gateway.capture import WorkerOrder
from smallfirst.traffic.gateway.capture_worker import Worker
from smallfirst.traffic.settings import CaptureSettings
from tests.traffic.gateway.test_capture import SETTINGS, Unstarted, reply, request


class FullDisk(CaptureStore):
    """Takes nothing the first few times."""

    def __init__(self, path: Path, times: int) -> None:
        super().__init__(path)
        self.times = times

    def append(self, exchanges: Sequence[Exchange]) -> int:
        self.times -= 1
        if self.times >= 0:
            raise CaptureUnavailable("full")
        return super().append(exchanges)


def worked(tmp_path: Path, times: int) -> tuple[Unstarted, CaptureStore, list[float]]:
    """A worker whose proxy has ended after two exchanges."""
    capture = Unstarted(SETTINGS, CaptureSettings(), tmp_path)
    for _ in range(2):
        capture.keep(request(), reply())
    os.close(capture._wake_fd)
    order: WorkerOrder = capture._order.model_copy(update={"wake_fd": capture._read_fd})
    store, slept = FullDisk(tmp_path / "capture.db", times), list[float]()
    Worker(order, store, capture._ring).run(slept.append)
    return capture, store, slept


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    capture, store, slept = worked(tmp_path, times=3)
    assert (len(list(store.exchanges())), capture.counts["stored"], capture.counts["waiting_bytes"]) == (2, 2, 0)
    assert slept[-3:] == [1.0, 1.0, 1.0]


def test_a_disk_that_stays_full_does_not_keep_the_process_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capture, store, slept = worked(tmp_path, times=1_000_000)
    assert (len(list(store.exchanges())), capture.counts["unreadable"], len(slept)) == (0, 2, 31)
    assert [record.message for record in caplog.records] == ["full"]
