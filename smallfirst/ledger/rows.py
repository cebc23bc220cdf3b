"""Rows of the ledger, one record per kind: requests, attempts at endpoints, audits, feedback, changes of state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from smallfirst.base.records import Record
from smallfirst.models.pricing import Charge
from smallfirst.models.protocol import Attempt, RouteStep

BILL, _STEPS = TypeAdapter(tuple[Charge, ...]), TypeAdapter(tuple[RouteStep, ...])
"""Reads `charges` · reads `trail`."""


class LedgerRow(Record):
    """One request and its result. Where no model was asked, cost and tokens are None, not 0."""

    id: str
    """Id of the response, as the client saw it in `id` and `x-request-id`."""
    at: AwareDatetime
    """When the request came; kept in UTC."""
    served_name: str
    """Model name the client asked for; empty if the request was not readable."""
    status: int
    """HTTP status: 200, or that of the error; 499 if the client left first."""
    latency_ms: float
    """Of an answer: as its model measured it; of an error: until it was known."""
    owner: str = ""
    """Owner of the key that asked; empty where none is asked for."""
    error_code: str | None = None
    """`error.code` as the client saw it."""
    answered_by: str | None = None
    stage: str | None = None
    """Stage of the Router (`small`, `large`), or the served name where no Router chose."""
    certified: bool | None = None
    confidence: float | None = None
    """Confidence the route was chosen by, in [0, 1]."""
    threshold: float | None = None
    """Confidence that was asked for, in [0, 1]."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Of `prompt_tokens`, those that the provider read from its cache."""
    completion_tokens: int | None = None
    cost_usd: float | None = None
    """Cost of the answer, of discarded drafts, and of attempts that led to no answer: the sum of `charges`."""
    charges: str | None = None
    """The lines of the bill as JSON (`bill` reads them)."""
    estimated: bool = False
    """True if tokens and cost are estimated, since an answer was cut off."""
    request_sha256: str | None = None
    """SHA-256 of the messages, which finds equal questions without storing them."""
    request_text: str | None = None
    """The messages as JSON, only if bodies are stored."""
    answer_text: str | None = None
    """The answer, only if bodies are stored."""
    task: str | None = None
    """Task whose Router decided."""
    trail: str | None = None
    """The Router's steps as JSON (`steps` reads them)."""
    guarantee: str | None = None
    """The guarantee that covers the answer, in words."""
    first_token_ms: float | None = None
    """From the request to the first text of its answer, as the client got it."""
    audit_share: float | None = None
    """Chance in (0, 1] that this answer had of being audited; None where none is."""
    audit_weight: float = 1.0
    """Weight of its audit in tests and intervals: the mean chance at that moment over its own."""
    audited: bool = False
    """True if chance has selected it for an audit."""

    @property
    def bill(self) -> tuple[Charge, ...]:
        return BILL.validate_json(self.charges or "[]")

    @property
    def steps(self) -> tuple[RouteStep, ...]:
        return _STEPS.validate_json(self.trail or "[]")


class AttemptRow(Record):
    """One request to an endpoint on behalf of an answer or its audit, whatever came of it."""

    id: str
    """Id of the response that it was for."""
    at: AwareDatetime
    purpose: Literal["answer", "audit"] = "answer"
    endpoint: str
    """The endpoint's base URL."""
    model: str
    outcome: str
    """`answered`, `not connected`, `HTTP 503`, `timeout`, `broken off`, `invalid answer`, `abandoned`."""
    cost_usd: float | None = None
    """Part of the answer's cost; 0 if the endpoint did nothing, None if it may be paid and nobody knows how much."""
    latency_ms: float


def attempt_rows(
    id: str, attempts: Iterable[Attempt], *, purpose: Literal["answer", "audit"] = "answer"
) -> tuple[AttemptRow, ...]:
    """Return the rows of the attempts for a response."""
    names = ("at", "endpoint", "model", "outcome", "cost_usd", "latency_ms")
    return tuple(AttemptRow(id=id, purpose=purpose, **{n: getattr(one, n) for n in names}) for one in attempts)


class AuditRow(Record):
    """The comparison of an answer, selected by chance, with the answer of a judge: one for each, and final."""

    id: str
    """Id of the response that was audited."""
    at: AwareDatetime
    """When the verdict was known."""
    task: str
    certificate: str
    """Fingerprint of the certificate in force."""
    propensity: float = Field(gt=0, le=1)
    """Chance that this answer had of being audited, in (0, 1]."""
    weight: float = Field(default=1.0, gt=0)
    """The mean chance of accepted answers at that moment over this one's."""
    wrong: bool
    judged_by: Literal["large", "person", "nobody"]
    """`nobody`: the large model gave no answer that can be compared (a refusal), so `wrong` says nothing."""
    answered_at: AwareDatetime = Field(default_factory=lambda row: row["at"])
    """When the answer was given: a state that began later does not count it. By default with its verdict."""
    certified: bool = True
    """Whether the certificate covers the answer; else it tells about the gate's accuracy alone."""
    cost_usd: float = 0.0
    """Cost of asking the judge."""
    charges: str | None = None
    """The lines of that bill as JSON."""
    draft: str | None = None
    """The small model's answer, only if bodies are stored."""
    other: str | None = None
    """The judge's answer, only if bodies are stored."""


class ShadowRow(Record):
    """A text that the small model drafted while the large one answered, whatever the draft: rows to certify with."""

    id: str
    """Id of the response that the large model gave, the first to this text."""
    at: AwareDatetime
    task: str
    certificate: str
    """Fingerprint of the certificate of the version that drafted."""
    text: str
    """Fingerprint of the text without its dress (`fold_text`): each counts once."""
    confidence: float
    """Confidence of the draft, in [0, 1], that thresholds are compared with."""
    wrong: bool
    """The draft differs from the large model's answer."""


class FeedbackRow(Record):
    """Somebody's verdict on an answer. Verdicts are no random sample, so bounds use only a judge's on drawn answers."""

    id: str
    at: AwareDatetime
    verdict: Literal["right", "wrong"]
    """Of the judges' verdicts on an answer the last stands, and of its users' too."""
    answer: str | None = None
    """The right answer, if given."""
    caller: str = ""
    """Owner of the key that sent it; empty where no key is asked for."""
    name: str = ""
    """Name of that key, as those who mark see it."""
    judge: bool = True
    """True if it came from somebody who may judge."""
    counted: bool = False
    """True if it is the verdict of the answer's audit."""


def standing(feedback: Iterable[FeedbackRow]) -> list[FeedbackRow]:
    """Return the verdicts that stand, of feedback in the order of writing: judges' and users' last on each answer."""
    last: dict[tuple[str, bool], FeedbackRow] = {}
    for said in feedback:
        key = (said.id, said.judge)
        last.pop(key, None)
        last[key] = said
    return [*last.values()]


class StateRow(Record):
    """A task changed from one state to another."""

    at: AwareDatetime
    task: str
    before: str
    """State before; empty at the start."""
    after: str
    why: str
    """The reason, in one sentence with its figures."""
    cause: str = ""
    """What led to it: `guarantee`, `recovery`; `version` notes another version, `second
    look` what came of that; empty if unknown or at the start."""
    certificate: str
    """Fingerprint of the certificate in force."""
    after_audit: int | None = None
    """The `seq` of the audit that led to it, once for each certificate and cause; 0 at the start. None for a note,
    which changes no state."""


ExpenseKind = Literal["training", "labelling", "evaluation", "labels"]


class ExpenseRow(Record):
    """Money spent on a task beside its answers: once, not per request."""

    id: str
    """Names the expense, so that it is counted once however often it is reported: a run's id, for example."""
    at: AwareDatetime
    task: str
    kind: ExpenseKind
    """`labelling`: a large model labelled rows · `evaluation`: the large model answered the rows of a run · `labels`:
    people's labels at `prices.usd_per_label`."""
    cost_usd: float = Field(ge=0)
    what: str = ""
    """What was paid for, in a few words."""
    busy_s: float = 0.0
    """Seconds that a machine of our own worked."""


Entry = LedgerRow | AttemptRow | AuditRow | ShadowRow | FeedbackRow | StateRow | ExpenseRow
