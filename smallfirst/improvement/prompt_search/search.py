"""The search for the large model's prompt: how many solved rows it is shown, then what it is told.

Prompts are compared on selection rows, which choose and never certify; proposals are made from training rows.
Calibration and test rows are not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pydantic

from smallfirst.data.dataset import Dataset, Example, sample_rows
from smallfirst.errors import DataError, SpendingLimitReached
from smallfirst.improvement.prompt_search.asking import Asking, BudgetSpent
from smallfirst.improvement.prompt_search.gepa_adapter import ROWS_READ, Answered, search_instructions
from smallfirst.models.few_shot import fixed_shots
from smallfirst.pricing.money import format_usd
from smallfirst.project.project import Project, in_task_state
from smallfirst.project.prompt_file import Prompt, PromptSearch
from smallfirst.records import Record
from smallfirst.stats.intervals import Estimate, paired_score_interval, wilson
from smallfirst.tasks.task import Task


class PromptOptions(Record):
    """How the prompt is searched."""

    out: Path = Path("prompt.yaml")
    """File of the prompt."""
    rows: int = pydantic.Field(default=50, ge=5)
    """Most selection rows on which prompts are compared."""
    nearest: tuple[int, ...] = (0, 4, 16)
    """Numbers of nearest solved rows to try beside what task.yaml says; 0 shows none."""
    max_requests: int = pydantic.Field(default=500, ge=1)
    """Most requests to the large model and the one that proposes, those of an interrupted search included."""
    max_usd: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """Most that they may cost in all; None: no limit."""


class PromptTrial(Record):
    """One prompt, measured on the selection rows."""

    prompt: Prompt
    scores: tuple[float, ...]
    """The score of each row in [0, 1], in the order of the rows."""
    accuracy: Estimate
    """Share of right answers."""
    prompt_tokens: float
    """Mean tokens that a request has with it."""
    cost_usd_per_1k: float
    """USD per 1,000 requests."""

    @property
    def score(self) -> float:
        """Mean score in [0, 1]."""
        return sum(self.scores) / len(self.scores)


class PromptSearchResult(Record):
    """What a search tried and chose."""

    before: PromptTrial
    """The prompt of task.yaml."""
    chosen: PromptTrial
    """The best one on the selection rows, of equal ones the first that was tried."""
    difference: Estimate
    """Accuracy of the chosen one minus that of the one before, paired; chosen on the same rows, so too high."""
    trials: tuple[PromptTrial, ...]
    """Every prompt that was measured on all selection rows, in order."""
    search: PromptSearch
    stopped: str = ""
    """Why it ended before its end; empty if it did not."""
    out: Path
    """File of the chosen prompt."""

    @property
    def in_words(self) -> list[str]:
        """The result in sentences for the terminal."""
        lines = [f"{'right on selection rows':<28}{'tokens':>7}  {'cost / 1k':<10} prompt"]
        for trial in self.trials:
            mark = "*" if trial == self.chosen else " "
            cost, words = format_usd(trial.cost_usd_per_1k), _in_short(trial.prompt)
            lines.append(f"{mark} {trial.accuracy!s:<26}{trial.prompt_tokens:>7,.0f}  {cost:<10} {words}")
        took = self.search
        lines.append(
            f"the search took {took.n_requests:,} requests, {took.prompt_tokens + took.completion_tokens:,} tokens, "
            f"{format_usd(took.cost_usd)}: counted once, as training is"
        )
        if self.stopped:
            lines.append(f"it ended early: {self.stopped}; called again with a larger limit it goes on")
        if self.chosen == self.before:
            lines.append("no prompt was better than the present one")
        else:
            lines.append(f"better by {self.difference} on the rows that chose it: evaluate shows what remains of that")
        return lines


@in_task_state
def tune_prompt(project: Project, options: PromptOptions | None = None) -> PromptSearchResult:
    """Search the large model's prompt, write the best one to `options.out` and return what was tried.

    Raise ConfigError if task.yaml names no large model that can be asked, DataError if there are no selection rows,
    SpendingLimitReached or BudgetSpent if not even the present prompt could be measured, MissingExtra without `gepa`.
    """
    import gepa  # noqa: F401  # before anything is paid

    options = options or PromptOptions()
    search = _Search(project, options)
    try:
        search.run()
    finally:
        search.asking.close()
    found = search.result()
    found.chosen.prompt.model_copy(update={"search": found.search}).save(options.out)
    return found


class _Search:
    """The prompts tried so far."""

    def __init__(self, project: Project, options: PromptOptions) -> None:
        self.project, self.options = project, options
        self.asking = Asking(project, max_requests=options.max_requests, max_usd=options.max_usd)
        self.rows = sample_rows(project.rows.selection, options.rows).examples
        if not self.rows:
            raise DataError("there are no selection rows to compare prompts on", hint="add validation rows")
        self.trials: list[PromptTrial] = []
        self.stopped = ""

    def run(self) -> None:
        """Measure the present prompt, numbers of solved rows, then instructions, until the budget is spent."""
        large = self.project.file.large
        assert large is not None  # Asking has raised
        told = large.prompt.instructions if large.prompt else self.project.task.about or _job(self.project.task)
        start = Prompt(instructions=told, shots_per_label=large.shots_per_label, nearest=large.nearest)
        self._try(start)
        try:
            for n in self.options.nearest:
                shots = {"nearest": n, "shots_per_label": large.shots_per_label if n else 0}
                if n != large.nearest or (not n and large.shots_per_label):
                    self._try(start.model_copy(update=shots))
            best = _best(self.trials).prompt
            feedback = _feedback_rows(self.project.rows.train, self.project.task, large.shots_per_label, len(self.rows))
            search_instructions(
                told,
                self.project.task,
                feedback=feedback,
                scored=self.rows,
                evaluate=lambda text, rows: self._answers(best.model_copy(update={"instructions": text}), rows),
                propose=self.asking.propose,
                max_answers=self.asking.n_left + len(self.rows),  # its first round replays what is known
                is_done=lambda: _best(self.trials).score == 1.0,
                log=self.project.progress.log,
            )
        except (BudgetSpent, SpendingLimitReached) as end:
            self.stopped = "" if isinstance(end, BudgetSpent) and len(self.trials) > 1 else end.args[0]

    def result(self) -> PromptSearchResult:
        """Return the best prompt with what the search took."""
        before, best = self.trials[0], _best(self.trials)
        answers = self.asking.answers
        earlier = self.project.file.large and self.project.file.large.prompt and self.project.file.large.prompt.search
        right = [[score >= self.project.task.pass_score for score in trial.scores] for trial in (best, before)]
        search = PromptSearch(
            made_at=datetime.now(UTC).date().isoformat(),
            model=self.asking.name,
            proposer=self.asking.proposer,
            n_requests=len(answers) + (earlier.n_requests if earlier else 0),
            prompt_tokens=sum(a.prompt_tokens for a in answers) + (earlier.prompt_tokens if earlier else 0),
            completion_tokens=sum(a.completion_tokens for a in answers) + (earlier.completion_tokens if earlier else 0),
            cost_usd=sum(a.cost_usd for a in answers) + (earlier.cost_usd if earlier else 0.0),
            n_rows=len(self.rows),
            n_right_before=sum(right[1]),
            n_right=sum(right[0]),
        )
        gained = sum(now and not then for now, then in zip(*right, strict=True))
        lost = sum(then and not now for now, then in zip(*right, strict=True))
        return PromptSearchResult(
            before=before,
            chosen=best,
            difference=paired_score_interval(gained, lost, len(self.rows)),
            trials=tuple(self.trials),
            search=search,
            stopped=self.stopped,
            out=self.options.out,
        )

    def _try(self, prompt: Prompt) -> None:
        self._answers(prompt, self.rows)

    def _answers(self, prompt: Prompt, examples: Sequence[Example]) -> list[Answered]:
        """Return the rows answered under a prompt; a prompt answered on all selection rows is a trial."""
        task = self.project.task
        found = self.asking.answer(prompt, examples)
        rows = []
        for example, given in zip(examples, found, strict=True):
            said = given.answer if given else ""
            rows.append(Answered(example, said, task.score(example.golds, task.parse(said))))
        if list(examples) == list(self.rows) and prompt not in [trial.prompt for trial in self.trials]:
            known = [answer for answer in found if answer]
            n = max(1, len(known))
            trial = PromptTrial(
                prompt=prompt,
                scores=tuple(row.score for row in rows),
                accuracy=wilson(sum(row.score >= task.pass_score for row in rows), len(rows)),
                prompt_tokens=sum(answer.prompt_tokens for answer in known) / n,
                cost_usd_per_1k=1000 * sum(answer.cost_usd for answer in known) / n,
            )
            self.trials.append(trial)
            self.project.progress.log(f"{trial.accuracy} right with {_in_short(prompt)}")
        return rows


def _best(trials: Sequence[PromptTrial]) -> PromptTrial:
    return max(trials, key=lambda trial: trial.score)  # of equal ones the first


def _job(task: Task) -> str:
    """Return what a general model is told where `about` is empty: the first line of its system message."""
    return task.system_message().split("\n")[0]


def _feedback_rows(train: Dataset, task: Task, per_label: int, n: int) -> tuple[Example, ...]:
    """Return training rows to learn from, none of which is shown as a solved one to every request."""
    shown = {shot.text for shot in fixed_shots(train, task, per_label)}
    rest = tuple(example for example in train.examples if example.text not in shown) or train.examples
    return sample_rows(train.subset(train.name, rest), max(n, ROWS_READ)).examples


def _in_short(prompt: Prompt) -> str:
    shots = f"{prompt.nearest} nearest rows" if prompt.nearest else f"{prompt.shots_per_label or 0} rows a label"
    told = prompt.instructions.replace("\n", " ")
    return f"{shots}: {told[:48]}{'…' if len(told) > 48 else ''}"
