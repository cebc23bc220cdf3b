"""A Router under watch: audits by chance, a broken promise, fallback and recovery, restarts, feedback, metrics.

A judge may move a bound, once an audit, on answers that chance drew; what users say is kept as evidence.
"""

import asyncio
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fixtures.certificates import certificate as make_certificate
from fixtures.loop_lag import MAX_LAG_S, LoopLag
from fixtures.server import SayingModel
from fixtures.waiting import until

from smallfirst.base.errors import Unavailable
from smallfirst.deployment import audited_router
from smallfirst.deployment.audited_router import AuditedRouter, AuditSettings
from smallfirst.deployment.review_queue import review_queue
from smallfirst.deployment.service import MAX_VERDICTS, MonitoringRoutes
from smallfirst.ledger.keys import KeyPolicy, KeyStore
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, FeedbackRow, LedgerRow, StateRow
from smallfirst.models.protocol import Capability, Completion, Request
from smallfirst.routing.certificate.certificate import NEVER_ACCEPT, Certificate
from smallfirst.routing.monitor import UNIFORM, AuditAllocation, Monitor, MonitorSettings, watched_quantities
from smallfirst.routing.router import Router
from smallfirst.serving.settings import ServeSettings
from smallfirst.tasks.task import Task


class Says(SayingModel):
    """Answers surely; `confidence`, `wrong` and `down` may be changed while it runs."""

    confidence = 0.9
    wrong = down = False

    def __init__(self, name: str, *, cost_usd: float = 0.0) -> None:
        super().__init__(name, lambda _: "wrong" if self.wrong else "refund", cost_usd=cost_usd)

    async def complete(self, request: Request) -> Completion:
        if self.down:
            raise Unavailable("down")
        return (await super().complete(request)).model_copy(update={"confidence": self.confidence})


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

        monitor = Monitor(chosen, quantities=quantities, allocation=allocation, shadow=not issued)
        auditing = AuditSettings(judge, lambda draft, other: draft == other)
        self.live = AuditedRouter(router, monitor, ledger=ledger, auditing=auditing, rng=random.Random(0))

    async def ask(self, n: int = 1, **settings: Any) -> list[Completion]:
        found = []
        for _ in range(n):
            request = Request.ask("where is my card").model_copy(update=settings)
            found.append(await self.live.complete(request))
            id = f"chatcmpl-{len(self.small.asked)}-{len(self.large.asked)}"
            route = found[-1].route
            row = LedgerRow.model_validate(
                {
                    "id": id, "at": datetime.now(UTC), "served_name": "tickets", "status": 200, "latency_ms": 1,
                    "task": "tickets", "stage": route.stage, "answered_by": found[-1].answered_by,
                    "certified": route.certified, "audited": route.audited, "audit_share": route.audit_share,
                    "audit_weight": route.audit_weight,
                }
            )  # fmt: skip
            await self.ledger.append_async(row)
            self.live.answered(id, request, found[-1])
            if self.live._tasks:
                await asyncio.wait(self.live._tasks)
        return found

    @property
    def changes(self) -> list[tuple[str, str]]:
        return [(row.before, row.after) for row in self.ledger.entries(StateRow)]


def fall_back(setting: Setting) -> None:
    setting.live.monitor._enter("fallback", datetime.now(UTC))


def stages(found: list[Completion]) -> set[str]:
    return {answer.route.stage for answer in found if answer.route}


def test_audited_answers_are_held_against_the_large_model_after_the_client_has_them(ledger: Ledger) -> None:
    setting = Setting(ledger)
    (answer,) = asyncio.run(setting.ask())
    assert (answer.answered_by, answer.cost_usd, answer.route.audited) == ("small", 0.01, True)
    (audit,) = ledger.entries(AuditRow)
    charges = '[{"model":"large","purpose":"audit","usd":1.0,"basis":"billed","source":"stated by the model"}]'
    drawn = {"id": "chatcmpl-1-0", "task": "tickets", "propensity": 1.0, "weight": 1.0, "certified": True}
    judged = {"wrong": False, "judged_by": "large", "cost_usd": 1.0, "charges": charges, "draft": None, "other": None}
    assert audit.model_dump(exclude={"at", "answered_at", "certificate"}) == drawn | judged
    assert (setting.live.monitor.live_error.n, setting.changes) == (1, [("", "live")])


async def test_audits_of_one_moment_share_readings_of_the_ledger(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, reads = Setting(ledger).live, list[int]()
    read, now = live.audits._new, datetime.now(UTC)
    monkeypatch.setattr(live.audits, "_new", lambda: reads.append(1) or read())
    of = {"at": now, "answered_at": now, "wrong": False, "certified": True, "judged_by": "large", "cost_usd": 0.0}
    rows = [live._audit_row(f"chatcmpl-{i}", 1.0, 1.0, {**of, "charges": "[]"}) for i in range(30)]
    assert all(await asyncio.gather(*map(live.audits.take, rows)))
    assert live.monitor.live_error.n == 30
    assert len(reads) < 10


async def test_audits_that_wait_for_a_slow_judge_are_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audited_router, "MAX_WAITING_AUDITS", 2)
    live, slow = Setting(ledger).live, asyncio.Event()
    answer = await live.complete(Request.ask("where is my card"))

    async def judge() -> Completion:
        await slow.wait()
        return answer

    for i in range(5):
        live.answered(f"chatcmpl-{i}", Request.ask("where is my card"), answer, ask_large=judge)
    assert len(live._tasks) == 2
    slow.set()
    await asyncio.wait(live._tasks)
    assert len(ledger.entries(AuditRow)) == 2


def test_an_audit_asks_the_judge_with_the_settings_of_the_certificate(ledger: Ledger) -> None:
    setting = Setting(ledger)
    setting.small.capabilities = frozenset({Capability.CHOSEN})
    (answer,) = asyncio.run(setting.ask(temperature=1.5, stop=("e",), max_tokens=2, tags={"user": "u"}))
    assert (answer.answered_by, answer.route.audited) == ("small", True)
    assert setting.large.asked[-1].model_copy(update={"bill": None}) == Request(
        messages=Request.ask("where is my card").messages, tags={"user": "u"}
    )


@pytest.mark.parametrize(
    ("state", "changes", "settings", "stage"),
    [
        ("live", {}, {"temperature": 1.5}, "large"),
        ("live", {"down": True}, {}, "small"),
        ("fallback", {"confidence": 0.3}, {}, "large"),
        ("shadow", {}, {}, "large"),
    ],
    ids=["a sampled draft", "the judge is down", "the certificate would not keep it", "no certificate"],
)
def test_what_is_no_audit(
    ledger: Ledger, state: str, changes: dict[str, Any], settings: dict[str, Any], stage: str
) -> None:
    setting = Setting(ledger, issued=state != "shadow")
    if state == "fallback":
        fall_back(setting)
    for name, value in changes.items():
        setattr(setting.large if name == "down" else setting.small, name, value)
    assert stages(asyncio.run(setting.ask(5, **settings))) == {stage}
    assert (ledger.entries(AuditRow), setting.live.monitor.state) == ((), state)


def test_an_answer_that_is_none_of_the_tasks_is_paid_as_an_audit_and_gives_no_verdict(ledger: Ledger) -> None:
    setting = Setting(ledger)
    of_task = SimpleNamespace(parse=lambda text: None if text == "refund" else text)
    setting.live.auditing = setting.live.auditing._replace(task=cast(Task, of_task))
    asyncio.run(setting.ask(2))
    assert [(audit.judged_by, audit.cost_usd) for audit in ledger.entries(AuditRow)] == [("nobody", 1.0)] * 2
    assert (setting.live.monitor.live_error.n, Setting(ledger).live.monitor.live_error.n) == (0, 0)


def test_chance_alone_chooses_audits_at_the_stated_share(ledger: Ledger) -> None:
    setting = Setting(ledger, audit_share=0.2)
    found = asyncio.run(setting.ask(400))
    audited = sum(answer.route.audited for answer in found if answer.route)
    assert 50 < audited < 112  # 80 ± 4 sigma
    assert len(ledger.entries(AuditRow)) == audited == len(setting.large.asked)
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
    assert found[-1].route.why == "the guarantee was found broken on live answers"
    assert not found[-1].route.certified
    assert setting.changes == [("", "live"), ("live", "fallback")]
    assert "wrong" in ledger.entries(StateRow)[-1].why

    setting.small.wrong = False
    recovered = asyncio.run(setting.ask(400))
    assert stages(recovered[-5:]) == {"small"}
    assert setting.changes[-1] == ("fallback", "live")


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


async def test_very_many_audits_of_other_processes_do_not_hold_the_loop(ledger: Ledger) -> None:
    setting = Setting(ledger)
    await setting.ask()
    columns = "at, answered_at, task, certificate, propensity, weight, wrong, judged_by, certified, cost_usd"
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        numbers = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        connection.execute(f"INSERT INTO audits (id, {columns}) {numbers} SELECT 'a' || i, {columns} FROM n, audits")
    lag = LoopLag(time.thread_time)
    beating = asyncio.create_task(lag.beat())
    await asyncio.sleep(0)
    await setting.live.audits.follow()
    beating.cancel()
    assert setting.live.monitor.live_error.n == 20_001
    assert lag.worst_s < MAX_LAG_S
    assert Setting(ledger).live.monitor.live_error.n == 20_001


def test_answers_are_compared_off_the_event_loop(ledger: Ledger) -> None:
    """The score of a long extraction takes its time."""
    setting, compared_in = Setting(ledger), list[int]()

    def agrees(draft: str, other: str) -> bool:
        compared_in.append(threading.get_ident())
        return draft == other

    setting.live.auditing = setting.live.auditing._replace(agrees=agrees)
    asyncio.run(setting.ask())
    assert len(compared_in) == len(ledger.entries(AuditRow)) == 1
    assert threading.get_ident() not in compared_in


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


def test_over_http_answers_states_and_metrics_say_the_same(server: tuple[Setting, httpx.Client]) -> None:
    setting, client = server
    answer = chat(client)
    assert answer["smallfirst"]["guarantee"] == "at most 5 % of kept answers wrong (95 %)"
    row = setting.ledger.get(answer["id"])
    assert (row.task, row.audited, row.audit_share) == ("tickets", True, 1.0)
    assert [step.stage for step in row.steps] == [step["stage"] for step in answer["smallfirst"]["steps"]] == ["small"]
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


def waiting(ledger: Ledger) -> list[str]:
    """Ids in the queue of a judge."""
    return [one.row.id for one in review_queue(ledger, ["tickets"])]


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

        client.headers["authorization"] = f"Bearer {keys['user']}"
        ids = [chat(client)["id"] for _ in range(30)]
        for id in ids:
            until(partial(ledger.entries, AuditRow, id=id))
            assert give("other", id, "wrong") == (404, None)
            assert give("user", id, "wrong") == (200, False)
        monitor = setting.live.monitor
        assert (monitor.state, monitor.live_error.value, monitor.live_error.n) == ("live", 0.0, 30)
        assert monitor.alarms == ()
        taken = [give("user", ids[0], "wrong")[0] for _ in range(MAX_VERDICTS)]
        assert taken == [200] * (MAX_VERDICTS - 1) + [409]  # as many as fit do not keep the judge out
        assert give("judge", ids[0], "wrong") == (200, False)  # the large model's verdict is final
        assert give("admin", ids[1], "wrong") == (200, False)
        assert (setting.live.monitor.live_error.n, setting.live.monitor.live_error.value) == (30, 0.0)
    assert not any(row.counted for row in ledger.entries(FeedbackRow))
    assert [row.cause for row in ledger.entries(StateRow)] == [""]


def test_in_a_fallback_nothing_waits_for_a_person(ledger: Ledger) -> None:
    setting = Setting(ledger, judge="person")
    fall_back(setting)
    found = asyncio.run(setting.ask(3))
    assert stages(found) == {"large"}
    assert not any(answer.route.audited for answer in found if answer.route)
    assert waiting(ledger) == []


async def test_two_processes_on_one_ledger_count_each_audit_once(ledger: Ledger) -> None:
    settings = [Setting(ledger), Setting(Ledger(ledger.path))]
    first, second = settings
    for one in settings:
        one.ledger.count = lambda *_, **__: 0  # type: ignore[method-assign]  # each looks before another has written
    slow = first.large.complete

    async def held(request: Any) -> Any:
        id = f"chatcmpl-{len(first.small.asked)}-{len(first.large.asked)}"
        verdicts = [one.live.feedback(said(id, "right")) for one in settings for _ in range(14)]
        found = await asyncio.gather(slow(request), *verdicts)
        return found[0]

    first.large.complete = held  # type: ignore[method-assign]
    await first.ask(10)
    for one in settings:
        await one.live.audits.follow()
    second.ledger.close()
    drawn = [row.id for row in ledger.entries(LedgerRow) if row.certified and row.audited]
    assert {audit.judged_by for audit in ledger.entries(AuditRow)} == {"person"}  # quicker than the large model
    audits = [audit.id for audit in ledger.entries(AuditRow)]
    assert (len(audits), sorted(set(audits))) == (len(set(audits)), sorted(set(drawn)))
    assert [one.live.monitor.live_error.n for one in settings] == [len(audits)] * 2 == [10, 10]
