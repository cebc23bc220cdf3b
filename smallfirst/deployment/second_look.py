"""The second look: a certificate of a version from its calibration rows and what it drafted in shadow, taken by itself.

In shadow the large model's answers are there anyway, whatever the draft, so each text that traffic brings is a row to
certify with. After `routing.second_look_after` of them the certificate is looked for once more, at the large portion of
the level, of which the run spent a small one. How many rows there are decides when, never what they show.

What was found is attached to the version before it comes into force, and counts as the same look when it is made again:
a process that is killed in between leaves it to the next one, and several processes take it once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from smallfirst.base.errors import StageMissing
from smallfirst.base.files import locked
from smallfirst.base.paths import state_of
from smallfirst.base.records import Record, fingerprint
from smallfirst.data.dataset import fold_text
from smallfirst.ledger.ledger import AlreadyRecorded, Ledger
from smallfirst.ledger.rows import ShadowRow, StateRow
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.measuring.outcome import Outcome, share_words
from smallfirst.models.protocol import Completion, Request
from smallfirst.path.calibrate import CERTIFIED, Certified
from smallfirst.path.finalists import LOOKS, chosen_by
from smallfirst.path.project.candidates import get_candidate
from smallfirst.path.project.run_folder import CERTIFICATE, OUTCOME, RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.path.router_setup import with_confidences
from smallfirst.registry import versions
from smallfirst.registry.versions import ModelVersion
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.certificate.certify import BelowRule, certify
from smallfirst.routing.certificate.looks import FOLDED, LookRequest
from smallfirst.routing.router import Decision, Router, took_cascade

_log = logging.getLogger("smallfirst.serving")
SECOND_LOOK = "second_look.json"
"""File of the SecondLook beside the version."""
CAUSE, TAG = "second look", "second_look"
"""Cause of the ledger's row, and the version's tag that holds its sentence."""


_OF_THE_RUN = ("model", "version", "alias", "gate", "signed")
"""Fields of an outcome that a second look leaves as the run found them."""
RETRY_S = 60.0
"""Seconds after which a look that failed is tried again."""


class SecondLook(Record):
    """What the second look at a version found."""

    at: datetime
    before: str
    """Fingerprint of the certificate under which the version drafted."""
    share_before: float
    """Share of the calibration rows that it covers, in [0, 1]."""
    n_shadow: int
    """Texts that were drafted in shadow."""
    certificate: Certificate
    """That of this look, over calibration rows and these."""
    replaces: bool
    """It covers more than the one before, and takes its place."""

    @property
    def found(self) -> str:
        """What was found, in one sentence without its end."""
        n_before = self.certificate.evidence.n_labels - self.n_shadow
        rows = f"{n_before:,} calibration rows and {self.n_shadow:,} texts in shadow"
        if self.replaces:
            share = f"{share_words(self.certificate.coverage)} of requests, {self.share_before:.0%} before"
            shows = f"shows the promise for {share}"
        elif self.share_before:
            shows = f"shows the promise for no more than the {self.share_before:.0%} before"
        else:
            shows = f"does not show the promise ({self.certificate.report.why})"
        return f"The second look, over {rows}, {shows}"

    def in_words(self, *, live: bool) -> str:
        then = "the small model answers them from now on" if live else "it answers none until it is taken over"
        return f"{self.found}; {then if self.replaces else 'nothing changes'}."


class SecondLooks:
    """The shadow rows of one version in one process, and its second look when there are enough of them."""

    def __init__(
        self,
        router: Router,
        agrees: Callable[[str, str], bool],
        ledger: Ledger,
        file: TaskFile,
        version: ModelVersion,
        run_folder: RunFolder,
    ) -> None:
        """`agrees` tells whether a draft agrees with the large model's answer. Raise StageMissing without its rows."""
        assert file.routing.second_look_after is not None
        self._router, self._agrees, self._ledger, self._file = router, agrees, ledger, file
        self._version, self._run_folder, self._needed = version, run_folder, file.routing.second_look_after
        self._before = router.certificate.fingerprint()
        self._known = run_folder.read(Certified, CERTIFIED, next_command="smallfirst run task.yaml").texts
        self._is_found = read_look(version) is not None  # by a process that was killed before it told so
        self._taking, self._retry_at_s = False, float("-inf")
        self.taken: SecondLook | None = None
        """Once it was taken, by whichever process."""
        self.on_taken: Callable[[SecondLook], None] = lambda look: None
        """Called once in this process."""
        self.is_live: Callable[[], bool] = lambda: True
        """Whether the version may answer by itself; else its certificate comes into force for whoever decides that."""

    async def compared(self, id: str, request: Request, decision: Decision, answer: Completion, *, state: str) -> None:
        """Note a draft beside the large model's `answer`, and take the look if there are enough.

        `decision` drafted; `state` is the monitor's.
        """
        if self.taken is not None:
            return
        text = fingerprint(fold_text(request.text))
        if text not in self._known and (drafted := await self._drafted(request, decision)) is not None:
            draft, confidence = drafted
            wrong = not await asyncio.to_thread(self._agrees, draft.text, answer.text)
            row = {"id": id, "at": datetime.now(UTC), "task": self._file.name, "certificate": self._before}
            row |= {"text": text, "confidence": confidence or 0.0, "wrong": wrong}
            with suppress(AlreadyRecorded):  # each text counts once
                await self._ledger.append_async(ShadowRow.model_validate(row))
        if self._taking or time.monotonic() < self._retry_at_s:
            return
        self._taking = True
        try:
            self.taken = await asyncio.to_thread(self._take_if_due, state)
        except Exception as error:  # requests are answered and audited whatever becomes of it
            self._retry_at_s = time.monotonic() + RETRY_S
            _log.warning("%s: the second look could not be taken: %s", self._file.name, error)
        finally:
            self._taking = False
        if self.taken is not None:
            self.on_taken(self.taken)

    async def _drafted(self, request: Request, decision: Decision) -> tuple[Completion, float | None] | None:
        """Return the draft as thresholds see it; None for a request that does not reach them."""
        if took_cascade(decision.route) and decision.draft is not None:
            return decision.draft, decision.route.confidence
        return await self._router.draft(request.as_evaluated)

    def _take_if_due(self, state: str) -> SecondLook | None:
        task, certificate = self._file.name, self._before
        if not self._is_found and self._ledger.count(ShadowRow, task=task, certificate=certificate) < self._needed:
            return None
        rows = self._ledger.entries(ShadowRow, task=task, certificate=certificate)
        found, words = take(self._file, self._version, self._run_folder, rows[: self._needed], live=self.is_live())
        values: dict[str, object] = {"task": self._file.name, "certificate": found.before, "cause": CAUSE}
        values |= {"at": datetime.now(UTC), "before": state, "after": state, "why": words, "after_audit": 0}
        try:
            self._ledger.append(StateRow.model_validate(values))
            _log.warning("%s: %s", self._file.name, words)
        except AlreadyRecorded:  # another process has announced it
            pass
        return found


def take(
    file: TaskFile, version: ModelVersion, run_folder: RunFolder, rows: Sequence[ShadowRow], *, live: bool = True
) -> tuple[SecondLook, str]:
    """Return the second look at a version, in force, and its sentence; make it unless a process has.

    Raise StageMissing if the run's rows are not on this machine.
    """
    with state_of(file.folder), locked(run_folder.path / "second_look.lock"):
        look = read_look(version)
        if look is None:
            look = _look(file, version, run_folder, rows)
            versions.attach(version.name, version.version, SECOND_LOOK, look.model_dump_json(indent=2).encode())
        words = look.in_words(live=live)
        if look.replaces:
            _put_in_force(version, look, large=file.large is not None)
            if live and versions.SHADOW in version.aliases:
                versions.promote(version.name, version.version)
        versions.tag(version.name, version.version, {TAG: words})  # last: servers load the version anew for it
    return look, words


def read_look(version: ModelVersion) -> SecondLook | None:
    """Return what the second look at a version found; None before it was taken."""
    raw = versions.read_attachment(version.name, version.version, SECOND_LOOK)
    return SecondLook.from_json(raw, where=f"the second look at {version.name}/{version.version}") if raw else None


def _certificate(version: ModelVersion) -> Certificate:
    raw = versions.read_attachment(version.name, version.version, CERTIFICATE)
    return Certificate.from_json(raw or b"", where=f"the certificate of {version.name}/{version.version}")


def _look(file: TaskFile, version: ModelVersion, run_folder: RunFolder, rows: Sequence[ShadowRow]) -> SecondLook:
    """Certify with the run's calibration rows and these; it counts as a look."""
    before, candidate = _certificate(version), version.tags.get("candidate", "")
    certified = run_folder.read(Certified, CERTIFIED, next_command="smallfirst learn")
    calibration = _counted(run_folder.evaluation(candidate, "calibration"), certified.confidence)
    if certified.candidate != candidate or calibration is None or not before.evidence.n_labels:
        raise StageMissing(f"the calibration rows of {version.name}/{version.version} are not on this machine")
    drafted = tuple(
        EvaluatedRow(
            key=f"shadow-{row.text}",
            text=FOLDED + row.text,
            gold="",
            answer=None,
            correct=not row.wrong,
            confidence=row.confidence,
            stage=candidate,
            certified=False,
            latency_ms=0.0,
            cost_usd=0.0,
        )
        for row in rows
    )
    merged = calibration.model_copy(update={"rows": (*calibration.rows, *drafted), "probes_ms": ()})
    guarantee = before.guarantee.model_copy(update={"unit": before.guarantee.unit or "text"})
    selection = _counted(chosen_by(run_folder, candidate), certified.confidence)
    calibrated = CalibrationSet.of(
        [merged.model_copy(update={"dataset_fingerprint": fingerprint([row.key for row in merged.rows])})],
        judged_by="large",
        guarantee=guarantee,
        foreign=certified.foreign,
        selection=[selection] if selection else [],
    )
    found = certify(
        calibrated,
        guarantee,
        model_fingerprint=before.model_fingerprint,
        below=BelowRule(alone=False),
        look=LookRequest(run_folder.path.parent / LOOKS),
    )
    first, last = (min(row.at for row in rows), max(row.at for row in rows))
    drawn = (
        f"{len(rows):,} of its rows are texts that traffic brought from {first:%Y-%m-%d} to {last:%Y-%m-%d} and the "
        "run did not know, so it holds for texts like those and the run's together"
    )
    found = found.reported(rests_on=(drawn, *found.report.rests_on)).model_copy(update={"filters": before.filters})
    return SecondLook(
        at=datetime.now(UTC),
        before=before.fingerprint(),
        share_before=before.coverage.value if before.issued else 0.0,
        n_shadow=len(rows),
        certificate=found,
        replaces=found.issued and (not before.issued or found.threshold < before.threshold),
    )


def _counted(measured: Evaluation | None, confidence: dict[str, float]) -> Evaluation | None:
    """Return the rows that the first look counted, with the confidences that it saw."""
    if measured is None:
        return None
    kept = tuple(row for row in measured.rows if row.key in confidence)
    return with_confidences(measured.model_copy(update={"rows": kept}), confidence)


def _put_in_force(version: ModelVersion, look: SecondLook, *, large: bool) -> None:
    """Let the version answer by the new certificate, unless it does or somebody has certified it anew since."""
    name, number = version.name, version.version
    if _certificate(version).fingerprint() != look.before:
        return
    share, candidate = look.certificate.coverage, version.tags.get("candidate", "")
    raw = versions.read_attachment(name, number, OUTCOME)
    known = Outcome.from_json(raw, where=f"the outcome of {name}/{number}") if raw else Outcome(kind="small first")
    outcome = Outcome(
        **{field: getattr(known, field) for field in _OF_THE_RUN},
        kind="small first",
        candidate=candidate,
        title=get_candidate(candidate).title,
        share_small=share,
        share_promised=share,
        promise=look.certificate.guarantee.in_words,
        large=large,
        rest="large",
        watched_by="large",
    )
    versions.attach(name, number, OUTCOME, outcome.model_dump_json(indent=2).encode())
    versions.attach(name, number, CERTIFICATE, look.certificate.model_dump_json(indent=2).encode())
    versions.tag(name, number, outcome.facts)
