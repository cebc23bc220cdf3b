"""Who may move a bound: a judge, once an audit, on answers that chance drew; what users say is kept as evidence."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment.test_audited_router import Setting, chat, said

from smallfirst.deployment.monitoring_routes import MAX_VERDICTS, MonitoringRoutes
from smallfirst.deployment.review_queue import review_queue
from smallfirst.routing.monitoring.quantities import UserReports
from smallfirst.serving.auth.keys import KeyPolicy, KeyStore
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.ledger.rows import AuditRow, DraftRow, FeedbackRow, LedgerRow, StateRow


def waiting(ledger: Ledger) -> list[str]:
    return [one.row.id for one in review_queue(ledger, ["tickets"])]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


def settled(ledger: Ledger, id: str) -> None:
    for _ in range(500):
        if ledger.entries(AuditRow, id=id):
            return
        time.sleep(0.01)


def test_a_user_judges_own_answers_only_and_moves_no_bound(ledger: Ledger, tmp_path: Path, run_server: Any) -> None:
    setting, store = Setting(ledger), KeyStore(tmp_path / "keys.json")
    keys = {name: store.create(name, KeyPolicy(role=name))[1] for name in ("user", "judge", "admin")}  # type: ignore[arg-type]
    keys["other"] = store.create("other", KeyPolicy())[1]
    plugin = MonitoringRoutes([setting.live], ledger)
    with (
        run_server({"tickets": setting.live}, ledger, plugins=[plugin], key_store=store) as at,
        httpx.Client(base_url=at.url) as client,
    ):

        def give(key: str, id: str, verdict: str) -> tuple[int, bool | None]:
            headers = {"authorization": f"Bearer {keys[key]}"}
            found = client.post("/v1/feedback", json={"id": id, "verdict": verdict}, headers=headers)
            return found.status_code, found.json().get("audit")

        def codes(path: str) -> list[int]:
            bearers = [{"authorization": f"Bearer {keys[name]}"} for name in ("user", "judge", "admin")]
            return [client.get(path, headers=headers).status_code for headers in bearers]

        client.headers["authorization"] = f"Bearer {keys['user']}"
        ids = [chat(client)["id"] for _ in range(30)]
        for id in ids:
            settled(ledger, id)
            assert give("other", id, "wrong") == (404, None)
            assert give("user", id, "wrong") == (200, False)
        monitor = setting.live.monitor
        assert (monitor.state, monitor.live_error.value, monitor.live_error.n) == ("live", 0.0, 30)
        assert monitor.alarms == ()
        for _ in range(MAX_VERDICTS):
            give("user", ids[0], "wrong")  # as many as fit do not keep the judge out
        assert give("judge", ids[0], "wrong") == (200, True)
        assert give("admin", ids[1], "wrong") == (200, True)
        assert (setting.live.monitor.live_error.n, round(30 * setting.live.monitor.live_error.value)) == (30, 2)
        assert codes("/v1/queue") == [403, 200, 200]
        assert codes("/v1/routers") == [403, 403, 200]
        client.headers["authorization"] = f"Bearer {keys['admin']}"
        (shown,) = client.get("/v1/routers").json()["data"]
        assert [hint["source"] for hint in shown["hints"]] == ["reports"]
        assert shown["reports_of_users"]["called_wrong"] == 30
        lines = client.get("/metrics").text.splitlines()
        assert 'smallfirst_hints_total{source="reports",task="tickets"} 1.0' in lines
        assert 'smallfirst_user_reports_total{task="tickets",verdict="wrong"} 30.0' in lines
    hints = [row for row in ledger.entries(StateRow) if row.cause == "reports"]
    assert [(row.before, row.after, row.why.startswith("hint, changes nothing")) for row in hints] == [
        ("live", "live", True)
    ]
    assert [row.counted for row in ledger.entries(FeedbackRow) if row.judge] == [True, True]
    assert not any(row.counted for row in ledger.entries(FeedbackRow) if not row.judge)


def test_a_report_of_a_user_leaves_the_answer_in_the_queue(ledger: Ledger) -> None:
    setting = Setting(ledger, judge="person")
    asyncio.run(setting.ask())
    asyncio.run(setting.live.feedback(said("chatcmpl-1-0", "right").model_copy(update={"judge": False})))
    assert waiting(ledger) == ["chatcmpl-1-0"]
    assert setting.live.monitor.live_error.n == 0
    asyncio.run(setting.live.feedback(said("chatcmpl-1-0", "right")))
    assert waiting(ledger) == []
    assert setting.live.monitor.live_error.n == 1


@pytest.mark.parametrize(("error", "hinted"), [(0.03, 0), (0.9, 200)])
def test_users_who_report_wrong_answers_more_readily_raise_no_false_hint(error: float, hinted: int) -> None:
    """They report 30 % of wrong and 1 % of right answers, against a limit of 5 %."""
    found = 0
    for seed in range(200):
        draw, n_right, n_wrong, hint = random.Random(seed), 0, 0, ""
        for n_kept in range(1, 3001):
            wrong = draw.random() < error
            if not hint and draw.random() < (0.3 if wrong else 0.01):
                n_right, n_wrong = n_right + (not wrong), n_wrong + wrong
                hint = UserReports(n_kept, n_right, n_wrong).hint(0.05, 0.95)
        found += bool(hint)
    assert found == hinted


def test_in_a_fallback_a_person_judges_the_draft_by_the_right_answer(ledger: Ledger) -> None:
    setting = Setting(ledger, judge="person")
    setting.live.monitor.resume("fallback")
    setting.small.wrong = True
    asyncio.run(setting.ask(3))
    assert ledger.entries(AuditRow) == ()
    ids = [row.id for row in ledger.entries(DraftRow)]
    assert waiting(ledger) == ids
    assert len(ids) == 3
    asyncio.run(setting.live.feedback(said(ids[0], "right")))  # the large model's answer is right, the draft is not
    asyncio.run(setting.live.feedback(said(ids[1], "wrong").model_copy(update={"answer": "wrong"})))
    with pytest.raises(Exception, match="name it"):
        asyncio.run(setting.live.feedback(said(ids[2], "wrong")))
    audits = {audit.id: (audit.judged_by, audit.wrong) for audit in ledger.entries(AuditRow)}
    assert audits == {ids[0]: ("person", True), ids[1]: ("person", False)}
    assert setting.live.monitor.live_error.n == 2
    assert waiting(ledger) == ids[2:]


def test_a_draft_whose_text_is_stored_is_judged_by_another_process(ledger: Ledger) -> None:
    maker, judge = Setting(ledger, judge="person"), Setting(Ledger(ledger.path), judge="person")
    maker.live.monitor.resume("fallback")
    asyncio.run(maker.ask())
    for one in (maker, judge):
        one.live.auditing = one.live.auditing._replace(store_bodies=True)
    asyncio.run(maker.ask())
    without, stored = (row.id for row in ledger.entries(DraftRow))
    found = [asyncio.run(judge.live.feedback(said(id, "right"))) for id in (without, stored)]
    judge.ledger.close()
    assert [one.counted for one in found] == [False, True]
    (audit,) = ledger.entries(AuditRow)
    assert (audit.id, audit.wrong, audit.judged_by) == (stored, False, "person")


def test_two_processes_on_one_ledger_count_each_audit_once(ledger: Ledger) -> None:
    settings = [Setting(ledger), Setting(Ledger(ledger.path))]
    first, second = settings
    entries = ledger.entries

    def unaware(kind: Any, **equal: Any) -> Any:
        """Both processes have looked before either has written."""
        found = entries(kind, **equal)
        time.sleep(0.001)
        return () if kind is AuditRow and "id" in equal else found

    async def race() -> None:
        slow = first.large.complete

        async def held(request: Any) -> Any:
            id = f"chatcmpl-{first.small.asked}-{first.large.asked}"
            verdicts = [one.live.feedback(said(id, "right")) for one in settings for _ in range(14)]
            found = await asyncio.gather(slow(request), *verdicts)
            return found[0]

        first.large.complete = held  # type: ignore[method-assign]
        await first.ask(10)

    for one in settings:
        one.ledger.entries = unaware  # type: ignore[method-assign]
    asyncio.run(race())
    for one in settings:
        asyncio.run(one.live._followed.follow())
    second.ledger.close()
    drawn = [row.id for row in entries(LedgerRow) if row.certified and row.audited]
    audits = [audit.id for audit in entries(AuditRow)]
    assert (len(audits), sorted(set(audits))) == (len(set(audits)), sorted(set(drawn)))
    assert [one.live.monitor.live_error.n for one in settings] == [len(audits)] * 2 == [10, 10]


@pytest.mark.parametrize("judge", ["person", "large"])
def test_a_withdrawn_verdict_leaves_the_bound_as_it_was_before(ledger: Ledger, judge: Any) -> None:
    setting = Setting(ledger, judge=judge)
    asyncio.run(setting.ask(2))
    before = setting.live.monitor.live_error
    id, other = (row.id for row in ledger.rows())
    ada, ben = (said(id, "wrong").model_copy(update={"caller": name}) for name in ("ada", "ben"))

    def give(feedback: FeedbackRow, verdict: str) -> float:
        asyncio.run(setting.live.feedback(feedback.model_copy(update={"verdict": verdict, "counted": False})))
        error = setting.live.monitor.live_error
        return round(error.value * error.n, 6)

    assert give(ada, "wrong") == 1
    assert give(ben, "right") == 0
    assert give(ben, "withdrawn") == 1  # Ada's stands again
    assert give(ada, "withdrawn") == 0
    assert setting.live.monitor.live_error == before
    assert Setting(ledger, judge=judge).live.monitor.live_error == before  # after a restart too
    assert ledger.entries(AuditRow, id=id)[-1].judged_by == ("nobody" if judge == "person" else "large")
    assert sum(audit.cost_usd for audit in ledger.entries(AuditRow, id=id)) == (1.0 if judge == "large" else 0.0)
    assert waiting(ledger) == ([id, other] if judge == "person" else [])
    assert give(ada, "wrong") == 1
    assert [row.counted for row in ledger.entries(FeedbackRow)] == [True] * 5
