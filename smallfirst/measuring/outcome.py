"""The outcome of a run: who answers, what is promised about it, who gets the rest; and every sentence about it.

Terminal, report, page, routes, registry and `serve` show these sentences and figures, and compose none of their own. At
a server the outcome is narrowed by the state of its monitor: `Outcome.standing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pydantic

from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import Estimate, upper_bound
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import Gate
from smallfirst.models.pricing import format_usd

OutcomeKind = Literal["small alone", "small first", "keep the large model", "cannot be told yet"]
"""`small alone`: a small model answers every request of the task. `small first`: it answers a part of them, and the
others go to the large model, or to a person where there is none. With the other two nothing goes live; `cannot be told
yet`: more labelled rows are likely to decide."""
_NAMES = {"large": "the large model", "person": "a person"}


class LabelsNeeded(Record):
    """Rows to label before it can be told: one number for all that is open."""

    n_data_rows: int
    """Rows to add to the data files, from which every part is split off as it is now."""
    chance: float
    """How likely as many are to decide all that is open, in [0, 1]."""
    files: dict[str, int]
    """The rows to add by file, as task.yaml names it."""
    usd: float | None = None
    """What a person's labels for them cost in USD; None if `prices.usd_per_label` is not set."""

    @property
    def in_words(self) -> str:
        """As a phrase, such as "about 560 more rows in rows.jsonl (chance 75 %)"."""
        chance = f"chance {100 * self.chance:.0f} %"
        if len(self.files) == 1:
            return f"about {self.n_data_rows:,} more rows in {next(iter(self.files))} ({chance})"
        each = ", ".join(f"{n:,} in {file}" for file, n in self.files.items())
        return f"about {self.n_data_rows:,} more rows ({each}; {chance})"

    @property
    def with_price(self) -> str:
        price = f", for about {format_usd(self.usd)} by a person" if self.usd is not None else ""
        return f"{self.in_words}{price}"


class AuditedAccuracy(Record):
    """How many answers of a small model may be called wrong in audits before its gate counts as no longer met."""

    words: str
    """What the gate allows, such as "at most 20 % of all small answers wrong"."""
    limits: dict[str, float]
    """Largest share that each judge, `person` or `large`, may call wrong, in (0, 1). The large model also calls wrong
    what is right where it errs; it is left out where that is not known."""

    @classmethod
    def of(cls, gate: Gate, small: Evaluation, large: Evaluation | None) -> AuditedAccuracy | None:
        """Return what audits watch of a gate; None if it says nothing about accuracy, or no audit could break it.

        It is `accuracy_at_least` or, without that, `not_worse_than_large_by`: then as much may be wrong as the large
        model has, and the margin. `small` and `large` are answers to test rows; mistakes of `large` are bounded.
        """
        by_key = large.by_key if large else {}
        pairs = [(row.correct, by_key[row.key].correct) for row in small.rows if row.key in by_key]
        margin, confidence = gate.not_worse_than_large_by, 0.95  # of all bounds on the large model's mistakes together
        if gate.accuracy_at_least is not None:
            most = 1 - gate.accuracy_at_least
            words = f"at most {100 * most:.3g} % of all small answers wrong"
        elif margin is not None and pairs:
            confidence = 0.975
            most = margin + upper_bound(sum(not theirs for _, theirs in pairs), len(pairs), confidence=confidence)
            words = f"all small answers at most {100 * margin:.3g} points less accurate than the large model (at most "
            words += f"{100 * most:.3g} % wrong)"
        else:
            return None
        n_amiss = sum(ours and not theirs for ours, theirs in pairs)
        limits = {"person": most, "large": most + upper_bound(n_amiss, len(pairs), confidence=confidence)}
        limits = {judge: limit for judge, limit in limits.items() if limit < 1}
        return cls(words=words, limits=limits) if most > 0 and limits else None


class Standing(Record):
    """What is in force at a server now: the outcome of the version that answers, narrowed by its monitor's state."""

    level: Literal["good", "mixed", "bad"]
    """good: all that was decided is in force, with a promise; mixed: less than that; bad: a promise is broken."""
    words: str
    """The state in a few words, such as "Live, without a promise"."""
    promise: str = ""
    """The promise that is in force; empty if none is."""
    sentence: str
    """Who answers, and what is promised about it."""

    @property
    def in_words(self) -> str:
        return f"{self.words}. {self.sentence}"


class Outcome(Record):
    """What a run decided, with the figures that show it: on test rows, with 95 % intervals."""

    kind: OutcomeKind
    candidate: str | None = None
    """The candidate that answers; None if nothing goes live."""
    title: str = ""
    """Its name for readers, such as "words + linear"."""
    model: str = ""
    """Three-level name in the registry; empty before the version is registered."""
    version: int | None = None
    """Version in the registry; None before it is registered."""
    alias: str = ""
    """`champion` exactly if the version is live; `shadow` if it drafts beside the large model."""
    gate: Literal["passed", "failed", "signed", "not written"] = "failed"
    """What the gate said of the candidate alone. `not written`: it meets the default, which task.yaml does not set."""
    gate_line: str = ""
    """Line for task.yaml that makes a default gate the user's own, where only that is missing; else empty."""
    counted: str = "requests"
    """What its shares are of, in the plural."""
    share_small: Estimate | None = None
    """Share of them that stay small; None if nothing goes live."""
    share_promised: Estimate | None = None
    """Share of requests whose small answer is under the promise; None without one."""
    promise: str = ""
    """The guarantee about them in words; empty where none is given."""
    accuracy: Estimate | None = None
    """Share of right answers of all that is answered, whoever answers; None if nothing goes live."""
    share_of_bill: Estimate | None = None
    """Cost over the large model's on the same rows; None without a price of both."""
    large: bool = False
    """Whether there is a large model."""
    rest: Literal["", "large", "person", "refused"] = ""
    """Who gets what does not stay small; `refused`: it is answered as out of scope."""
    watched_by: Literal["", "large", "person"] = ""
    """Who judges the audits; empty if nobody does, or if there is nothing that audits could find broken."""
    audited: AuditedAccuracy | None = None
    """The gate's accuracy that audits of all small answers test; None unless the candidate went live by that gate."""
    signed: str = ""
    """Name and reason of who signed for it; empty if nobody had to."""
    why: str = ""
    """Why nothing goes live, or why there is no promise; empty where neither is the case."""
    labels_needed: LabelsNeeded | None = None
    """The fewest rows that are likely to decide it or, where it goes live without a promise, to show one."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_what_follows(cls, values: Any) -> Any:
        """Leave out the sentence, which is stored for readers and follows from the rest."""
        if isinstance(values, Mapping):
            return {name: value for name, value in values.items() if name != "sentence"}
        return values

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def sentence(self) -> str:
        """What was decided and what shows it."""
        return f"{self._start} {self.proof}"

    @property
    def heading(self) -> str:
        """The decision in one line, for the top of a page."""
        return f"{self._start} {self.in_short}." if self.goes_live else f"{self._start.rstrip(':')}."

    @property
    def in_short(self) -> str:
        """Who answers and what is promised, in half a line."""
        if not self.promise:
            return f"{self._answers}, without a promise"
        partly = self.share_promised is not None and self.share_promised != self.share_small
        return f"{self._answers}, {share_words(self.share_promised) if partly else 'all'} under the promise"

    @property
    def proof(self) -> str:
        """What shows the decision: who answers, how right it is, at what cost, and what is promised; or what fails."""
        return " ".join(self._live() if self.goes_live else self._not_live())

    @property
    def goes_live(self) -> bool:
        return self.kind in ("small alone", "small first")

    @property
    def live_as(self) -> str:
        """The version that is live, such as "main.default.desk version 3 @champion"; empty if none is."""
        return f"{self.model} version {self.version} @{self.alias}" if self.alias == "champion" else ""

    @property
    def to_do(self) -> str:
        """What to do about it, as an instruction."""
        if self.goes_live:
            return f"It is live as {self.live_as}." if self.live_as else "Promote it: smallfirst promote task.yaml."
        if self.gate_line:
            return self.gate_missing
        if self.labels_needed is not None:
            return f"Label {self.labels_needed.with_price}, and run it again. {self._until}"
        return "Keep sending every request to the large model." if self.large else "Do not put any of them live."

    @property
    def gate_missing(self) -> str:
        """Which line to add to task.yaml, and what it does."""
        return (
            f"Write  {self.gate_line}  into task.yaml, if that is good enough: “{self.title}” meets it and may go live."
        )

    @property
    def facts(self) -> dict[str, str]:
        """The record as short texts by name, for tags; what is unknown is left out."""
        texts = {"outcome": self.kind, "sentence": self.sentence, "live": self.live_as or "no"}
        texts["promise"] = self.promise or "none"
        figures = ("share_small", "share_promised", "accuracy", "share_of_bill")
        return texts | {name: f"{value} n={value.n}" for name in figures if (value := getattr(self, name))}

    def standing(self, state: str) -> Standing:
        """Return what is in force at a server whose monitor is in `state`: `live`, `fallback` or `shadow`."""
        if state == "shadow" or not self.goes_live:
            said = f"The large model answers every request; “{self.title}” drafts beside it, and nothing is promised."
            return Standing(level="mixed", words="In shadow", sentence=said)
        if state == "fallback":
            who = "the large model answers" if self.large else "the small model answers without a promise"
            limits = ", and ".join(filter(None, (self.promise, self._watched)))
            said = f"Not in force until audits show it again: {limits}." if limits else "Nothing is promised."
            return Standing(level="bad", words=f"Fallback: {who}", sentence=said)
        if not self.promise:
            return Standing(level="mixed", words="Live, without a promise", sentence=self.proof)
        return Standing(level="good", words="Live", promise=self.promise, sentence=self.proof)

    @property
    def _start(self) -> str:
        if self.gate_line:
            return "Nothing goes live yet:"
        keeps = self.kind == "keep the large model" and not self.large
        return "Keep what answers today:" if keeps else f"{self.kind.capitalize()}:"

    @property
    def _answers(self) -> str:
        share = (
            f"{share_words(self.share_small)} of {self.counted}" if self.share_small else "what its certificate covers"
        )
        if self.kind == "small alone" and (self.share_small is None or self.share_small.value == 1):
            share = "every request"
        return f"“{self.title}” answers {share}"

    @property
    def _watched(self) -> str:
        """The gate's accuracy that audits watch, in words; empty where nobody judges them."""
        return self.audited.words if self.audited and self.watched_by else ""

    @property
    def _until(self) -> str:
        return "Until then the large model answers." if self.large else "Until then nothing goes live."

    def _live(self) -> Iterator[str]:
        """Yield who answers which share, how right all of it is, what it costs, what is promised, and who watches."""
        others = "; the others are refused as out of scope" if self.rest == "refused" else ""
        yield f"{self._answers}{f'; the rest goes to {_NAMES[self.rest]}' if self.rest in _NAMES else others}."
        if self.accuracy is not None:
            right = "What it answers is right" if self.rest == "person" else "Together right"
            right = "Right" if self.kind == "small alone" else right
            cost = f", at {share_words(self.share_of_bill)} of the large model's bill" if self.share_of_bill else ""
            yield f"{right} on {share_words(self.accuracy)} of {self.accuracy.n:,} test rows{cost}."
        yield self._promised
        if self.signed:
            yield f"Signed for by {self.signed}."
        if self._watched:
            yield f"Audits by {_NAMES[self.watched_by]} watch the gate's accuracy: {self._watched}."
        elif not self.watched_by:
            why = "nobody judges its answers after go-live"
            if self.signed and not self.promise:
                why = "its gate failed, so audits have no accuracy to hold it to"
            elif self.large and self.audited is None and not self.promise:
                why = "audits cannot test what its gate asks for"
            yield f"Unwatched: {why}."

    @property
    def _promised(self) -> str:
        """What is promised about which share of the requests; where nothing is, that, and which rows are missing."""
        if not self.promise:
            missing = f": {self.why}" if self.why else ""
            missing = f"; to have one, label {self.labels_needed.in_words}" if self.labels_needed else missing
            return f"There is no promise about single answers, and each is marked so{missing}."
        if self.share_promised is None:
            return f"Promise for the answers that it covers: {self.promise}."
        marked = self.share_small is not None and self.share_small.value > self.share_promised.value
        others = "; the other small answers carry no promise and are marked" if marked else ""
        return f"Promise for {share_words(self.share_promised)} of {self.counted}: {self.promise}{others}."

    def _not_live(self) -> Iterator[str]:
        """Yield what is missing: a line of task.yaml, rows, or what fails."""
        if self.gate_line:
            right = ""
            if self.accuracy and self.accuracy.n:
                right = f", though it is right on {share_words(self.accuracy)} of {self.accuracy.n:,} test rows"
            yield f"task.yaml sets no gate, so nothing says that “{self.title}” is good enough{right}."
            yield self.gate_missing
        if self.labels_needed is not None:
            yield f"{'Or label' if self.gate_line else 'label'} {self.labels_needed.with_price}. {self._until}"
        elif self.why and not self.gate_line:
            yield f"{self.why}."


def share_words(share: Estimate | None) -> str:
    """Return a share in percent with its interval: `52 % [45.1, 58.8]`."""
    return f"{100 * share.value:.3g} % [{100 * share.low:.3g}, {100 * share.high:.3g}]" if share else ""
