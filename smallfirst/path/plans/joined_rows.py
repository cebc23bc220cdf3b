"""Test rows that certify together with the calibration rows, although the gate reads them too.

For a candidate that was fixed before a test row was read, P(it goes live and its promise is false) <= P(its certificate
is false) <= its level, whatever the gate does with the same rows. So the level is divided among all candidates that may
go live, by parts that were fixed before, and never among those that passed. No condition depends on an answer. What is
lost: the errors among kept test answers are no independent look at the promise any more.
"""

from __future__ import annotations

from typing import NamedTuple

from smallfirst.base.records import Record, fingerprint
from smallfirst.data.copies import count_rows
from smallfirst.data.dataset import Dataset
from smallfirst.path.project.candidates import fitted_candidates
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import FINALISTS, Finalists, RunFolder
from smallfirst.routing.certificate.looks import ALONE, SharedLook, mark_read, read_before, text_fingerprints

FIXED = "fixed_before_test.json"
"""File of the FixedBeforeTest in a run folder."""
LOOKS = "looks.json"
"""File in the task's folder: the certificates that were tried, of all runs, and the test rows that were read."""
_PROVE_NOTHING = frozenset({"small", "accuracy_within", "budget", "person", "usd_per_wrong_answer", "monitor", "judge"})
"""Settings of `routing` without a part in what is promised."""


class FixedBeforeTest(Record):
    """What a run fixed before it read a test row."""

    parts: dict[str, float]
    """By candidate that may go live: the part of a look that its certificate takes, in (0, 1]; they sum to 1."""
    promise: str
    """Fingerprint of the rows and of the settings that say what is promised about which requests."""


class JoinedRows(NamedTuple):
    """Which rows certify a candidate."""

    rows: Dataset
    """Calibration rows, then the test rows that certify with them."""
    n_test: int = 0
    """How many of them are test rows."""
    look: SharedLook = ALONE
    """The look that all fixed candidates divide; the whole of one where no test row certifies."""
    why_not: str = ""
    """Why test rows do not certify; empty if they do."""

    @property
    def in_words(self) -> str:
        """What the promise rests on."""
        if self.why_not:
            return f"test rows did not certify: {self.why_not}"
        return (
            f"{self.n_test} of its {len(self.rows)} rows are test rows, which the gate reads too: it takes "
            f"{self.look.part:.3g} of a look that is divided among all candidates fixed before a test row was read"
        )


def fix_before_test(project: Project, run_folder: RunFolder) -> None:
    """Save which candidates may go live with which promise, before this run reads a test row; a second call does not.

    The test rows count as read by this run from now on.
    """
    path = run_folder.path / FIXED
    if not path.exists() and not any((run_folder.path / "evaluations").glob("*-test.json")):
        fitted = [one.name for one in fitted_candidates(project, run_folder) if one.promotable]
        # Plans are ranked by the large model's error on calibration rows: parts by that rank would depend on them.
        ranked = project.file.binds_answers and run_folder.evaluation("large", "calibration") is not None
        finalists = None if ranked else run_folder.find(Finalists, FINALISTS)
        shares = finalists.shares if finalists else dict.fromkeys(fitted, 1.0)
        parts = {name: share / sum(shares.values()) for name, share in shares.items()}
        FixedBeforeTest(parts=parts, promise=_promise(project)).save(path)
    mark_read(run_folder.path.parent / LOOKS, run_folder.path.name, _texts(project.rows.test))


def find_joined(project: Project, run_folder: RunFolder, candidate: str) -> JoinedRows:
    """Return the rows that certify `candidate`: with test rows where every condition holds.

    Of these one row counts for each text, near-copy and group, and none that stands in any other part, or that an
    earlier run has read: its report may have shown it.
    """
    rows, data, fixed = project.rows, project.file.data, run_folder.find(FixedBeforeTest, FIXED)
    answered = [run_folder.evaluation(name, "test") for name in (candidate, *project.file.routing.ahead)]
    read = read_before(run_folder.path.parent / LOOKS, run_folder.path.name, _texts(rows.test))
    sources = [{example.source for example in part.examples} for part in (rows.calibration, rows.test)]
    parts = fixed.parts if fixed else {}
    reasons = {
        "this candidate was not fixed before a test row was read": candidate not in parts,
        "the promise, the policies or the rows were changed after a test row was read": (
            fixed is not None and fixed.promise != _promise(project)
        ),
        "people's answers in data.gold certify alone": data.gold is not None,
        "their labels come from another source than those of the calibration rows": (
            sources[0] != sources[1] or (project.file.routing.labels == "large" and sources[0] <= {""})
        ),
        "they are not split from the file of the calibration rows; data.exchangeable: true declares both alike": (
            not data.one_source
        ),
        "an earlier run has read them": read == _texts(rows.test),
        "the candidate was not measured on them": answered[0] is None,
    }
    if why_not := next((why for why, holds in reasons.items() if holds), ""):
        return JoinedRows(rows.calibration, why_not=why_not)
    own, _ = count_rows((rows.train, rows.selection, rows.calibration, rows.left_out), rows.test)
    keys = set.intersection(*(set(one.by_key) if one else set() for one in answered))
    test = tuple(e for e in own.examples if e.key in keys and not text_fingerprints([e.text]) & read)
    names = ", ".join(f"{name} {part:.3g}" for name, part in parts.items())
    look = SharedLook(f"{run_folder.path.name}: {names}", parts[candidate])
    return JoinedRows(rows.calibration.subset("calibration", (*rows.calibration.examples, *test)), len(test), look)


def _promise(project: Project) -> str:
    routing = project.file.routing.model_dump(mode="json", exclude=set(_PROVE_NOTHING))
    parts = [part.content_fingerprint for part in (project.rows.calibration, project.rows.test)]
    return fingerprint([routing, *parts])


def _texts(rows: Dataset) -> set[str]:
    return text_fingerprints(example.text for example in rows.examples)
