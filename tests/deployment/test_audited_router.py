"""A Router under watch: audits by chance, a broken promise, fallback and recovery, restarts, feedback, metrics."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.certificates import certificate as make_certificate
from fixtures.loop_lag import MAX_LAG_S, LoopLag
from fixtures.server import WholeModel

from smallfirst.base.errors import Unavailable
from smallfirst.deployment import audited_router
from smallfirst.deployment.audited_router import AuditedRouter, AuditSettings
from smallfirst.deployment.monitoring_routes import MAX_VERDICTS, MonitoringRoutes
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow, StateRow
from smallfirst.models.protocol import Capability, Completion, Request
from smallfirst.routing.certificate.certificate import NEVER_ACCEPT, Certificate
from smallfirst.routing.monitor import UNIFORM, AuditAllocation, Monitor, MonitorSettings, watched_quantities
from smallfirst.routing.router import Router
from smallfirst.serving.settings import ServeSettings


class Says(WholeModel):
    """Answers with `text`, surely; `wrong` and `down` may be changed while it runs."""

    def __init__(self, name: str, *, confidence: float = 0.9, cost_usd: float = 0.0) -> None:
        self.name, self.confidence, self.cost_usd = name, confidence, cost_usd
        self.wrong = self.down = False
        self.asked, self.last = 0, Request.ask("")

    async def complete(self, request: Request) -> Completion:
        self.asked, self.last = self.asked + 1, request
        if self.down:
            raise Unavailable("down")
        return Completion(
            text="wrong" if self.wrong else "refund",
            answered_by=self.name,
            latency_ms=1.0,
            cost_usd=self.cost_usd,
            confidence=self.confidence,
        )


def certificate(*, issued: bool = True) -> Certificate:
    why = "13 of 720 wrong" if issued else "too few labels"
    by = {"error": {"person": 0.05, "large": 0.05}}
    return make_certificate(0.5 if issued else NEVER_ACCEPT, issued=issued, why=why, audit_limits=by)


class Setting:
    """A Live Router over two models, and its ledger."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        issued: bool = True,
        judge: Any = "large",
        allocation: AuditAllocation = UNIFORM,
        **settings: Any,
    ) -> None:
        self.ledger, self.small, self.large = ledger, Says("small", cost_usd=0.01), Says("large", cost_usd=1.0)
        every = {"audit_share": 1.0, "audit_share_in_fallback": 1.0}
        chosen = MonitorSettings.model_validate({**every, **settings})
        router = Router(self.small, self.large, certificate(issued=issued), name="tickets")

        quantities = watched_quantities(router.certificate, judge)

        monitor = Monitor(
            chosen,
            quantities=quantities,
            allocation=allocation,
            shadow=not issued,
        )
        auditing = AuditSettings(judge, lambda draft, other: draft == other)
        self.live = AuditedRouter(router, monitor, ledger=ledger, auditing=auditing, rng=random.Random(0))

    async def ask(self, n: int = 1, **settings: Any) -> list[Completion]:
        found = []
        for _ in range(n):
            request = Request.ask("where is my card").model_copy(update=settings)
            found.append(await self.live.complete(request))
            id = f"chatcmpl-{self.small.asked}-{self.large.asked}"
            route = found[-1].route
            assert route is not None
            row = LedgerRow.model_validate(
                {
                    "id": id,
                    "at": datetime.now(UTC),
                    "served_name": "tickets",
                    "status": 200,
                    "latency_ms": 1,
                    "task": "tickets",
                    "stage": route.stage,
                    "certified": route.certified,
                    "audited": route.audited,
                    "audit_share": route.audit_share,
                    "audit_weight": route.audit_weight,
                }
            )
            await self.ledger.append_async(row)
            self.live.answered(id, request, found[-1])
            if self.live._tasks:
                await asyncio.wait(self.live._tasks)
        return found

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [(row.before, row.after) for row in self.ledger.entries(StateRow)]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


def fall_back(setting: Setting) -> None:
    setting.live.monitor._enter("fallback", datetime.now(UTC))


def stages(found: list[Completion]) -> set[str]:
    return {answer.route.stage for answer in found if answer.route}


def test_audited_answers_are_held_against_the_large_model_after_the_client_has_them(ledger: Ledger) -> None:
    setting = Setting(ledger)
    (answer,) = asyncio.run(setting.ask())
    assert answer.route is not None
    assert (answer.answered_by, answer.cost_usd, answer.route.audited, answer.route.audit_share) == (
        "small",
        0.01,
        True,
        1.0,
    )
    (audit,) = ledger.entries(AuditRow)
    assert audit.model_dump(exclude={"at", "answered_at", "certificate"}) == {
        "id": "chatcmpl-1-0",
        "task": "tickets",
        "propensity": 1.0,
        "weight": 1.0,
        "wrong": False,
        "judged_by": "large",
        "cost_usd": 1.0,
        "charges": '[{"model":"large","purpose":"audit","usd":1.0,"basis":"billed","source":"stated by the model"}]',
        "certified": True,
        "draft": None,
        "other": None,
    }
    assert (setting.live.monitor.live_error.n, setting.changes) == (1, [("", "live")])


def test_an_audit_asks_the_judge_with_the_settings_of_the_certificate(ledger: Ledger) -> None:
    setting = Setting(ledger)
    setting.small.capabilities = frozenset({Capability.CHOSEN})
    (answer,) = asyncio.run(setting.ask(temperature=1.5, stop=("e",), max_tokens=2, tags={"user": "u"}))
    assert answer.route is not None
    assert (answer.answered_by, answer.route.audited) == ("small", True)
    assert setting.large.last.model_copy(update={"bill": None}) == Request(
        messages=Request.ask("where is my card").messages, tags={"user": "u"}
    )


def test_sampled_drafts_are_not_audited(ledger: Ledger) -> None:
    setting = Setting(ledger)
    found = asyncio.run(setting.ask(20, temperature=1.5))
    assert stages(found) == {"large"}
    assert (setting.live.monitor.live_error.n, setting.changes) == (0, [("", "live")])


def test_chance_alone_chooses_audits_at_the_stated_share(ledger: Ledger) -> None:
    setting = Setting(ledger, audit_share=0.2)
    found = asyncio.run(setting.ask(400))
    audited = sum(answer.route.audited for answer in found if answer.route)
    assert 50 < audited < 112  # 80 ± 4 sigma
    assert len(ledger.entries(AuditRow)) == audited == setting.large.asked
    assert {a.propensity for a in ledger.entries(AuditRow)} == {0.2}


def test_uncertain_answers_are_audited_more_often_with_the_inverse_weight(ledger: Ledger) -> None:
    """A mean of 20 %: at a level of 2 a chance of 0.2 (1 + 0.8) = 0.36, at 0.5 one of 0.2 (1 - 0.5 * 0.8) = 0.12."""
    steady: Any = {"allocation": AuditAllocation((0.7,), (2.0, 0.5)), "audit_share": 0.2}
    setting = Setting(ledger, **steady)
    for confidence, share in ((0.6, 0.36), (0.9, 0.12)):
        setting.small.confidence = confidence
        (answer,) = {answer.route.audit_share for answer in asyncio.run(setting.ask(100)) if answer.route}
        assert answer == pytest.approx(share)
    audits = ledger.entries(AuditRow)
    counts = Counter((round(audit.propensity, 6), round(audit.weight, 6)) for audit in audits)
    assert set(counts) == {(0.36, round(0.2 / 0.36, 6)), (0.12, round(0.2 / 0.12, 6))}
    assert 20 < counts[0.36, round(0.2 / 0.36, 6)] < 55

    setting.small.wrong = True
    while len(audits := ledger.entries(AuditRow)) < sum(counts.values()) + 1:
        asyncio.run(setting.ask())
    weights = [audit.weight for audit in audits]
    for live in (setting.live, Setting(ledger, **steady).live):
        assert live.monitor.live_error.value == pytest.approx(weights[-1] / sum(weights))
        assert live.monitor.live_error.n == len(audits)


def test_a_broken_promise_falls_back_to_the_large_model_and_comes_back_when_it_is_shown_again(ledger: Ledger) -> None:
    setting = Setting(ledger)
    setting.small.wrong = True
    found = asyncio.run(setting.ask(8))
    assert stages(found[:1]) == {"small"}
    assert stages(found[-2:]) == {"large"}
    assert found[-1].text == "refund"
    assert found[-1].route is not None
    assert found[-1].route.why == "the guarantee was found broken on live answers"
    assert not found[-1].route.certified
    assert setting.changes == [("", "live"), ("live", "fallback")]
    assert "wrong" in ledger.entries(StateRow)[-1].why

    setting.small.wrong = False
    recovered = asyncio.run(setting.ask(400))
    assert stages(recovered[-5:]) == {"small"}
    assert setting.changes[-1] == ("fallback", "live")


def test_in_fallback_a_draft_that_the_certificate_would_not_keep_is_no_audit(ledger: Ledger) -> None:
    setting = Setting(ledger)
    fall_back(setting)
    setting.small.confidence = 0.3
    asyncio.run(setting.ask(5))
    assert setting.small.asked == 5
    assert ledger.entries(AuditRow) == ()


def test_without_a_certificate_the_small_model_runs_in_shadow_only(ledger: Ledger) -> None:
    setting = Setting(ledger, issued=False)
    found = asyncio.run(setting.ask(3))
    assert stages(found) == {"large"}
    assert setting.changes == [("", "shadow")]
    assert found[0].cost_usd == 1.0


def test_a_restart_goes_on_in_the_state_and_with_the_audits_of_before(ledger: Ledger) -> None:
    before = Setting(ledger)
    before.small.wrong = True
    asyncio.run(before.ask(20))
    n = len(ledger.entries(AuditRow))
    after = Setting(ledger)
    assert after.live.monitor.state == "fallback"
    assert stages(asyncio.run(after.ask())) == {"large"}
    assert len(ledger.entries(AuditRow)) == n + 1 > 1
    assert len(before.changes) == len(after.changes)


def test_an_audit_that_fails_changes_nothing(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting(ledger)
    setting.large.down = True
    found = asyncio.run(setting.ask())
    assert stages(found) == {"small"}
    assert ledger.entries(AuditRow) == ()
    assert "not audited, down" in caplog.text


def said(id: str, verdict: Any) -> FeedbackRow:
    return FeedbackRow.model_validate({"id": id, "at": datetime.now(UTC), "verdict": verdict})


def test_a_person_judges_audits_where_they_are_asked_and_no_other_answers(ledger: Ledger) -> None:
    setting = Setting(ledger, judge="person", audit_share=0.5)
    found = asyncio.run(setting.ask(40))
    ids = [(f"chatcmpl-{i + 1}-0", answer.route.audited) for i, answer in enumerate(found) if answer.route]
    for id, _ in ids:
        asyncio.run(setting.live.feedback(said(id, "right")))
    chosen = [id for id, audited in ids if audited]
    assert 5 < len(chosen) < 35
    assert [a.id for a in ledger.entries(AuditRow)] == chosen
    assert setting.live.monitor.live_error.n == len(chosen)
    assert len(ledger.entries(FeedbackRow)) == 40


def test_the_verdict_of_an_audit_is_final(ledger: Ledger) -> None:
    setting = Setting(ledger)
    setting.small.wrong = True
    asyncio.run(setting.ask(8))
    before = setting.live.monitor.live_error
    for audit in ledger.entries(AuditRow):
        assert not asyncio.run(setting.live.feedback(said(audit.id, "right"))).counted
    assert (setting.live.monitor.state, setting.live.monitor.live_error) == ("fallback", before)
    assert Setting(ledger).live.monitor.state == "fallback"


def test_very_many_audits_of_other_processes_do_not_hold_the_loop(ledger: Ledger) -> None:
    setting = Setting(ledger)
    asyncio.run(setting.ask())
    columns = "at, answered_at, task, certificate, propensity, weight, wrong, judged_by, certified, cost_usd"
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        numbers = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        connection.execute(f"INSERT INTO audits (id, {columns}) {numbers} SELECT 'a' || i, {columns} FROM n, audits")
    lag = LoopLag()

    async def follow() -> None:
        beating = asyncio.create_task(lag.beat())
        await asyncio.sleep(0)
        await setting.live.audits.follow()
        beating.cancel()

    asyncio.run(follow())
    assert setting.live.monitor.live_error.n == 20_001
    assert lag.worst_s < MAX_LAG_S
    assert Setting(ledger).live.monitor.live_error.n == 20_001


@pytest.mark.parametrize("judge", ["large", "person"])
def test_answers_are_compared_off_the_event_loop(ledger: Ledger, judge: str) -> None:
    """The score of a long extraction takes its time."""
    setting, compared_in = Setting(ledger, judge=judge), list[int]()

    def agrees(draft: str, other: str) -> bool:
        compared_in.append(threading.get_ident())
        return draft == other

    setting.live.auditing = setting.live.auditing._replace(agrees=agrees)

    async def audit() -> None:
        if judge == "person":
            fall_back(setting)
        await setting.ask()
        if judge == "person":
            await setting.live.feedback(said(ledger.entries(LedgerRow)[0].id, "right"))

    asyncio.run(audit())
    assert len(compared_in) == len(ledger.entries(AuditRow)) == 1
    assert threading.get_ident() not in compared_in


def test_a_person_who_is_quicker_than_the_audit_counts_alone(ledger: Ledger) -> None:
    setting = Setting(ledger)

    async def race() -> None:
        slow = setting.large.complete

        async def held(request: Request) -> Completion:
            await setting.live.feedback(said("chatcmpl-1-0", "wrong"))  # while the large model is asked
            return await slow(request)

        setting.large.complete = held  # type: ignore[method-assign]
        await setting.ask()

    asyncio.run(race())
    assert [(a.judged_by, a.wrong) for a in ledger.entries(AuditRow)] == [("person", True)]
    assert setting.live.monitor.live_error.n == 1


def test_two_verdicts_at_the_same_moment_count_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(ledger, judge="person")
    asyncio.run(setting.ask())
    entries = ledger.entries

    def slow_entries(kind: Any, **equal: Any) -> Any:
        found = entries(kind, **equal)
        time.sleep(0.1)  # long enough for another look before the verdict is written
        return found

    monkeypatch.setattr(ledger, "entries", slow_entries)

    async def judge_twice() -> None:
        verdict = said("chatcmpl-1-0", "right")
        await asyncio.gather(setting.live.feedback(verdict), setting.live.feedback(verdict))

    asyncio.run(judge_twice())
    assert (len(entries(AuditRow)), setting.live.monitor.live_error.n) == (1, 1)


def test_answers_that_wait_for_a_person_take_bounded_memory(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audited_router, "MAX_PENDING_AUDITS", 3)
    setting = Setting(ledger, judge="person")
    fall_back(setting)
    asyncio.run(setting.ask(5))
    assert list(setting.live._drafts) == [row.id for row in ledger.rows()[-3:]]


def test_feedback_on_an_answer_of_another_certificate_moves_no_bound(ledger: Ledger) -> None:
    setting = Setting(ledger, judge="person")
    asyncio.run(setting.ask())
    setting.live.audits.since = datetime.now(UTC)  # as if this certificate had come after that answer
    asyncio.run(setting.live.feedback(said("chatcmpl-1-0", "wrong")))
    assert ledger.entries(AuditRow) == ()
    assert len(ledger.entries(FeedbackRow)) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_an_escalated_answer_says_whether_it_differs_from_the_draft(streamed: bool, ledger: Ledger) -> None:
    setting = Setting(ledger)

    async def ask() -> Completion:
        if not streamed:
            return await setting.live.complete(Request.ask("where is my card"))
        chunks = [chunk async for chunk in setting.live.stream(Request.ask("where is my card"))]
        assert chunks[-1].completion is not None
        return chunks[-1].completion

    def differs() -> tuple[str, bool]:
        route = asyncio.run(ask()).route
        assert route is not None
        assert not any(step.differs for step in route.trail[:-1])
        return route.stage, route.trail[-1].differs

    assert differs() == ("small", False)
    setting.small.confidence = 0.1
    assert differs() == ("large", False)
    setting.small.wrong = True
    assert differs() == ("large", True)
    setting.large.down = True
    assert differs() == ("small", False)  # the draft was used after all


@pytest.fixture
def server(ledger: Ledger, run_server: Any) -> Iterator[tuple[Setting, httpx.Client]]:
    setting = Setting(ledger)
    extension = MonitoringRoutes([setting.live], ledger)
    with (
        run_server({"tickets": setting.live}, ledger, ServeSettings(), plugins=[extension]) as at,
        httpx.Client(base_url=at.url) as client,
    ):
        yield setting, client


def chat(client: httpx.Client) -> Any:
    body = {"model": "tickets", "messages": [{"role": "user", "content": "hi"}]}
    return client.post("/v1/chat/completions", json=body).json()


def settled(client: httpx.Client, n: int) -> Any:
    for _ in range(200):
        (found,) = client.get("/v1/routers").json()["data"]
        if found["live_error"]["n"] >= n:
            break
    return found


def test_over_http_an_answer_says_its_way_and_its_promise(server: tuple[Setting, httpx.Client]) -> None:
    setting, client = server
    answer = chat(client)
    assert answer["smallfirst"]["guarantee"] == "at most 5 % of kept answers wrong (95 %)"
    assert [step["stage"] for step in answer["smallfirst"]["steps"]] == ["small"]
    row = setting.ledger.get(answer["id"])
    assert row is not None
    assert (row.task, row.audited, row.audit_share) == ("tickets", True, 1.0)
    assert [step.stage for step in row.steps] == ["small"]


def test_over_http_feedback_is_taken_by_id_and_refused_with_the_field_at_fault(
    server: tuple[Setting, httpx.Client],
) -> None:
    setting, client = server
    id = chat(client)["id"]
    settled(client, 1)
    given = client.post("/v1/feedback", json={"id": id, "verdict": "wrong", "answer": "lost_card"})
    assert given.status_code == 200
    told = {"object": "feedback", "id": id, "verdict": "wrong", "audit": False, "replaces": None}
    assert given.json() == told
    (kept,) = setting.ledger.entries(FeedbackRow)
    assert (kept.verdict, kept.answer) == ("wrong", "lost_card")
    for body, param in [
        ({"id": "chatcmpl-none", "verdict": "right"}, "id"),
        ({"id": 7, "verdict": "right"}, "id"),
        ({"id": id, "verdict": "maybe"}, "verdict"),
        ({"id": id, "verdict": "right", "answer": 3}, "answer"),
        ({"id": id, "verdict": "right", "score": 3}, "score"),
    ]:
        refused = client.post("/v1/feedback", json=body)
        assert refused.status_code in (400, 404)
        assert refused.json()["error"]["param"] == param


def test_over_http_an_answer_takes_so_many_verdicts_and_no_more(server: tuple[Setting, httpx.Client]) -> None:
    setting, client = server
    id = chat(client)["id"]
    codes = [client.post("/v1/feedback", json={"id": id, "verdict": "right"}).status_code for _ in range(18)]
    assert codes == [200] * MAX_VERDICTS + [409] * 2
    assert len(setting.ledger.entries(FeedbackRow)) == MAX_VERDICTS


def test_over_http_states_and_metrics_say_the_same(server: tuple[Setting, httpx.Client]) -> None:
    setting, client = server
    chat(client)
    setting.small.wrong = True
    for _ in range(5):
        chat(client)
    found = settled(client, 6)
    assert (found["task"], found["state"], found["watched"][0]["limit"]) == ("tickets", "fallback", 0.05)
    assert found["changes"][-1]["after"] == "fallback"
    lines = client.get("/metrics").text.splitlines()
    assert 'smallfirst_state{state="fallback",task="tickets"} 1.0' in lines
    assert 'smallfirst_state{state="live",task="tickets"} 0.0' in lines
    assert 'smallfirst_answers_total{stage="small",task="tickets"} 6.0' in lines
    (cost,) = [line.split()[-1] for line in lines if line.startswith("smallfirst_cost_usd_total")]
    assert float(cost) == pytest.approx(0.06)
    assert 'smallfirst_alarms_total{cause="guarantee",task="tickets"} 1.0' in lines
