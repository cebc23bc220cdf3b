"""Exchanges are handed over in shared memory, survive both sides, and never make a request wait."""

import fcntl
import json
import os
import random
import resource
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore, CaptureUnavailable
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.gateway.capture import Capture, Ring, Worker, WorkerOrder, shared_memory
from smallfirst.traffic.gateway.http import GatewayRequest, UpstreamAnswer
from smallfirst.traffic.settings import CaptureSettings, GatewaySettings

ANSWER = {"model": "m-2026", "choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}
SETTINGS = GatewaySettings.model_validate(
    {
        "upstreams": {"first": {"base_url": "http://127.0.0.1:1/v1"}},
        "prices": {"tokens": {"m": {"input_usd_per_mtok": 2, "output_usd_per_mtok": 4}}},
    }
)


def request(tenant: str = "default", **more: object) -> GatewayRequest:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "ask ada@example.com"}]} | more).encode()
    headers = [(b"authorization", b"Bearer sk-secret"), (b"traceparent", b"00-%s-%s-01" % (b"4b" * 16, b"1a" * 8))]
    return GatewayRequest("POST", "/v1/chat/completions", b"", headers, body, tenant, at=1_700_000_000.5)


def reply(body: bytes = json.dumps(ANSWER).encode()) -> UpstreamAnswer:
    headers = [(b"content-type", b"application/json"), (b"set-cookie", b"secret")]
    return UpstreamAnswer(200, headers, body, "first", 12.5)


def test_exchanges_are_kept_by_another_process_which_ends_with_this_one(tmp_path: Path) -> None:
    capture = Capture(SETTINGS, CaptureSettings(max_rows=5), tmp_path)
    asked = [request() for _ in range(3)]
    for one in asked:
        capture.keep(one, reply())
    capture.keep(request(), reply(b"garbage"))
    capture.close()
    assert capture.counts == {"stored": 3, "waiting_bytes": 0, "no_room": 0, "unreadable": 1}
    kept = list(CaptureStore(tmp_path / FILE_NAME).exchanges())
    assert [one.id for one in kept] == [one.id for one in asked]
    first = kept[0]
    assert first.request["messages"][0]["content"] == "ask [EMAIL]"
    assert first.at == datetime.fromtimestamp(1_700_000_000.5, UTC)
    assert (first.model, first.answered_by, first.latency_ms, first.trace) == ("m", "m-2026", 12.5, "4b" * 16)
    assert (first.prompt_tokens, first.cost_usd) == (1000, pytest.approx(0.004))
    assert b"secret" not in (tmp_path / FILE_NAME).read_bytes()


class Unstarted(Capture):
    def _start(self) -> None:
        self._read_fd, self._wake_fd = os.pipe()


def test_only_those_who_agreed_are_kept_and_only_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.traffic.gateway.capture.MAX_BODY_BYTES", 200)
    capture = Unstarted(SETTINGS, CaptureSettings(tenants=("ada",)), tmp_path)
    assert capture.wants(request("ada"))
    assert not capture.wants(request())
    assert not capture.wants(request("ada", long="x" * 200))
    assert not capture.wants(GatewayRequest("POST", "/v1/files", b"", [], b"", "ada"))
    assert not Unstarted(SETTINGS, CaptureSettings(share=0), tmp_path).wants(request())


def test_what_finds_no_room_is_counted_and_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallfirst.traffic.gateway.capture.BUFFER_BYTES", 1024 * 1024)
    capture = Unstarted(SETTINGS, CaptureSettings(), tmp_path)
    for _ in range(4):
        capture.keep(request(long="x" * 400_000), reply())
    assert capture.counts["no_room"] == 2


def test_a_key_that_is_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTURE_KEY", raising=False)
    with pytest.raises(ConfigError, match="CAPTURE_KEY is not set"):
        Unstarted(SETTINGS, CaptureSettings(key_env="CAPTURE_KEY"), tmp_path)


def test_entries_come_out_as_they_went_in_across_the_end_of_the_memory() -> None:
    fd = shared_memory(64 + 1000)
    writer, reader = Ring(fd, 1064), Ring(fd, 1064)
    assert not writer.put([b"x" * 997])  # never fits
    draws, expected = random.Random(1), []
    for _ in range(500):
        parts = [draws.randbytes(draws.randrange(150)) for _ in range(3)]
        if writer.put(parts):
            expected.append(b"".join(parts))
        if draws.random() < 0.5:
            found, end = reader.entries(2)
            assert found == expected[: len(found)]
            reader.take(end, stored=len(found), unreadable=0)
            del expected[: len(found)]
    assert reader.entries(100)[0] == expected
    assert writer.counts["no_room"] > 0
    assert writer.counts["stored"] + writer.counts["no_room"] + len(expected) == 501


def test_what_was_not_taken_is_there_for_the_next_reader() -> None:
    fd = shared_memory(4096)
    Ring(fd, 4096).put([b"kept"])
    assert Ring(fd, 4096).entries(1)[0] == [b"kept"]
    found, end = Ring(os.dup(fd), 4096).entries(9)
    Ring(fd, 4096).take(end, stored=1, unreadable=0)
    assert (found, Ring(fd, 4096).counts["waiting_bytes"]) == ([b"kept"], 0)


class FullDisk(CaptureStore):
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
    # A descriptor as where 1,000 connections are open.
    wake_fd = fcntl.fcntl(capture._read_fd, fcntl.F_DUPFD, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1))
    order: WorkerOrder = capture._order.model_copy(update={"wake_fd": wake_fd})
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
