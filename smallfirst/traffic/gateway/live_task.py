"""One learnt task in front of its upstream: who answers a request, the watch over it, and the step back.

The task's own Router decides by its certificate, and the same monitor audits it as behind `smallfirst serve`. Requests
outside the share that was taken over pass, and the small model's drafts are compared with the upstream's answers there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from time import perf_counter
from typing import NamedTuple

from smallfirst.base.errors import ModelError
from smallfirst.base.stats.intervals import upper_bound
from smallfirst.base.stats.sequential import spent_level
from smallfirst.data.redaction import redact_body
from smallfirst.deployment.second_look import SecondLook
from smallfirst.deployment.task_deployment import DeployedVersion, TargetVersions, TaskDeployment
from smallfirst.ledger.ledger import AlreadyRecorded, Ledger, LedgerUnavailable
from smallfirst.ledger.rows import LedgerRow, StateRow
from smallfirst.models.pricing import Charge, PriceBook, TokenUsage, read_usage, stated
from smallfirst.models.protocol import CallableModel, Capability, Completion, Request, Route, RouteStep, paid
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.routing.router import Decision
from smallfirst.serving.request_lifecycle import route_columns, usage_columns
from smallfirst.traffic.exchange import charge_of, estimate_tokens
from smallfirst.traffic.gateway.draft_watch import N_PARTS, DraftWatch
from smallfirst.traffic.gateway.http import BackgroundTasks, TaskRequest
from smallfirst.traffic.task_source import LEARNT, Cause, Change, TakeOver, TaskSource, TenantStepBack
from smallfirst.traffic.wire import Json, ModelAnswer, read_answer

_log = logging.getLogger("smallfirst.takeover")
COMPARED_BESIDE = 0.25
"""Share of the requests outside the share taken over whose drafts are compared; in shadow all are."""
COMPARE_INTERVAL_S = 1.0
"""Seconds for which drafts are collected before the ledger's watch sees them."""
OUTSIDE = "outside the share that was taken over"
UNPROVEN = "the upstream has not accepted this credential of late"
ALONE = "the task has stepped back for this tenant"
UNRECORDED = "the ledger takes no row: an answer that cannot be recorded and audited is not given"
Update = Callable[[str, Change], TakeOver]
"""Changes what takeovers.json says of a task."""


class Ruling(NamedTuple):
    """Who answers a request: the small model if there is an answer, else the upstream."""

    task: LiveTask
    asked: TaskRequest
    decision: Decision | None = None
    """The Router's; None for a request outside the share."""
    small: Completion | None = None
    """The small model's certified answer."""
    answer: ModelAnswer | None = None
    """The same as the upstream would have written it."""
    why: str = OUTSIDE
    """Why the Router was not asked."""
    request: Request | None = None
    """What the Router was asked."""


class LiveTask:
    """A learnt task whose models are loaded."""

    def __init__(
        self,
        taken: TakeOver,
        upstream: Upstream,
        deployed: DeployedVersion,
        ledger: Ledger,
        update: Update,
        one_tenant: Callable[[], bool],
        *,
        agreement: bool,
    ) -> None:
        """`agreement`: right is what the large model answered; else people's answers certify."""
        self.taken, self.upstream, self.deployed, self.agreement = taken, upstream, deployed, agreement
        self.source, self.router, self.serves = upstream.source, deployed.router, taken.serves
        self._ledger, self._update, self._one_tenant = ledger, update, one_tenant
        self._recorded = {} if self.source.assistant else recorded_forms(read_task_file(taken.folder / LEARNT))
        self._watches = Watches(self._recorded)
        self._drafts: dict[str, list[bool]] = {}
        """By tenant, whether drafts differ that the ledger's watch has not seen yet."""
        self._background = BackgroundTasks()
        if (looks := self.router.second_look) is not None:
            looks.is_live, looks.on_taken = (lambda: self.taken.state == "live"), self._looked

    @classmethod
    def load(
        cls,
        taken: TakeOver,
        ledger: Ledger,
        update: Update,
        one_tenant: Callable[[], bool],
        prices: PriceBook | None = None,
    ) -> LiveTask:
        """Load a learnt task's models, which takes seconds. Raise what `TaskDeployment` raises."""
        source = TaskSource.of(taken.folder)
        assert source is not None
        upstream = Upstream(source, prices or PriceBook())
        deployment = TaskDeployment(read_task_file(taken.folder / LEARNT), ledger, large=upstream)
        deployed = deployment.load(TargetVersions(taken.version) if taken.version else deployment.target_versions())
        upstream.usual_usd = deployed.router.router.options.expected_cost_usd.get("large", 0.0)
        agreement = deployment.file.routing.labels == "large"
        live = cls(taken, upstream, deployed, ledger, update, one_tenant, agreement=agreement)
        if deployed.second_look is not None:  # of a process that was killed before it told the file
            live._looked(deployed.second_look)
        return live

    def follow(self, taken: TakeOver) -> None:
        """Take over what the file says now; when a person has changed it, evidence begins anew."""
        if taken.cause == "person" and taken.changed_at != self.taken.changed_at:
            self._watches = Watches(self._recorded)
        self.taken = taken

    async def rule(self, asked: TaskRequest) -> Ruling:
        """Decide who answers a request that follows the task's wording."""
        self._follow_monitor()
        if self._is_back(asked.tenant):
            return Ruling(self, asked, why=ALONE)
        if not asked.may_ask:
            return Ruling(self, asked, why=UNPROVEN)
        if self._ledger.is_failing:  # rows of what is passed show when it works again
            return Ruling(self, asked, why=UNRECORDED)
        drawn = int.from_bytes(hashlib.sha256(f"{self.taken.task}:{asked.id}".encode()).digest()[:6]) / 2**48
        if drawn >= self._live_share:
            return Ruling(self, asked)
        request = Request.ask(asked.text)
        decision = await self.router.decide(request)
        draft = decision.draft
        if decision.model is not None or draft is None or not decision.route.certified:
            return Ruling(self, asked, decision, request=request)
        try:
            answer = asked.answer_format.render(draft.text)
        except (ValueError, TypeError, KeyError):
            _log.warning("%s: an answer cannot be written in the upstream's format", self.taken.task)
            return Ruling(self, asked)
        return Ruling(self, asked, decision, draft, answer, request=request)

    async def answered(self, ruling: Ruling) -> Completion:
        """Note that the small model's answer was given, and audit it if chance selects it; return it as noted."""
        assert ruling.decision is not None
        assert ruling.small is not None
        noted = await self.router.settle(ruling.decision, ruling.small)
        self._note(ruling, noted)
        self._followed(ruling.asked)
        return noted

    async def passed(self, ruling: Ruling, response: Json | None, *, latency_ms: float = 0.0) -> None:
        """Note what the upstream answered to a request that was passed, and compare the small model's draft with it."""
        tenant = ruling.asked.tenant
        grown = self._followed(ruling.asked)
        completion = self.upstream.read(ruling.asked, response, latency_ms=latency_ms)
        if completion is None:
            return
        self._answered_by(tenant, completion.answered_by)
        if ruling.decision is not None and ruling.decision.model is not None:
            noted = await self.router.settle(ruling.decision, completion)
            last = noted.route.trail[-1] if noted.route and ruling.decision.draft else None
            if last and self.taken.state == "live":
                self._compare(tenant, last.differs)
            self._note(ruling, noted)
            return
        share = COMPARED_BESIDE if self._live_share else 1.0
        why = ruling.why if ruling.decision is None else ruling.decision.route.why
        made = self.router.router.call_in(completion)
        step = RouteStep(stage="large", decision="answered", why=why, model=completion.answered_by, **made)
        trail = (step,) if made else ()  # else the row itself says as much
        route = Route(stage="large", why=why, certified=False, task=self.router.name, trail=trail)
        if ruling.why != ALONE:  # what one tenant has changed is no evidence against the promise to the others
            drawn = ruling.decision is None and random.random() < share
            route = route.model_copy(update={"audit_share": share, "audited": drawn})
        as_learnt = not grown and completion.answered_by == (self.source.teacher.model or completion.answered_by)
        counts = as_learnt and self.taken.state != "stepped back" and self.upstream.reads(ruling.asked, response)
        self._note(ruling, completion.model_copy(update={"route": route}), in_shadow=counts)

    def missed(self, tenant: str, changed: str = "") -> None:
        """Note that the upstream has answered a request that resembles the task's wording and does not follow it.

        `changed` says what of an assistant's functions has changed, which leads back at once.
        """
        if changed:
            self._evidence(tenant, "prompt", f"the application's functions have changed: {changed}")
            return
        self._evidence(tenant, "prompt", self._watches.of(tenant).missed())

    async def aclose(self) -> None:
        """Wait for what is under way, then free the models."""
        await self._background.wait()
        await self.deployed.aclose()

    def _followed(self, asked: TaskRequest) -> str:
        """Note an answered request that follows the task's wording; return how that has grown, or nothing."""
        case = "" if self.source.assistant else asked.text  # all conversations begin with the same instructions
        grown = self._watches.of(asked.tenant).followed(case)
        self._evidence(asked.tenant, "prompt", grown)
        return grown

    def _compare(self, tenant: str, differs: bool) -> None:
        """Hand a draft that was not sure enough to the ledger's watch, with those of the same moment."""
        waiting = self._drafts.setdefault(tenant, [])
        waiting.append(differs)
        if len(waiting) == 1:
            self._background.start(self._watch_drafts(tenant))

    async def _watch_drafts(self, tenant: str) -> None:
        await asyncio.sleep(COMPARE_INTERVAL_S)
        drafts = self._drafts.pop(tenant)

        def add(known: Json | None, now_s: float) -> tuple[Json, str]:
            after, why = DraftWatch.model_validate(known or {}).add(drafts, now_s)
            return after.model_dump(mode="json"), why

        try:
            why = await self._ledger.shared.update(
                DraftWatch.place(self.taken.task, self.router.certificate) + tenant, add
            )
        except LedgerUnavailable as error:
            _log.warning("%s: %d drafts are not watched: %s", self.taken.task, len(drafts), error)
            return
        self._evidence(tenant, "model", why)

    @property
    def _live_share(self) -> float:
        """Share of the requests for which the small model may answer now: none while nothing is promised."""
        return self.taken.live_share if self.router.router.certificate.issued else 0.0

    def _looked(self, look: SecondLook) -> None:
        """Note what the second look found for all processes; they load the certificate that it put in force."""
        found: dict[str, str] = {"second_look": look.found}
        if look.replaces:
            promise = f"{look.certificate.guarantee.in_words}; right is what the large model answered"
            found |= {"certificate": look.certificate.fingerprint(), "promise": promise}

        def note(known: TakeOver | None) -> TakeOver:
            after = known or self.taken
            return after.model_copy(update=found) if after.version == self.taken.version else after

        self.follow(self._update(self.taken.task, note))

    # The step back

    def _answered_by(self, tenant: str, model: str) -> None:
        """Note which model the upstream's response names."""
        learnt = self.source.teacher.model
        if learnt not in ("", model):
            why = f"the upstream answers with {model}, and the task was learnt from {learnt}"
            self._evidence(tenant, "model", why)

    def _is_back(self, tenant: str) -> bool:
        back = self.taken.tenant_back
        return back is not None and back.tenant == tenant

    def _evidence(self, tenant: str, cause: Cause, why: str) -> None:
        """Let the upstream answer this tenant again, or all; nothing changes without a `why`, or if it does already."""
        if not why or self.taken.state != "live" or self._is_back(tenant):
            return
        one = self._one_tenant()
        self._change(lambda known: known.stepped_back(tenant, cause, why, one_tenant=one))

    def _follow_monitor(self) -> None:
        """Step back in a fallback of the monitor, and return when audits have ended it."""
        monitor, taken = self.router.monitor, self.taken
        if monitor.state == "fallback" and taken.state == "live":
            why = monitor.alarms[-1].why if monitor.alarms else self.router.paused
            self._change(lambda known: known.moved("stepped back", cause="guarantee", why=why))
        elif monitor.state == "live" and taken.state == "stepped back" and taken.cause == "guarantee":
            again = "audits show the guarantee again"
            self._change(lambda known: known.moved("live", cause="guarantee", why=again))

    def _change(self, change: Callable[[TakeOver], TakeOver]) -> None:
        """Change the task for all processes, unless somebody has changed its state since this one looked."""
        before, task = self.taken, self.taken.task
        changed_here = False

        def unless_changed(known: TakeOver | None) -> TakeOver:
            nonlocal changed_here
            if known is not None and known.changed_at != before.changed_at:
                return known
            after = change(known or before)
            changed_here = after != known
            return after

        self.follow(self._update(task, unless_changed))
        if not changed_here:
            return
        changed: TakeOver | TenantStepBack = self.taken
        after: str = self.taken.state
        if after == before.state and self.taken.tenant_back is not None:
            changed = self.taken.tenant_back
            after += f" without {changed.tenant}"
        _log.warning("%s: %s -> %s: %s", task, before.state, after, changed.why)
        values = {"before": before.state, "after": after, "why": changed.why, "cause": changed.cause, "certificate": ""}
        row = StateRow.model_validate({"at": datetime.now(UTC), "task": task, **values})
        self._background.start(self._ledger.append_async(row))

    def _note(self, ruling: Ruling, completion: Completion, *, in_shadow: bool = False) -> None:
        """Write the ledger's row, and hand the answer to the audits."""
        asked, route = ruling.asked, completion.route
        assert route is not None

        async def ask_large() -> Completion:
            other = await self.upstream.ask(asked)
            self._answered_by(asked.tenant, other.answered_by)
            return other

        request = ruling.request or Request.ask(asked.text)
        self.router.answered(asked.id, request, completion, ask_large=ask_large, in_shadow=in_shadow)
        row = LedgerRow(
            id=asked.id,
            at=datetime.now(UTC),
            served_name=str(asked.body.get("model") or "")[:128],
            status=200,
            latency_ms=completion.latency_ms,
            answered_by=completion.answered_by,
            stage=route.stage,
            certified=route.certified,
            confidence=route.confidence,
            threshold=route.threshold,
            **usage_columns(completion),
            **route_columns(route),
        )
        self._background.start(self._record(row))

    async def _record(self, row: LedgerRow) -> None:
        """Write the row; under an id of its own where the upstream has given its id to another answer before.

        One that cannot be written is named in the log.
        """
        try:
            await self._ledger.append_async(row)
        except LedgerUnavailable as error:
            _log.error("%s: no row of answer %s (%s): %s", self.taken.task, row.id, row.stage, error.args[0])
        except AlreadyRecorded:
            await self._ledger.append_async(row.model_copy(update={"id": f"{row.id}#{uuid.uuid4().hex[:8]}"}))


class Upstream(CallableModel):
    """The upstream's model. A Router knows it as its large model; it is asked by `ask`, with a client's request."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, source: TaskSource, prices: PriceBook) -> None:
        self.name, self.source, self._prices = source.teacher.model, source, prices
        self.usual_usd = 0.0
        """Cost of an answer that has no price: the mean of the recorded ones; 0 if that is not known either."""

    async def complete(self, request: Request) -> Completion:
        """Raise ModelError: without a client's request there is no credential to ask with."""
        raise ModelError(f"{self.name} is asked with a client's request, by `ask`")

    async def ask(self, asked: TaskRequest) -> Completion:
        """Send a request again, for an audit. Raise ModelError if it is not answered."""
        began = perf_counter()
        status, response = await asked.again()
        found = self.read(asked, response, latency_ms=(perf_counter() - began) * 1000) if status == 200 else None
        if found is None:
            raise ModelError(f"{self.name} did not answer an audit: HTTP {status}")
        answer = read_answer(asked.path, response or {})
        refused = answer is not None and answer.finish_reason in ("refusal", "content_filter")
        return found.model_copy(update={"refusal": refused})

    def reads(self, asked: TaskRequest, response: Json | None) -> bool:
        """Return True if the answer is whole and in the format of the recorded ones, as what is learnt from must be."""
        answer = read_answer(asked.path, response or {})
        return answer is not None and asked.answer_format.parse(answer) is not None

    def read(self, asked: TaskRequest, response: Json | None, *, latency_ms: float = 0.0) -> Completion | None:
        """Return the answer in a response, in the task's form where it has the known format; None without one."""
        # An assistant's is redacted as its conversation was, whose values stand in calls.
        answer = read_answer(asked.path, (redact_body(response) if self.source.assistant else response) or {})
        if answer is None or response is None:
            return None
        named = str(response.get("model") or self.name)
        value = asked.answer_format.parse(answer)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if value else answer.text
        charge = self._charge(named, asked, response)
        return Completion(text=text, answered_by=named, latency_ms=latency_ms, **paid(charge))

    def _charge(self, named: str, asked: TaskRequest, response: Json) -> Charge:
        """Return what the answer cost: as it states, by its tokens, or as the recorded ones did on average."""
        reported = read_usage(response).credible
        tokens = reported.tokens or estimate_tokens(asked.path, asked.body, response)
        known = reported._replace(tokens=tokens)
        charge = charge_of((named, str(asked.body.get("model") or ""), self.name), known, self._prices)
        if charge is None:
            usual, source = self.usual_usd or None, "the mean cost of recorded answers"
            charge = stated(named, usual, tokens=tokens or TokenUsage(), source=source)
        return charge.model_copy(update={"estimated": reported.tokens is None and reported.usd is None})


# What shows for nothing that the prompt is no longer what it was

N_RECENT = 40
"""Requests of a task, or like it, that are looked back on."""
NEAR_ENOUGH = 0.9
"""Share of these that follow no known wording, from which on the wording counts as changed."""
N_SAME = 12
"""Fewest different cases in a row that begin or end alike, from which on the common part may count as wording."""
MIN_SAME = 16
"""Characters by which the form of a case's beginning or end is told."""
FALSE_STEP_BACKS = 0.02
"""Probability that cases of an unchanged application ever count as a changed prompt, of each tenant."""
MAX_CASES = 10_000
"""Recorded cases that are read of a task."""
MAX_FORMS = 1_000
"""Forms that are counted, of more the rarer half is forgotten; and cases in a row that are told apart."""
MAX_TENANTS = 1_000
"""Tenants that are watched; of more, those that asked last."""


class Forms:
    """How cases begin and end, counted: what is usual."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.n, self._counts = 0, Counter[tuple[str, str]]()
        for text in texts:
            self.add(text)

    @staticmethod
    def of(text: str) -> Iterator[tuple[str, str]]:
        """Yield how a case begins and ends; nothing of a shorter one."""
        if len(stripped := text.strip()) >= MIN_SAME:
            yield "begin", stripped[:MIN_SAME]
            yield "end", stripped[-MIN_SAME:]

    def add(self, text: str) -> None:
        self.n += 1
        self._counts.update(self.of(text))
        if len(self._counts) > MAX_FORMS:
            self._counts = Counter(dict(self._counts.most_common(MAX_FORMS // 2)))

    def seen(self, form: tuple[str, str]) -> int:
        """Return how many cases have a form."""
        return self._counts[form]


class WordingWatch:
    """The wordings of one task's recent requests that were answered.

    A sentence that grew where the case stands shows as a run of cases of one form. If a form has at most the share p of
    an application's cases, a run of n begins at any case with p^n; since the first case of a run says which form is
    looked at, p^(n - 1) is compared with what case t may spend of FALSE_STEP_BACKS. The p of a form is the upper bound
    on its share in the recorded cases and the tenant's own before the run, times N_PARTS: it may come in one part of
    the week alone. Forms that are usual are therefore no evidence, however many cases in a row have them.
    """

    def __init__(self, recorded: Forms | None = None, *, shared: bool = False) -> None:
        """`shared`: the tenant is one of several, whose cases may differ from the recorded ones from the first on."""
        self._missed: deque[bool] = deque(maxlen=N_RECENT)
        self._recorded, self._own, self._shared, self._n = recorded or Forms(), Forms(), shared, 0
        self._runs: dict[tuple[str, str], set[int]] = {}
        """Forms that all of the last cases have, with the hashes of the different ones."""

    def followed(self, text: str) -> str:
        """Add a request that follows a wording; return what is wrong, in a sentence, or nothing. `text` is its case."""
        self._missed.append(False)
        if not text:
            return ""
        self._n += 1
        self._own.add(text)
        known = self._runs
        self._runs = {form: known.get(form, set()) for form in Forms.of(text)}
        for form, run in self._runs.items():
            if len(run) < MAX_FORMS:
                run.add(hash(text))
            if len(run) >= N_SAME and self._is_new(form, len(run)):
                where, same = form
                return f"the application's prompt has changed: the last {len(run)} cases all {where} with {same!r}"
        return ""

    def _is_new(self, form: tuple[str, str], n: int) -> bool:
        """Return True if a run of so many different cases is too long for what is known of its form."""
        own, n_own = max(0, self._own.seen(form) - n), max(0, self._own.n - n)
        recorded = self._recorded
        most = N_PARTS * upper_bound(recorded.seen(form) + own, recorded.n + n_own, confidence=1 - FALSE_STEP_BACKS / 2)
        if self._shared:
            most = max(most, upper_bound(own, n_own, confidence=1 - FALSE_STEP_BACKS / 2))
        return most < 1 and most ** (n - 1) <= spent_level(FALSE_STEP_BACKS / 2, self._n)

    def missed(self) -> str:
        """Add a request that resembles a wording and follows none; return what is wrong, in a sentence, or nothing."""
        self._missed.append(True)
        n = sum(self._missed)
        if len(self._missed) < N_RECENT or n < NEAR_ENOUGH * N_RECENT:
            return ""
        return f"the application's prompt has changed: {n} of the last {N_RECENT} requests follow no known wording"


class Watches:
    """The wordings of the tenants of a task that asked last: nobody's requests are evidence against another's."""

    def __init__(self, recorded: Mapping[str, Forms] | None = None) -> None:
        """`recorded` are the forms of recorded cases by tenant, with those of no known one under the empty name."""
        self._recorded = recorded or {}
        self._by_tenant: OrderedDict[str, WordingWatch] = OrderedDict()

    def of(self, tenant: str) -> WordingWatch:
        if (watch := self._by_tenant.get(tenant)) is None:
            recorded = self._recorded.get(tenant)
            watch = WordingWatch(recorded or self._recorded.get(""), shared=recorded is None)
            self._by_tenant[tenant] = watch
        self._by_tenant.move_to_end(tenant)
        if len(self._by_tenant) > MAX_TENANTS:
            self._by_tenant.popitem(last=False)
        return watch


def recorded_forms(file: TaskFile) -> dict[str, Forms]:
    """Return the forms of a task's recorded cases by tenant, as `Watches` takes them."""
    found: dict[str, Forms] = {}
    path = file.folder / file.data.train
    if path.suffix == ".jsonl" and path.exists():
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, islice(lines, MAX_CASES)):
                found.setdefault(row.get("tenant", ""), Forms()).add(str(row.get("text", row.get("question", ""))))
    return found
