"""`smallfirst discover` on logs and on kept traffic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.cli import call, failed
from fixtures.traffic import sorted_tickets

from smallfirst.traffic.capture_store import FILE_NAME, CaptureStore
from smallfirst.traffic.discovery.found import Discovery
from smallfirst.traffic.task_source import TaskSource


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
    assert source is not None
    assert source.teacher.licence == "no training"
    assert not source.teacher.training_allowed


def test_without_traffic_it_says_how_to_get_some(here: Path) -> None:
    assert "smallfirst proxy" in failed(call("discover"), 2)
