"""The stage: check everything that costs nothing, foretell the price, ask under the cap, write rows and record."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import smallfirst
from smallfirst.data.dataset import Example
from smallfirst.errors import ConfigError, DataError, ModelError
from smallfirst.evaluation.self_consistency import (
    TeacherAgreement,
    agreement_with_itself,
    agreement_with_people,
    answer_matcher,
    majority_vote,
)
from smallfirst.files import write_atomically
from smallfirst.improvement.labelling.answer_log import AnswerLog, LabelRequest
from smallfirst.improvement.labelling.labeller import Labeller, large_model_labeller, local_labeller
from smallfirst.improvement.labelling.options import LabelOptions
from smallfirst.improvement.labelling.plan import LabelPlan
from smallfirst.improvement.labelling.requests import BudgetTracker, LabelRequests
from smallfirst.improvement.labelling.result import (
    CostEstimate,
    LabellingResult,
    LabelOutcome,
    by_answer,
    count_outcomes,
    training_file,
)
from smallfirst.models.recorded.replay import read_recording
from smallfirst.paths import home
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import TaskFile
from smallfirst.records import fingerprint

_USUAL = LabelOptions()


def label(
    file: TaskFile,
    texts: Path,
    *,
    options: LabelOptions = _USUAL,
    progress: Progress | None = None,
    teacher: Labeller | None = None,
) -> LabellingResult:
    """What came of having the rows of `texts` labelled; the training rows and this record are written by then.

    `teacher` is whom the options name unless another is given. Raises ConfigError if there is none, if the
    cap is too small for one answer, or if something is to be paid and neither a cap nor `yes` is given; DataError for
    bad rows; ModelError if the model fails, after which another run asks only what is missing.
    """
    project = Project.read(file, progress)
    _refuse_to_overwrite(project, texts, options)
    teacher = teacher or _named(project, options)
    plan = LabelPlan(project, texts, options, teacher.way)
    project.progress.log(plan.sifted.in_words)
    if not plan.left.examples:
        raise DataError(f"{texts}: {plan.sifted.in_words}", hint="give rows that are not among the task's own")
    with AnswerLog.open(home() / "labels" / file.name / f"{teacher.way}.jsonl", _about(teacher)) as journal:
        run = _Run(project, plan, options, teacher, journal)
        asyncio.run(run.ask())
        return _written(run.labelled(texts), run)


class _Run:
    """One labelling under way."""

    def __init__(
        self, project: Project, plan: LabelPlan, options: LabelOptions, teacher: Labeller, journal: AnswerLog
    ) -> None:
        self.project, self.plan, self.options, self.teacher, self.journal = project, plan, options, teacher, journal
        self.paid_before_usd = journal.paid_usd(plan.errands)
        purse = BudgetTracker(options.cap_usd, self.paid_before_usd + journal.lost_usd(plan.errands))
        self.asking = LabelRequests(teacher, journal, purse, max_tokens=project.task.max_answer_tokens)
        self.price = CostEstimate(n_answers=0, usd_each=0.0, dearest_usd=0.0, judged_by="nothing")

    async def ask(self) -> None:
        """Foretell the price, get consent, ask. Every answer is in the journal when it comes."""
        try:
            self.price = await self._foretold()
            self._refuse_blind_threshold()
            if not self.asking.out_of_money:
                self.project.progress.log(f"price: {self.price.in_words}")
                self._need_consent()
                await self._do(self._first_missing)
                self._refuse_blind_threshold()
                await self._do(self.plan.errands)
        except ModelError as error:
            done = f"{self._n_answered:,} of {len(self.plan.errands):,} answers are kept in {self.journal.path}"
            again = "run the same command again: only what is missing is asked, and nothing is paid twice"
            hint = f"{error.hint}; then {again}" if error.hint else again
            raise type(error)(f"{error.args[0]}; {done}", hint=hint) from error
        finally:
            await self.teacher.model.aclose()
        self._refuse_small_cap()

    @property
    def outcomes(self) -> list[LabelOutcome]:
        """Every row that may be labelled, and what became of it."""
        return [self._outcome(example) for example in self.plan.left.examples]

    def labelled(self, texts: Path) -> LabellingResult:
        """The record of this labelling; nothing is written yet."""
        outcomes, errands = self.outcomes, self.plan.errands
        paid_usd = self.journal.paid_usd(errands)
        return LabellingResult(
            task=self.project.task.name,
            teacher=self.teacher.model.name,
            way=self.teacher.way,
            made_at=datetime.now(UTC).date().isoformat(),
            smallfirst=smallfirst.__version__,
            texts=str(texts),
            texts_fingerprint=self.plan.texts_fingerprint,
            options=self.options,
            sifted=self.plan.sifted,
            counts=count_outcomes(outcomes),
            by_answer=by_answer(outcomes) if self.project.task.closed else {},
            trust=self._trust(),
            price=self.price,
            n_answers_now=self.asking.n_new,
            paid_now_usd=paid_usd - self.paid_before_usd,
            paid_usd=paid_usd,
            lost_usd=self.journal.lost_usd(errands),
            go_on=self._go_on(),
        )

    @property
    def _n_answered(self) -> int:
        return sum(errand in self.journal.answers for errand in self.plan.errands)

    @property
    def _first_missing(self) -> dict[LabelRequest, str]:
        """So few that nothing is lost if they show that it is not worth going on."""
        missing = ((e, text) for e, text in self.plan.errands.items() if e not in self.journal.answers)
        return dict(islice(missing, self.options.probe_calls))

    async def _do(self, errands: dict[LabelRequest, str]) -> None:
        with self.project.progress.bar(f"asking {self.teacher.model.name}", len(errands), "answers") as update:
            await self.asking.ask(errands, update)

    async def _foretold(self) -> CostEstimate:
        """What is missing and what it will cost: by earlier or recorded answers, else by some that are asked now."""
        first = self._first_missing
        costs, judged_by = [said.cost_usd for said in self.journal.answers.values()], "earlier answers"
        if len(costs) < self.options.probe_calls:
            costs, judged_by = self._recorded_costs(), "recorded answers"
        if first and not costs:
            await self._do(first)
            costs, judged_by = [said.cost_usd for said in self.journal.answers.values()], "answers asked for it now"
            if not costs and self.asking.bad:
                raise next(iter(self.asking.bad.values()))
        return CostEstimate(
            n_answers=sum(e not in self.journal.answers and e not in self.asking.bad for e in self.plan.errands),
            usd_each=sum(costs) / max(1, len(costs)),
            dearest_usd=max(costs, default=0.0),
            judged_by=f"{len(costs):,} {judged_by}",
            paid_usd=self.journal.paid_usd(self.plan.errands),
        )

    def _recorded_costs(self) -> list[float]:
        """Costs of the same model's answers to the task's own rows, where a recording has them."""
        large = self.project.file.large
        if large is None or large.recorded is None or not self.project.file.path(large.recorded).exists():
            return []
        header, rows = read_recording(self.project.file.path(large.recorded))
        return [row.cost_usd for row in rows] if header.model == self.teacher.model.name else []

    def _need_consent(self) -> None:
        if self.price.usd > 0 and self.options.cap_usd is None and not self.options.yes:
            raise ConfigError(
                f"labelling costs money, and nobody has agreed to it: {self.price.in_words}",
                hint=f"add --yes, or a limit: --cap-usd {_rounded_up(1.2 * self.price.usd)}",
            )

    def _refuse_blind_threshold(self) -> None:
        said = [self.journal.answers[e] for e in self.plan.errands if e in self.journal.answers]
        if self.options.min_confidence <= 0 or self.options.samples > 1 or not said:
            return
        if all(answer.confidence is None for answer in said):
            raise ConfigError(
                f"{self.teacher.model.name} gives no confidence, so min_confidence {self.options.min_confidence:g} "
                "would keep no row",
                hint="ask each row several times: --samples 3; or keep every answer: --min-confidence 0",
            )

    def _refuse_small_cap(self) -> None:
        if self.asking.out_of_money and not self._n_answered:
            lost_usd = self.journal.lost_usd(self.plan.errands)
            lost = f", and requests without an answer may have cost ${lost_usd:.6f}" if lost_usd else ""
            raise ConfigError(
                f"the cap of ${self.options.cap_usd:g} is too small for one answer, which may cost up to "
                f"${self.asking.short_usd:.6f}{lost}",
                hint=f"raise it to at least --cap-usd {_rounded_up(lost_usd + self.asking.short_usd)}",
            )

    def _outcome(self, example: Example) -> LabelOutcome:
        draws = self.plan.draws(example, self.options.samples, self.journal)
        errands = [self.plan.errand(example, i) for i in range(self.options.samples)]
        if draws is None:
            failed = any(errand in self.asking.bad for errand in errands)
            return LabelOutcome(example, "failed" if failed else "unasked", None, "")
        found = majority_vote(draws, answer_matcher(self.project.task))
        on = max(self.journal.answers[errand].on for errand in errands)
        if found.answer is None:
            return LabelOutcome(example, "unparseable", found, on)
        return LabelOutcome(example, "kept" if found.is_confident(self.options.min_confidence) else "unsure", found, on)

    def _trust(self) -> TeacherAgreement:
        task, n = self.project.task, self.options.samples
        twice = [d for e in self.plan.again.examples if (d := self.plan.draws(e, 2, self.journal)) is not None]
        checked = [(e.golds, d) for e in self.plan.check.examples if (d := self.plan.draws(e, n, self.journal))]
        votes = [majority_vote(draws, answer_matcher(task)) for _, draws in checked]
        people = agreement_with_people(
            votes, [golds for golds, _ in checked], task, min_confidence=self.options.min_confidence
        )
        itself = agreement_with_itself([(first, second) for first, second in twice], task)
        return people.model_copy(
            update={"self_agreement": itself.self_agreement, "kappa": itself.kappa, "checked_on": self.plan.checked_on}
        )

    def _go_on(self) -> str:
        if not self.asking.out_of_money:
            return ""
        n_left = len(self.plan.errands) - self._n_answered
        more_usd = self.asking.purse.spent_usd + n_left * self.price.dearest_usd + self.asking.short_usd
        return (
            f"stopped at the cap of ${self.options.cap_usd:g} (earlier runs count): {n_left:,} answers are missing; "
            f"to go on run again with --cap-usd {_rounded_up(more_usd)}, nothing is paid twice"
        )


def _named(project: Project, options: LabelOptions) -> Labeller:
    if options.teacher is not None:
        return local_labeller(options.teacher, project.file, project.task)
    return large_model_labeller(project.file, project.task, project.rows.train)


def _about(teacher: Labeller) -> dict[str, object]:
    return {
        "teacher": teacher.model.name,
        "way": teacher.way,
        "prompt": [message.model_dump() for message in teacher.prompt],
        "begun": datetime.now(UTC).date().isoformat(),
        "smallfirst": smallfirst.__version__,
    }


def _refuse_to_overwrite(project: Project, texts: Path, options: LabelOptions) -> None:
    """Raise ConfigError if the output would take the place of a file that is not an earlier, untouched output."""
    data, out = project.file.data, options.out
    own = [data.train, data.validation, data.test, data.open_ended, data.relabels]
    inputs: Sequence[Path | None] = [texts, options.gold, *(path and project.file.path(path) for path in own)]
    if out.resolve() in {path.resolve() for path in inputs if path is not None}:
        raise ConfigError(
            f"{out} is read here, so it cannot be written", hint="name another file: --out labelled.jsonl"
        )
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out}: labelled rows are JSON Lines", hint=f"name it --out {out.with_suffix('.jsonl')}")
    if not out.exists():
        return
    written = LabellingResult.load(options.record_path).written if options.record_path.exists() else None
    if written != fingerprint(out.read_text(encoding="utf-8")):
        raise ConfigError(
            f"{out} exists, and is not as an earlier labelling left it",
            hint="name another file, or move this one away; answers are kept, so nothing is paid twice",
        )


def _written(labelled: LabellingResult, run: _Run) -> LabellingResult:
    content = training_file(run.outcomes, run.project.file.data.columns, labelled.teacher)
    labelled = labelled.model_copy(update={"written": fingerprint(content)})
    write_atomically(run.options.out, content.encode())
    labelled.save(run.options.record_path)
    return labelled


def _rounded_up(usd: float) -> str:
    """An amount with two digits that is not smaller: 0.0123 gives 0.013."""
    digits = f"{usd:.1e}"
    amount = float(digits)
    if amount < usd:
        amount += 10 ** int(digits.split("e")[1]) / 10
    return f"{amount:.2g}" if amount < 100 else f"{amount:.0f}"
