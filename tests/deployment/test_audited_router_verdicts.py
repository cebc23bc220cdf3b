"""Who may move a bound: a judge, once an audit, on answers that chance drew; what users say is kept as evidence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment.test_audited_router import Setting, chat, fall_back, said

from smallfirst.deployment.monitoring_routes import MAX_VERDICTS, MonitoringRoutes
from smallfirst.deployment.review_queue import review_queue
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, DraftRow, FeedbackRow, LedgerRow, StateRow


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
    setting, store = Setting(ledger), KeyStore(tmp_path / "keys.db")
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
        assert give("judge", ids[0], "wrong") == (200, False)  # the large model's verdict is final
        assert give("admin", ids[1], "wrong") == (200, False)
        assert (setting.live.monitor.live_error.n, setting.live.monitor.live_error.value) == (30, 0.0)
        assert codes("/v1/queue") == [403, 200, 200]
        assert codes("/v1/routers") == [403, 403, 200]
        client.headers["authorization"] = f"Bearer {keys['admin']}"
    assert not any(row.counted for row in ledger.entries(FeedbackRow))
    assert [row.cause for row in ledger.entries(StateRow)] == [""]


def test_a_report_of_a_user_leaves_the_answer_in_the_queue(ledger: Ledger) -> None:
    setting = Setting(ledger, judge="person")
    asyncio.run(setting.ask())
    asyncio.run(setting.live.feedback(said("chatcmpl-1-0", "right").model_copy(update={"judge": False})))
    assert waiting(ledger) == ["chatcmpl-1-0"]
    assert setting.live.monitor.live_error.n == 0
    asyncio.run(setting.live.feedback(said("chatcmpl-1-0", "right")))
    assert waiting(ledger) == []
    assert setting.live.monitor.live_error.n == 1


def test_in_a_fallback_a_person_judges_the_draft_by_the_right_answer(ledger: Ledger) -> None:
    setting = Setting(ledger, judge="person")
    fall_back(setting)
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
    fall_back(maker)
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
        one.ledger.count = lambda *_, **__: 0  # type: ignore[method-assign]  # each looks before another has written
    asyncio.run(race())
    for one in settings:
        asyncio.run(one.live.audits.follow())
    second.ledger.close()
    drawn = [row.id for row in ledger.entries(LedgerRow) if row.certified and row.audited]
    audits = [audit.id for audit in ledger.entries(AuditRow)]
    assert (len(audits), sorted(set(audits))) == (len(set(audits)), sorted(set(drawn)))
    assert [one.live.monitor.live_error.n for one in settings] == [len(audits)] * 2 == [10, 10]
