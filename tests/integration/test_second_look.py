"""A task that could not be promised is learnt, drafts behind real proxies, and takes its second look by itself.

The upstream is a server on loopback; the task, its model, its run and its registry are real.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from fixtures.cli import call
from fixtures.takeover import LearntTask, cases, write_draft
from fixtures.waiting import until

from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow, ShadowRow, StateRow
from smallfirst.registry import versions
from smallfirst.traffic.learning import Learnt
from smallfirst.traffic.task_source import TakeOvers
from tests.traffic.gateway.test_tasks_attacked import Proxy, Upstream, started, upstream

__all__ = ["started"]
N = 80
"""Texts in shadow that the look waits for."""
KNOWN, NEW, LATER = (150, 1), (160, 9), (60, 21)


@pytest.fixture
def learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LearntTask:
    """A task learnt from 150 recorded answers, of which 23 certify: far too few."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / ".smallfirst"))
    folder = write_draft(tmp_path / "queues", cases(*KNOWN))
    file = folder / "task.yaml"
    settings = json.loads(file.read_text())
    settings["routing"] |= {"guarantee": {"max_error": 0.1, "unit": "text"}, "second_look_after": N}
    file.write_text(json.dumps(settings))
    told = call("learn", "queues")
    assert told.exit_code == 0, told.output
    assert "promise: none yet: too few labels" in told.output
    assert f"the second look comes by itself, after {N} texts there" in told.output
    return LearntTask(folder, TakeOvers(), Learnt.model_construct())


def ask_until_taken(proxies: list[Proxy], texts: list[str]) -> Counter[str]:
    """Ask new texts, some of them twice, through all proxies in turn until the second look is there."""
    given: Counter[str] = Counter()
    for i, text in enumerate(texts):
        for again in range(1 + (i % 5 == 0)):
            given[proxies[(i + again) % len(proxies)].ask(text=text)] += 1
        if i == N - 10:
            assert not proxies[0].task.second_look
    until(lambda: bool(proxies[0].task.second_look))
    return given


def looks(state: Path) -> list[StateRow]:
    with closing(Ledger(state / "ledger.db")) as ledger:
        return [row for row in ledger.entries(StateRow) if row.cause == "second look"]


def start_two(started: Callable[..., Proxy], big: Upstream) -> list[Proxy]:
    """Two proxies over one state folder, the task taken over in advance."""
    told = call("take-over", "queues", "--share", "1")
    assert "it begins by itself if the second look shows one" in told.output
    return [started({"default": big}), started({"default": big})]


def test_the_second_look_is_taken_once_announced_and_answers(
    learnt: LearntTask, started: Callable[..., Proxy], tmp_path: Path
) -> None:
    with upstream() as big:
        proxies = start_two(started, big)
        before = ask_until_taken(proxies, [text for text, _ in cases(*NEW)])
        assert before["200"] > N  # nothing was promised, so nothing was answered small
        proxy = proxies[0]
        taken = proxy.task
        assert taken.second_look.startswith("The second look, over 23 calibration rows and 80 texts in shadow, shows")
        assert taken.promise.startswith("at most 10 % of kept answers wrong, each text counted once")
        for one in proxies:
            until(lambda one=one: {task.serves for task in one.tasks()} == {taken.serves})
        after = sum((one.asks(30, "", *[text for text, _ in cases(*LATER)]) for one in proxies), Counter[str]())
        assert after["small"] > 40
        page = httpx.get(f"http://127.0.0.1:{proxy.port}/v1/smallfirst/tasks").json()
        assert page["tasks"][0]["second_look"] == taken.second_look
    state = tmp_path / ".smallfirst"
    [told] = looks(state)
    assert told.why == f"{taken.second_look}; the small model answers them from now on."
    [version] = versions.list_versions("main.default.queues")
    assert version.tags["second_look"] == told.why
    assert version.aliases == ("champion", "shadow")
    with closing(Ledger(state / "ledger.db")) as ledger:
        rows = ledger.entries(ShadowRow)
        kept = [row for row in ledger.entries(LedgerRow) if row.certified]
        assert not [audit for audit in ledger.entries(AuditRow) if audit.wrong]
    assert len({row.text for row in rows}) == len(rows) >= N
    assert len(kept) >= after["small"]
    outcome = json.loads(versions.read_attachment(version.name, 1, "outcome.json") or b"")
    assert outcome["kind"] == "small first"
