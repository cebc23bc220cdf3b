"""The labelling stage: check what costs nothing, estimate the cost, ask under the cap, write rows and a record.

Rows that measure the teacher are asked first, so that labels have an accuracy if the cap ends a run.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path

import smallfirst
from smallfirst.data.dataset import Dataset, Example, fold_text, sample_rows
from smallfirst.data.quality.leaks import find_leaks
from smallfirst.data.sources.load import load_rows
from smallfirst.errors import ConfigError, DataError, ModelError, Problem
from smallfirst.evaluation.self_agreement import (
    TeacherAgreement,
    TeacherAnswer,
    agreement_with_people,
)
from smallfirst.improvement.labelling.answer_log import AnswerLog, LabelRequests
from smallfirst.improvement.labelling.result import (
    CostEstimate,
    LabelCounts,
    LabellingResult,
    LabelOptions,
    LabelOutcome,
    by_answer,
    training_file,
)
from smallfirst.improvement.labelling.teacher import Teacher, large_model_teacher, local_teacher
from smallfirst.improvement.labelling.unlabelled import filter_texts, read_texts
from smallfirst.improvement.rows_file import refuse_to_overwrite, write_rows
from smallfirst.models.recorded.replay import read_recording
from smallfirst.models.recorded.spending_cap import SpendingCap
from smallfirst.paths import home
from smallfirst.progress import Progress
from smallfirst.project.expenses import note_expense
from smallfirst.project.project import Project
from smallfirst.project.rows import with_canonical_answers
from smallfirst.project.task_file import TaskFile
from smallfirst.records import fingerprint
from smallfirst.tasks.task import Task

_USUAL = LabelOptions()


def label(
    file: TaskFile,
    texts: Path,
    *,
    options: LabelOptions = _USUAL,
    progress: Progress | None = None,
    teacher: Teacher | None = None,
) -> LabellingResult:
    """Label the rows of `texts`, write the training rows and return the record.

    `teacher` replaces the one that the options name. Raise ConfigError if there is no teacher, if the cap is too small
    for one answer, or if labelling costs money and neither a cap nor `yes` is given; DataError for bad rows; ModelError
    if the model fails, after which another run asks only what is missing.
    """
    project = Project.read(file, progress)
    earlier = LabellingResult.load(options.record_path) if options.record_path.exists() else None
    refuse_to_overwrite(project, options.out, earlier, inputs=(texts, options.gold))
    if teacher is None and options.teacher is not None:
        teacher = local_teacher(options.teacher, file, project.task)
    teacher = teacher or large_model_teacher(file, project.task, project.rows.train)
    run = _Run(project, texts, options, teacher)
    project.progress.log(run.filtered.in_words)
    if not run.left.examples:
        raise DataError(f"{texts}: {run.filtered.in_words}", hint="give rows that the task does not have yet")
    about = {
        "teacher": teacher.model.name,
        "fingerprint": teacher.prompt_fingerprint,
        "prompt": [message.model_dump() for message in teacher.prompt],
        "begun": datetime.now(UTC).date().isoformat(),
        "smallfirst": smallfirst.__version__,
    }
    with AnswerLog.open(home() / "labels" / file.name / f"{teacher.prompt_fingerprint}.jsonl", about) as log:
        asyncio.run(run.ask(log))
        outcomes = [run.outcome(example) for example in run.left.examples]
        content = training_file(outcomes, file.data.columns, teacher.model.name)
        return write_rows(options.out, content, run.result(texts, outcomes), options.record_path)


def _answer(task: Task, response: str, *, cut: bool) -> str | None:
    """Parse an answer. Open text that was cut off is no answer; a label or complete JSON before the cut is one."""
    if cut and not task.closed and task.answer_schema() is None:
        return None
    return task.parse(response)


def _read_gold(project: Project, path: Path) -> Dataset:
    """Read rows answered by people, in canonical form, without those that the teacher may see in its prompt.

    Raise DataError for rows that do not fit, rows that certify or measure, or if none is left.
    """
    labels = project.task.closed or None
    rows = load_rows(path, columns=project.file.data.columns, labels=labels)
    rows = with_canonical_answers(project.rows.model_copy(update={"selection": rows}), project.task).selection
    kept = [part for part in project.rows.held_out if part is not project.rows.selection]
    leaks = find_leaks(Dataset(name="kept", examples=tuple(e for part in kept for e in part.examples)), rows)
    if seen := {leak.key for leak in (*leaks.exact, *leaks.folded)}:
        raise DataError(
            f"{path}: {len(seen):,} rows are test, calibration or open-ended rows, on which nothing is chosen",
            [Problem(str(path), e.line, "is also a test or calibration row") for e in rows.examples if e.key in seen],
            hint="have other rows answered by people, or leave out gold to use the selection rows",
        )
    shown = {fold_text(e.asked) for e in project.rows.train.examples}
    left = tuple(e for e in rows.examples if fold_text(e.asked) not in shown)
    if not left:
        raise DataError(f"{path}: all its rows are training rows, which the teacher may see as examples")
    return rows.subset(path.name, left)


class _Run:
    """The rows of one labelling, their requests, and what became of them."""

    log: AnswerLog
    sender: LabelRequests

    def __init__(self, project: Project, texts: Path, options: LabelOptions, teacher: Teacher) -> None:
        """Read the rows. Raise DataError for bad rows, rows with answers, or `gold` rows that certify or measure."""
        self.project, self.options, self.teacher = project, options, teacher
        read = read_texts(texts, project.rows.train.examples[0].shape, project.file.data.columns)
        people = project.rows.selection if options.gold is None else _read_gold(project, options.gold)
        self.left, self.filtered = filter_texts(read, project.rows, people)
        self.texts_fingerprint = read.content_fingerprint
        self.check = sample_rows(people, options.check_rows)
        self.checked_on = "selection rows" if options.gold is None else f"rows of {options.gold.name}"
        self.price = CostEstimate(n_answers=0, usd_each=0.0, max_usd=0.0, judged_by="nothing")

    @cached_property
    def requests(self) -> dict[str, str]:
        """Every request by its key with its text, in order: first the rows that measure the teacher."""
        return {self.key(example): example.text for example in (*self.check.examples, *self.left.examples)}

    def key(self, example: Example) -> str:
        return fingerprint([self.teacher.prompt_fingerprint, example.text])

    def answer(self, example: Example) -> TeacherAnswer | None:
        """Return the row's answer as the task parses it; None if it is missing."""
        said = self.log.answers.get(self.key(example))
        if said is None:
            return None
        parsed = _answer(self.project.task, said.answer, cut=said.finish_reason == "length")
        return TeacherAnswer(parsed, said.confidence)

    async def ask(self, log: AnswerLog) -> None:
        """Ask what the log lacks, as far as cap and consent go."""
        self.log, self.paid_before_usd = log, log.paid_usd(self.requests)
        budget = SpendingCap(self.options.cap_usd, self.paid_before_usd + log.lost_usd(self.requests))
        self.sender = LabelRequests(self.teacher, log, budget, max_tokens=self.project.task.max_answer_tokens)
        try:
            self.price = await self._estimate()
            self._refuse_blind_threshold()
            if not self.sender.cap_reached:
                self.project.progress.log(f"cost: {self.price.in_words}")
                self._need_consent()
                await self._send(self._first_missing)
                self._refuse_blind_threshold()
                await self._send(self.requests)
        except ModelError as error:
            done = f"{self._n_answered:,} of {len(self.requests):,} answers are kept in {self.log.path}"
            again = "run the same command again: only what is missing is asked, and nothing is paid twice"
            hint = f"{error.hint}; then {again}" if error.hint else again
            raise type(error)(f"{error.args[0]}; {done}", hint=hint) from error
        finally:
            await self.teacher.model.aclose()
            self._note_expense()
        self._refuse_small_cap()

    def _note_expense(self) -> None:
        total_usd = sum(answer.cost_usd for answer in self.log.answers.values())
        what = f"{len(self.log.answers):,} answers"
        note_expense(self.project.file.name, "labelling", self.log.path.stem, total_usd, what=what)

    def result(self, texts: Path, outcomes: list[LabelOutcome]) -> LabellingResult:
        requests = self.requests
        paid_usd = self.log.paid_usd(requests)
        return LabellingResult(
            task=self.project.task.name,
            teacher=self.teacher.model.name,
            prompt_fingerprint=self.teacher.prompt_fingerprint,
            made_at=datetime.now(UTC).date().isoformat(),
            smallfirst=smallfirst.__version__,
            texts=str(texts),
            texts_fingerprint=self.texts_fingerprint,
            options=self.options,
            filtered=self.filtered,
            counts=LabelCounts(**Counter(f"n_{outcome.fate}" for outcome in outcomes)),
            by_answer=by_answer(outcomes) if self.project.task.closed else {},
            trust=self._trust(),
            price=self.price,
            n_answers_now=self.sender.n_new,
            paid_now_usd=paid_usd - self.paid_before_usd,
            paid_usd=paid_usd,
            lost_usd=self.log.lost_usd(requests),
            go_on=self._go_on(),
        )

    @property
    def _n_answered(self) -> int:
        return sum(request in self.log.answers for request in self.requests)

    @property
    def _first_missing(self) -> dict[str, str]:
        missing = ((e, text) for e, text in self.requests.items() if e not in self.log.answers)
        return dict(islice(missing, self.options.probe_calls))

    async def _send(self, requests: dict[str, str]) -> None:
        with self.project.progress.bar(f"asking {self.teacher.model.name}", len(requests), "answers") as update:
            await self.sender.send(requests, update)

    async def _estimate(self) -> CostEstimate:
        """Estimate the cost of the missing answers from earlier or recorded ones, else from a few asked now."""
        first = self._first_missing
        costs, judged_by = [response.cost_usd for response in self.log.answers.values()], "earlier answers"
        if len(costs) < self.options.probe_calls:
            costs, judged_by = self._recorded_costs(), "recorded answers"
        if first and not costs:
            await self._send(first)
            costs, judged_by = [response.cost_usd for response in self.log.answers.values()], "answers asked for it now"
            if not costs and self.sender.bad:
                raise next(iter(self.sender.bad.values()))
        return CostEstimate(
            n_answers=sum(e not in self.log.answers and e not in self.sender.bad for e in self.requests),
            usd_each=sum(costs) / max(1, len(costs)),
            max_usd=max(costs, default=0.0),
            judged_by=f"{len(costs):,} {judged_by}",
            paid_usd=self.log.paid_usd(self.requests),
        )

    def _recorded_costs(self) -> list[float]:
        """Return the costs of the model's recorded answers to the task's own rows."""
        large = self.project.file.large
        if large is None or large.recorded is None or not self.project.file.path(large.recorded).exists():
            return []
        header, rows = read_recording(self.project.file.path(large.recorded))
        return [row.cost_usd for row in rows] if header.model == self.teacher.model.name else []

    def _need_consent(self) -> None:
        if self.price.usd > 0 and self.options.cap_usd is None and not self.options.yes:
            raise ConfigError(
                f"labelling costs money and needs consent: {self.price.in_words}",
                hint=f"add --yes, or a limit: --cap-usd {_rounded_up(1.2 * self.price.usd)}",
            )

    def _refuse_blind_threshold(self) -> None:
        response = [self.log.answers[e] for e in self.requests if e in self.log.answers]
        if self.options.min_confidence <= 0 or not response:
            return
        if all(answer.confidence is None for answer in response):
            raise ConfigError(
                f"{self.teacher.model.name} gives no confidence, so min_confidence {self.options.min_confidence:g} "
                "would keep no row",
                hint="keep every answer: --min-confidence 0; or take a model that gives one: --teacher FOLDER",
            )

    def _refuse_small_cap(self) -> None:
        if self.sender.cap_reached and not self._n_answered:
            lost_usd = self.log.lost_usd(self.requests)
            lost = f", and requests without an answer may have cost ${lost_usd:.6f}" if lost_usd else ""
            raise ConfigError(
                f"the cap of ${self.options.cap_usd:g} is too small for one answer, which may cost up to "
                f"${self.sender.refused_usd:.6f}{lost}",
                hint=f"raise it to at least --cap-usd {_rounded_up(lost_usd + self.sender.refused_usd)}",
            )

    def outcome(self, example: Example) -> LabelOutcome:
        found, key = self.answer(example), self.key(example)
        if found is None:
            return LabelOutcome(example, "failed" if key in self.sender.bad else "unasked", None, "")
        on = self.log.answers[key].on
        if found.answer is None:
            return LabelOutcome(example, "unparseable", found, on)
        return LabelOutcome(example, "kept" if found.is_confident(self.options.min_confidence) else "unsure", found, on)

    def _trust(self) -> TeacherAgreement:
        checked = [(e.golds, said) for e in self.check.examples if (said := self.answer(e)) is not None]
        found = agreement_with_people(
            [said for _, said in checked],
            [golds for golds, _ in checked],
            self.project.task,
            min_confidence=self.options.min_confidence,
        )
        return found.model_copy(update={"checked_on": self.checked_on})

    def _go_on(self) -> str:
        if not self.sender.cap_reached:
            return ""
        n_left = len(self.requests) - self._n_answered
        more_usd = self.sender.budget.spent_usd + n_left * self.price.max_usd + self.sender.refused_usd
        return (
            f"stopped at the cap of ${self.options.cap_usd:g} (earlier runs count): {n_left:,} answers are missing; "
            f"to go on run again with --cap-usd {_rounded_up(more_usd)}, nothing is paid twice"
        )


def _rounded_up(usd: float) -> str:
    """An amount with two digits that is not smaller: 0.0123 gives 0.013."""
    digits = f"{usd:.1e}"
    amount = float(digits)
    if amount < usd:
        amount += 10 ** int(digits.split("e")[1]) / 10
    return f"{amount:.2g}" if amount < 100 else f"{amount:.0f}"
