"""What rows can show, and how many more it takes: foretold before anything is trained, and counted after a run.

The gate's own checks judge a model that is right on every test row: what it misses is out of reach of every model. How
likely the gate's accuracy and the guarantee are to be shown, and how many more rows they take, follows from the answers
of a linear model on words to rows that it did not learn (`models.linear.held_out`): a run's best candidate is taken to
make all of its errors at worst, and half of them at best. Where there is no such model, from no error to half of those
allowed. After a run on the same rows its own figure stands here.

A part (test or calibration) that is split off a file grows with the file, so rows are counted that are added to the
files as the user has them. Something goes live by a gate or by a certificate, so of these open questions the one that
takes fewest rows decides. What no number of rows is likely to decide (`sample_size.UNLIKELY`) is left out.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from smallfirst.base.errors import StageMissing
from smallfirst.base.paths import state_folder
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import wilson
from smallfirst.base.stats.sample_size import (
    MAX_ROWS,
    RowsNeeded,
    chance_of_share,
    fewest_rows,
    min_rows_without_error,
    round_up_to_two_digits,
    rows_for_error,
)
from smallfirst.data.check import Finding, make_finding
from smallfirst.data.dataset import Dataset, Example, sample_rows
from smallfirst.measuring.choice import level_shares
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.measuring.gate import CheckInputs, ConfidenceLevel, Gate, run_checks
from smallfirst.measuring.outcome import LabelsNeeded, Outcome
from smallfirst.measuring.verdict import CheckResult
from smallfirst.models.linear.tfidf import WORD_ERRORS, HeldOutAnswers, hold_out
from smallfirst.path.evaluate import LIMITED_PROBE_ROWS
from smallfirst.path.finalists import LOOKS, MAX_FINALISTS
from smallfirst.path.project.candidate_registry import candidate_names
from smallfirst.path.project.candidates import project_candidates
from smallfirst.path.project.languages import with_languages
from smallfirst.path.project.project import Project
from smallfirst.path.project.rows import rows_to_split_off, split_off
from smallfirst.path.project.run_folder import CERTIFICATE, OUTCOME, RunFolder
from smallfirst.routing.certificate.certificate import Certificate, Guarantee
from smallfirst.routing.certificate.looks import LARGE, next_look, read_before, text_fingerprints
from smallfirst.routing.languages import LANGUAGE, detect_language

PROMISE = "routing.guarantee"
"""Name of the check that a certificate is issued."""
CASES = 1000
"""Training and selection rows of which the linear model on words answers each; as many are made up without one."""


class RequirementForecast(Record):
    """What the rows can show of a threshold of the gate, or of the guarantee."""

    setting: str
    """Where it stands in task.yaml."""
    in_words: str
    reachable: bool
    """False if not even a model without an error would show it."""
    advice: str = ""
    """What else than more rows would do; empty if these would."""


class Foretold(Record):
    """What a run on these rows can show."""

    gate: tuple[RequirementForecast, ...] = ()
    """Each threshold of the gate; empty without test rows."""
    certificate: RequirementForecast | None = None
    """The guarantee; None where it is not foretold."""
    assumption: str = ""
    """Which errors are assumed at worst and at best; empty where neither accuracy nor errors are asked for."""
    chance_gate: tuple[float, float] | None = None
    """At worst and at best, that these test rows show the gate's accuracy; None if it is not asked for."""
    chance_certificate: tuple[float, float] | None = None
    """As `chance_gate`, that these calibration rows show the guarantee; None if that is not foretold."""
    most: LabelsNeeded | None = None
    """Rows that decide what is open, at worst; None if nothing is open, or if no number of rows is likely to."""
    fewest: LabelsNeeded | None = None
    """As `most`, at best."""
    of_run: LabelsNeeded | None = None
    """What the latest run on the same rows asks for; it stands in place of what was foretold."""

    @property
    def in_words(self) -> Iterator[str]:
        """Yield the lines for the terminal, but for what is a finding."""
        yield from (f"gate: {one.in_words}" for one in self.gate if one.reachable)
        if self.certificate and self.certificate.reachable:
            yield f"certificate: {self.certificate.in_words}"
        if self.of_run is not None:
            yield f"rows: the last run on these rows asks for {self.of_run.in_words}"
        elif self.assumption:
            for name, chance in (("gate", self.chance_gate), ("certificate", self.chance_certificate)):
                if chance is not None:
                    ends = sorted({round(100 * end) for end in chance})
                    yield f"{name}: shown with these rows with a chance of {' to '.join(map(str, ends))} %"
            if self.most or self.fewest:
                ways = [one.in_words for one in (self.fewest, self.most) if one]
                rows = " to ".join(dict.fromkeys(ways)) if self.most else f"{ways[0]}, or no number of rows"
                yield f"rows: {rows} would decide what is open"
            yield f"assumed: {self.assumption}"

    @property
    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each threshold that no model can reach with these rows, and for such a guarantee."""
        found = self.of_run or self.fewest
        add = f"add {found.in_words}" if found else "add rows"
        named = [("gate", one) for one in self.gate] + [("certificate", one) for one in (self.certificate,) if one]
        for name, one in named:
            if not one.reachable:
                rule = f"{one.advice or add}; or change {one.setting}"
                yield make_finding("fix", f"{name}: {one.in_words}", rule, n=1)


class OpenQuestion(NamedTuple):
    """What too few rows of a part left open."""

    part: Literal["test", "calibration"]
    needed: RowsNeeded
    """Rows more of the part."""
    n_now: int
    """Rows of the part that were counted."""


def foretell(project: Project) -> Foretold:
    """Return what a run on these rows can show; nothing is trained but a model of words on at most 1,000 rows."""
    if project.file.may_have_no_answer:
        return Foretold(certificate=_of_conversations(project), of_run=_of_last_run(project))
    certificate, level, n = _certificate(project)
    found = Foretold(gate=_thresholds(project), certificate=certificate, of_run=_of_last_run(project))
    guarantee, bar = with_languages(project), _asked_alone(project).accuracy_at_least
    limit = guarantee.max_error if certificate and level and not guarantee.per_group else None
    if bar is None and (certificate is None or guarantee.per_group):
        return found
    cases, assumption = _word_model(project)
    n_test, confidence = len(project.rows.test), _level(project).confidence
    of_gate, of_certificate, rows = list[float](), list[float](), list[LabelsNeeded | None]()
    for left in (WORD_ERRORS[0], WORD_ERRORS[-1]):
        questions = []
        if bar is not None:
            model = _as_good(cases, left, 1 - bar)

            def chance(n_more: int, right: np.ndarray = model.right, bar: float = bar) -> float:
                n_right, n_cases = int(right.sum()), len(right)
                return chance_of_share(n_right, n_cases, n_test + n_more, bar, confidence=confidence, again=0.0)

            of_gate.append(chance(0))
            questions.append(OpenQuestion("test", fewest_rows(chance), n_test))
        if limit is not None:
            model = _as_good(cases, left, limit)
            needed, now = (
                rows_for_error(model.confidence, model.right, limit, level, again=0.0, n_new=n, max_rows=most)
                for most in (MAX_ROWS, 0)
            )
            of_certificate.append(now.chance)
            questions.append(OpenQuestion("calibration", needed, n))
        rows.append(rows_to_label(project, [one for one in questions if one.needed.n_more]))
    spans = {"chance_gate": of_gate, "chance_certificate": of_certificate}
    told = {name: (span[0], span[1]) for name, span in spans.items() if span}
    return found.model_copy(update={"assumption": assumption, "most": rows[0], "fewest": rows[1], **told})


def _of_conversations(project: Project) -> RequirementForecast | None:
    """Return how many conversations a promise about their calls takes at least."""
    guarantee, rows = project.file.routing.guarantee, project.rows
    if not guarantee.limits_errors_alone:
        return None
    parts = (rows.calibration, rows.test) if project.file.data.one_source else (rows.calibration,)
    n, fewest = (
        len({e.group for part in parts for e in part.examples}),
        min_rows_without_error(guarantee.limits["error"], LARGE * (1 - guarantee.confidence)),
    )
    words = f"{n:,} conversations certify; {guarantee.in_words} takes {fewest:,} with a call that is kept, none wrong"
    return RequirementForecast(setting=PROMISE, in_words=words, reachable=n >= fewest)


def _thresholds(project: Project) -> tuple[RequirementForecast, ...]:
    """Return what test rows can show of each threshold of the gate; nothing without test rows."""
    gate, test, large = _asked_alone(project), project.rows.test, project.file.large
    if not test.examples:
        return ()
    level = _level(project)
    asked = _perfect(project, sample_rows(test, large.sample("test")), cost_usd=1.0) if large else None
    inputs = CheckInputs(_perfect(project, test), level, asked, gate.part_rows)
    return tuple(_threshold(project, result, level) for result in run_checks(gate, inputs))


def _threshold(project: Project, result: CheckResult, level: ConfidenceLevel) -> RequirementForecast:
    n, name = len(project.rows.test), result.name
    metric, _, end = name.rpartition("_at_")  # a metric by its name stands below measures_at_least or …_at_most
    setting = f"gate.{name}" if name.partition(".")[0] in Gate.model_fields else f"gate.measures_at_{end}.{metric}"
    words, advice = f"{n:,} test rows show {result.requirement} if the model is good enough", ""
    if not result.passed:
        of_whom = f" of a model without an error on {n:,} test rows" if result.estimate else ""
        words = f"{result.requirement} is out of reach: {result.measured}{of_whom}"
        if result.more_rows is None:
            advice = ("" if result.estimate else result.advice) or "no number of rows like these would do"
    elif name == "accuracy_at_least":
        least = project.file.gate.accuracy_at_least or 0.0
        n_wrong = bisect_left(
            range(1, n + 1), True, key=lambda wrong: wilson(n - wrong, n, confidence=level.confidence).low < least
        )
        words = f"{n:,} test rows show {result.requirement} only from a measured {(n - n_wrong) / n:.3f} "
        words += f"({n_wrong:,} wrong at most)"
    return RequirementForecast(setting=setting, in_words=words, reachable=result.passed, advice=advice)


def _certificate(project: Project) -> tuple[RequirementForecast | None, float, int]:
    """Return what the calibration rows can show, the level of their next certificate, and how many rows count.

    None where errors are not what is limited.
    """
    guarantee, rows, data = with_languages(project), project.rows.calibration, project.file.data
    if "error" not in guarantee.limits:
        return None, 0.0, 0
    looks = state_folder() / "tasks" / project.file.name / LOOKS
    own, test = (text_fingerprints(example.text for example in part.examples) for part in (rows, project.rows.test))
    n_test = len(test - read_before(looks, "", test)) if data.one_source else 0  # as `find_joined` decides
    share = next_look(looks, own | test if n_test else own).share
    n_finalists = min(MAX_FINALISTS, len(project_candidates(project)))
    share /= max(1, n_finalists) if n_test else 1
    level = share * (1 - guarantee.confidence) / (guarantee.n_limits * (3 if project.file.routing.ahead else 1))
    n = len(rows) + n_test
    if level and guarantee.languages and guarantee.per_group == LANGUAGE:
        certifying = (*rows.examples, *(project.rows.test.examples if n_test else ()))
        return _of_languages(guarantee, guarantee.languages, certifying, level), level, n
    fewest = min_rows_without_error(guarantee.limits["error"], level) if level else n + 1
    words = f"{len(rows):,} calibration{f' and {n_test:,} test' if n_test else ''} rows"
    if n < fewest:
        words += f" cannot show {guarantee.in_words}, even without an error"
    else:
        words += f" show {guarantee.in_words} if, say, the {fewest:,} most confident answers are all right"
    return RequirementForecast(setting=PROMISE, in_words=words, reachable=n >= fewest), level, n


def _of_languages(
    guarantee: Guarantee, languages: Sequence[str], rows: Sequence[Example], level: float
) -> RequirementForecast:
    """Return how many rows of each language certify, and how many its promise takes at least."""
    told = Counter(detect_language(example.text) for example in rows)
    fewest = min_rows_without_error(guarantee.limits["error"], level / len(languages))
    counts = [f"{one} {told[one]:,}{f' ({fewest - told[one]:,} more)' * (told[one] < fewest)}" for one in languages]
    words = (
        f"rows that certify by language: {', '.join(counts)}; {guarantee.in_words} takes {fewest:,} each, none wrong"
    )
    return RequirementForecast(
        setting=PROMISE, in_words=words, reachable=max(map(told.__getitem__, languages)) >= fewest
    )


def _word_model(project: Project) -> tuple[HeldOutAnswers | None, str]:
    """Return the answers of the linear model on words to rows that it did not learn, and what is assumed of a run's."""
    examples = sample_rows(project.rows.development, CASES).examples
    if not project.task.closed or len({example.answer for example in examples}) < 2:
        return None, "from half of the errors that are allowed to none, since nothing is known of the model yet"
    answers = [[example.answer for example in examples]]
    found = hold_out([example.text for example in examples], answers, answers, share=0.7)
    right = wilson(int(found.right.sum()), len(found.right))
    words = f"from the errors of a linear model on words (right on {right} of {right.n} rows that it did not learn) "
    return found, f"{words}to half of them"


def _as_good(cases: HeldOutAnswers | None, left: float, allowed: float) -> HeldOutAnswers:
    """Return the answers with a share `left` of their errors; without any, with `allowed` errors less as many."""
    luck = np.random.default_rng(0).random(len(cases.right) if cases else CASES)
    if cases is not None:
        return cases._replace(right=cases.right | (luck >= left))
    at_worst = left == WORD_ERRORS[0]
    return HeldOutAnswers(luck, np.arange(CASES) % round(2 / allowed) > 0 if at_worst else np.ones(CASES, dtype=bool))


def _asked_alone(project: Project) -> Gate:
    gate = project.file.gate
    if gate.accuracy_at_least == 1:  # no candidate is meant to go live alone
        return gate.model_copy(update={"accuracy_at_least": None})
    return gate


def _level(project: Project) -> ConfidenceLevel:
    """Return the level of the candidate that comes first on test rows."""
    names = [candidate.name for candidate in project_candidates(project)]
    return ConfidenceLevel(1 / max(level_shares(names).values(), default=1))


def _of_last_run(project: Project) -> LabelsNeeded | None:
    """Return what the latest run asks for, if it measured these test and calibration rows; None without one."""
    try:
        run_folder = RunFolder.latest(project.file.name)
    except StageMissing:
        return None
    for split in ("test", "calibration"):
        rows, found = getattr(project.rows, split), (run_folder.evaluation(name, split) for name in candidate_names())
        if any(one and one.dataset_fingerprint != rows.content_fingerprint for one in found):
            return None
    outcome = run_folder.find(Outcome, OUTCOME)
    return outcome.labels_needed if outcome else None


def _perfect(project: Project, data: Dataset, *, cost_usd: float = 0.0) -> Evaluation:
    """Return the evaluation of a model that is right on all rows; nothing is asked, and no scorer is called."""
    usual = {"score": 1.0, "correct": True, "confidence": 1.0, "stage": "perfect", "certified": False}
    usual |= {"latency_ms": 0.0, "cost_usd": cost_usd}
    rows = tuple(
        EvaluatedRow.model_validate({"key": e.key, "text": e.text, "gold": e.answer, "answer": e.answer, **usual})
        for e in data.examples
    )
    n, limited = len(rows), project.file.gate.measures_at_most
    return Evaluation(
        candidate="a model without an error",
        model="",
        task=project.task.name,
        split="test",
        dataset_fingerprint=data.content_fingerprint,
        rows=rows,
        accuracy=wilson(n, n),
        measures={name: wilson(0 if name in limited else n, n) for name in project.task.measures(())},
        parts=project.task.parts([row.answered for row in rows]),
        cost_usd_per_1k=1000 * cost_usd,
        p50_ms=0.0,
        p95_ms=0.0,
        requests_per_s=None,
        probes_ms=(0.0,) * min(n, LIMITED_PROBE_ROWS),
    )


def labels_needed(project: Project, run_folder: RunFolder, *, live: bool = False) -> LabelsNeeded | None:
    """Return the fewest rows that are likely to put something live, or to show a promise; None if no number is.

    `live`: something goes live, and only a promise may be open.
    """
    ways = [rows_to_label(project, [one]) for one in _open_questions(project, run_folder, live=live)]
    return min(filter(None, ways), key=lambda way: way.n_data_rows, default=None)


def rows_to_label(project: Project, questions: Sequence[OpenQuestion]) -> LabelsNeeded | None:
    """Return the rows to add to the data files, with their price, that are likely to decide all questions."""
    likely = [one for one in questions if not one.needed.unlikely]
    if not likely:
        return None
    files: dict[str, int] = {}
    for file, n_rows in (_in_file(project, one) for one in likely):
        files[file] = max(n_rows, files.get(file, 0))
    n, price, chance = sum(files.values()), project.file.prices.usd_per_label, min(one.needed.chance for one in likely)
    return LabelsNeeded(n_data_rows=n, chance=chance, files=files, usd=None if price is None else n * price)


def _open_questions(project: Project, run_folder: RunFolder, *, live: bool) -> Iterator[OpenQuestion]:
    gate, found = run_folder.verdicts(), run_folder.find(Certificate, CERTIFICATE)
    if found is not None and not found.issued:
        needed = RowsNeeded(found.evidence.labels_missing or 0, found.evidence.labels_missing_chance or 0.0)
        yield OpenQuestion("calibration", needed, min(found.evidence.n_labels, len(project.rows.calibration)))
    if live or any(verdict.passed for verdict in gate.verdicts):
        return
    for tried in (*gate.verdicts, *gate.trials):
        failed = [check for check in tried.failed_checks if check.name != PROMISE]
        if failed and all(check.more_rows for check in failed):  # else something failed that no rows are to change
            more, chance = max(one.more_rows or 0 for one in failed), min(one.chance or 0.0 for one in failed)
            yield OpenQuestion("test", RowsNeeded(more, chance), len(project.rows.test))


def _in_file(project: Project, question: OpenQuestion) -> tuple[str, int]:
    """Return the file that the part is split off, and about how many more of its rows give it those that it needs."""
    files, rows, part = project.file.data, project.rows, question.part
    if part == "test" and files.test:
        return str(files.test), question.needed.n_more
    validation = sum(len(one) for one in (rows.selection, rows.calibration, rows.left_out))
    if part == "calibration" and files.validation:
        n_data, n_part = validation, len(rows.calibration)
        share = n_part / n_data if n_part else 1 - project.file.routing.selection_share
        return str(files.validation), round_up_to_two_digits(math.ceil(question.needed.n_more / share))
    n_data = len(rows.train) + (0 if files.validation else validation) + (0 if files.test else len(rows.test))
    if project.task.held_out is not None:
        return str(files.train), round_up_to_two_digits(math.ceil(question.needed.n_more * n_data / question.n_now))
    now, usual = split_off(n_data), 1 - project.file.routing.selection_share if part == "calibration" else 1.0
    share = question.n_now / now if question.n_now else usual  # of what is split off, some do not count
    n_rows = math.ceil(rows_to_split_off(now + question.needed.n_more / share) - n_data)
    return str(files.train), round_up_to_two_digits(n_rows)
