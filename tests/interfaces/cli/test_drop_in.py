"""The verbs in front of a large model; what `tasks` prints is tested with the table (tests/gateway)."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from fixtures.cli import call, failed
from fixtures.traffic import sorted_tickets

from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore
from smallfirst.traffic.discovery.discover import Discovery
from smallfirst.traffic.gateway.app import Gateway
from smallfirst.traffic.task_source import TakeOver, TakeOvers, TaskSource


def test_what_is_kept_is_said_before_the_first_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    async def begin_and_end(gateway: Gateway) -> None:
        await gateway.start()
        await gateway.aclose()

    def run(gateway: Gateway, listener: socket.socket) -> None:
        kept.append(gateway.capture is not None)
        listener.close()
        asyncio.run(begin_and_end(gateway))

    monkeypatch.setattr("smallfirst.traffic.gateway.app.run", run)
    monkeypatch.chdir(tmp_path)
    for more in ((), ("--capture",)):
        result = call("proxy", "--upstream", "https://example.com/v1", "--port", "0", *more)
        assert result.exit_code == 0, result.output
        passes, keeps, page, export = result.output.splitlines()
        address = passes.split()[2]
        assert passes == f"smallfirst passes {address} on to https://example.com/v1"
        assert keeps.startswith("kept in " if more else "nothing is kept of it")
        assert page == f"its page: {address.removesuffix('v1')}"
        assert export == f"in the application:  export OPENAI_BASE_URL={address}"
    assert kept == [False, True]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / ".smallfirst"))
    return tmp_path


def test_a_log_becomes_a_report_and_folders(here: Path) -> None:
    lines = [json.dumps({"request": e.request, "response": e.response}) for e in sorted_tickets(400)]
    (here / "log.jsonl").write_text("\n".join([*lines, "{not JSON", ""]))
    done = call("discover", "log.jsonl", "--out", "found", "--max-error", "0.2")
    assert done.exit_code == 0, done.output
    assert "not readable: 1 lines of the log, the first log.jsonl:401" in done.stdout
    found = Discovery.load(here / "found" / "discovery.json")
    name = found.tasks[0].name
    assert found.max_error == 0.2
    assert f"next: smallfirst learn found/{name}" in done.stdout
    assert (here / "found" / "report.html").exists()
    assert (here / "found" / name / "task.yaml").exists()


def test_kept_traffic_is_read_with_the_terms_of_its_teacher(here: Path) -> None:
    store = CaptureStore(here / ".smallfirst" / FILE_NAME)
    store.append([e.model_copy(update={"at": e.at.replace(year=2099)}) for e in sorted_tickets(60)])
    store.close()
    (here / "gateway.yaml").write_text(
        "upstreams: {default: {base_url: https://api.example.com/v1}}\n"
        "teachers: {big: {licence: no training, training_allowed: false}}\n"
    )
    done = call("discover", "--json")
    assert done.exit_code == 0, done.output
    found = Discovery.model_validate_json(done.stdout)
    assert found.sources == ("kept traffic",)
    source = TaskSource.of(here / "discovered" / found.tasks[0].name)
    assert source.teacher.licence == "no training"
    assert not source.teacher.training_allowed


def test_without_traffic_it_says_how_to_get_some(here: Path) -> None:
    assert "smallfirst proxy" in failed(call("discover"), 2)


def test_a_task_is_taken_over_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    TakeOvers().put(TakeOver(task="tickets", folder=tmp_path, version=1))
    run = call("take-over", "tickets", "--share", "0.25")
    assert run.exit_code == 0
    assert "25%" in run.output
    assert "smallfirst give-back tickets" in run.output
    assert TakeOvers().get("tickets").live_share == 0.25
    assert call("give-back", "tickets").exit_code == 0
    assert TakeOvers().get("tickets").state == "shadow"


def test_what_was_not_learnt_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    run = call("take-over", "tickets")
    assert run.exit_code == 2
    assert "smallfirst learn discovered/tickets" in run.output
    shares = call("take-over", "tickets", "--share", "1.5")
    assert shares.exit_code == 2
