"""The check stage: problems of the rows, what gate and certificate can show, time, memory and cost of the run.

Nothing is downloaded: if the base model is not on this machine, lengths are estimated and the rest is unknown. Ten
thousand rows take seconds, most of them to load PyTorch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from smallfirst.base.errors import MissingExtra
from smallfirst.base.paths import state_folder
from smallfirst.base.records import Record
from smallfirst.data.check import (
    CheckReport,
    Finding,
    TokenCounts,
    check,
    estimate_token_counts,
    format_report,
    make_finding,
)
from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import without_collections
from smallfirst.measuring.data_issues import DataIssue
from smallfirst.models.base_size import BaseSize
from smallfirst.models.catalog import find_weights
from smallfirst.path.diagnostics import find_project_issues, issue_finding
from smallfirst.path.durations import (
    CandidateForecast,
    LocalBaseModel,
    find_local_base,
    forecast_candidates,
    forecast_in_words,
    tokenize_rows,
    validation_work,
)
from smallfirst.path.foretold import Foretold, foretell
from smallfirst.path.large_model import LargeForecast, forecast_large, large_findings
from smallfirst.path.project.candidates import named_candidates, project_candidates
from smallfirst.path.project.languages import unread_languages
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.rows import Rows
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.estimates import (
    SMALLER,
    TrainingEstimate,
    estimate_training,
    expected_memory,
    free_memory,
    least_bytes,
)


class PreflightReport(Record):
    """Everything known before a run."""

    rows: CheckReport
    """Findings in the rows, and one if the fine-tune does not fit into memory."""
    needs: TrainingEstimate | None
    """Estimate of the fine-tune; None if it cannot be estimated yet."""
    unknown: str
    """Why it cannot be estimated, and what to do; empty if it is."""
    issues: tuple[DataIssue, ...] = ()
    """What seems to be wrong with the answers."""
    foretold: Foretold = Foretold()
    """What the rows can show of gate and guarantee, and how many more would."""
    large: LargeForecast | None = None
    """What asking the large model takes; None without one."""
    candidates: tuple[CandidateForecast, ...] = ()
    """What fitting each candidate takes."""

    @property
    def verdict(self) -> Literal["GO", "FIX", "NO"]:
        """GO, FIX or NO."""
        return self.rows.verdict

    @property
    def in_words(self) -> str:
        needs = self.needs.in_words if self.needs else []
        if self.unknown:
            needs = [f"time and memory of the fine-tune: unknown, {self.unknown}"]
        large = [f"large model: {self.large.in_words}"] if self.large else []
        fitting = forecast_in_words(self.candidates)
        return "\n".join([format_report(self.rows), *self.foretold.in_words, *large, *fitting, *needs])

    def __str__(self) -> str:
        return self.in_words

    @property
    def in_json(self) -> str:
        """The report as JSON: the verdict, the findings, then the estimates."""
        rest = self.model_dump(mode="json", exclude={"rows"})
        return json.dumps({"verdict": self.verdict, **self.rows.model_dump(mode="json"), **rest}, indent=2)


@without_collections()
@shown_as("checking the rows")
def check_stage(project: Project) -> PreflightReport:
    """Check the rows, and foretell what the run takes and can show."""
    rows, config = project.rows, project.file.small.training
    held_out = (rows.selection, rows.calibration, rows.left_out)
    validation = rows.selection.subset("validation", tuple(e for part in held_out for e in part.examples))
    splits = {"train": rows.train, "validation": validation, "test": rows.test}
    needs, base, counted = None, LocalBaseModel(None, None, ""), None
    encoded: dict[str, list[TokenizedRow]] = {}
    if any(candidate.is_language_model for candidate in project_candidates(project)):
        base, counted = find_local_base(project.file.small.base), estimate_token_counts(splits, config.max_seq_tokens)
        if base.tokens:
            encoded = {name: tokenize_rows(project, data, base.tokens) for name, data in splits.items()}
            counted = _counts(encoded, project)
    unknown, findings = base.unknown, list[Finding]()
    if base.size is not None and encoded.get("train"):
        needs, unknown = _needs(project, base.size, encoded)
        findings += _too_large(base.size, config)
    foretold, large = foretell(project), forecast_large(project.file, project.task, rows)
    findings += _unread(project)
    findings += [*foretold.findings, *large_findings(project.file, large), *_not_counted(rows)]
    findings += dict.fromkeys(found for one in named_candidates(project) for found in one.findings(project))
    issues = find_project_issues(project)
    findings += [*rows.skipped, *rows.notes, *_system_messages(rows.train), *map(issue_finding, issues)]
    with project.progress.bar("checking the rows", None, "checks") as done:
        found = check(rows.train, validation=validation, test=rows.test, tokens=counted, progress=done)
    report = found.with_findings(findings)
    candidates = forecast_candidates(project)
    return PreflightReport(
        rows=report, needs=needs, unknown=unknown, issues=issues, foretold=foretold, large=large, candidates=candidates
    )


def _not_counted(rows: Rows) -> Iterator[Finding]:
    """Yield a finding if calibration rows do not count for the certificate."""
    if rows.left_out.examples:
        rule = (
            "an exact bound takes independent rows that nothing was learnt from: give more, or other, validation rows"
        )
        where = [f"{example.place} does not count" for example in rows.left_out.examples]
        yield make_finding("note", rows.counted.in_words, rule, where)


def _unread(project: Project) -> Iterator[Finding]:
    """Yield a finding if requests are to come in languages that no candidate reads."""
    of_all = [unread_languages(project, candidate) for candidate in project_candidates(project)]
    if unread := [one for one in next(iter(of_all), ()) if all(one in others for others in of_all)]:
        rule = "requests in them go to the large model; label rows in them, or name an encoder that reads them"
        yield make_finding("note", f"languages that no candidate reads: {', '.join(unread)}", rule)


def _system_messages(train: Dataset) -> Iterator[Finding]:
    """Yield a finding if system messages differ: a task's models read the user's message alone."""
    told = {m.content: e for e in reversed(train.examples) for m in e.messages if m.role == "system"}
    if told and not train.system_message:
        where = [f'{example.place} has "{" ".join(words.split())[:60]}"' for words, example in reversed(told.items())]
        what = f"{len(told):,} different system messages in train rows, or some rows without one"
        rule = "the small model reads the user's message alone: put into it what an answer depends on"
        yield make_finding("fix", what, rule, where)


def _counts(encoded: Mapping[str, Sequence[TokenizedRow]], project: Project) -> TokenCounts:
    counts = {
        name: tuple(len(row.ids) if name == "train" else row.n_prompt for row in rows) for name, rows in encoded.items()
    }
    return TokenCounts(
        counts=counts, limit=project.file.small.training.max_seq_tokens, counted_by=project.file.small.base
    )


def _needs(
    project: Project, size: BaseSize, encoded: Mapping[str, list[TokenizedRow]]
) -> tuple[TrainingEstimate | None, str]:
    """Estimate the fine-tune on this machine, or return why that is impossible."""
    config, rows = project.file.small.training, encoded["train"]
    try:
        free = free_memory()
    except ImportError:
        return None, str(MissingExtra("Training", "train"))
    if lack := free.lacks(expected_memory(size, config, rows, gpu=free.gpu).span.high):
        return None, f"it may not fit: it takes up to {lack.removeprefix('at least ')}"
    from smallfirst.training.run import training_pace  # loads PyTorch

    name, prices = project.file.small.base, project.file.prices
    pace = training_pace(state_folder() / "tasks", (name, find_weights(name, download=False)), config, rows)
    exam = validation_work(project, encoded["validation"])
    # A default price would look like a measured value.
    told = "machine" in prices.model_fields_set and "usd_per_hour" in prices.machine.model_fields_set
    rate = prices.machine.usd_per_hour if told else None
    return estimate_training(name, size, config, rows, exam, pace, free, usd_per_hour=rate), ""


def _too_large(size: BaseSize, config: TrainConfig) -> Iterator[Finding]:
    """Yield a finding if the fine-tune cannot fit into the free memory."""
    try:
        free = free_memory()
    except ImportError:  # no PyTorch, so nothing is trained here
        return
    if lack := free.lacks(least_bytes(size, config, gpu=free.gpu)):
        yield make_finding("stop", f"the fine-tune needs {lack}", SMALLER, n=1)
