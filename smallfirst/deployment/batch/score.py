"""Score rows in bulk: each request asked once, here or on a Ray cluster, and its answer written beside the row."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pydantic

from smallfirst.base.errors import ConfigError, ModelError
from smallfirst.base.files import write_atomically
from smallfirst.base.progress import Progress
from smallfirst.base.ray_session import ray_session
from smallfirst.base.records import Record
from smallfirst.deployment.batch.folder import ANSWER, BatchCounts, BatchFolder, BatchIdentity
from smallfirst.deployment.batch.rows import RowSource
from smallfirst.deployment.batch.scorer import Budget, Scorer, ScorerSource
from smallfirst.path.project.task_file import read_task_file

KEEP_EVERY_S = 1.0
"""Seconds of answers that the death of the process loses, if they were free; a paid one is kept at once."""
MAX_FAILED_IN_A_ROW = 100
"""Requests in a row that bring no answer end a batch: what is wrong is not the rows."""


class ScoreOptions(Record):
    """How rows are scored."""

    model: str = ""
    """`small`, `large`, a version (`3`), an alias (`@challenger`), `NAME/3` or the folder of a model; empty: the
    Router as it is served."""
    keep: tuple[str, ...] = ()
    """Columns of the rows that stay beside the answer."""
    text: str = ""
    """Column that is asked; empty: the usual names of the task."""
    part_rows: int = pydantic.Field(default=2000, ge=1)
    """Rows of a part."""
    workers: int | None = pydantic.Field(default=None, ge=1)
    """Processes on a Ray cluster, each with the model, which costs nothing; None: this process alone."""
    retry_errors: bool = False
    """Ask again what ended in an error."""
    cap_usd: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    """Most that all answers of the folder may cost, in USD."""
    yes: bool = False
    """Accept what a paid model costs without a cap."""


class ScoreResult(Record):
    """What a batch has brought so far."""

    out: Path
    model: str
    counts: BatchCounts
    stopped: str = ""
    """Why it ended early, and how it goes on."""

    @property
    def in_words(self) -> list[str]:
        n = self.counts
        lines = [
            f"{n.n_rows:,} rows in {self.out}; {n.n_requests:,} different requests answered by {self.model}",
            f"{n.n_errors:,} rows with an error; paid ${n.cost_usd:.4f}"
            + (f", up to ${n.lost_usd:.4f} more for answers that were lost or asked again" if n.lost_usd else ""),
        ]
        return [*lines, *filter(None, [self.stopped])]


def score(
    task: Path, rows: str, out: Path, *, options: ScoreOptions | None = None, progress: Progress | None = None
) -> ScoreResult:
    """Answer all rows of an address and write the answers to a folder; called again, go on where it ended.

    Raise ConfigError if the folder holds another batch or a paid model has neither cap nor consent, DataError if the
    rows cannot be read, ModelError if the model fails throughout; what was answered by then is kept.
    """
    options, progress = options or ScoreOptions(), progress or Progress()
    file, source = read_task_file(task), ScorerSource.find(task, options.model)
    _check(source, options)
    found = RowSource(rows, columns=file.data.columns, text=options.text, keep=options.keep)
    identity = BatchIdentity(
        rows=rows,
        rows_fingerprint=found.fingerprint,
        keep=options.keep,
        text=options.text,
        part_rows=options.part_rows,
        model=source.model,
        model_fingerprint=source.decides,
        certificate=source.certificate,
    )
    folder = BatchFolder(out, identity, retry_errors=options.retry_errors)
    stopped, finished = "", False
    try:
        if not folder.is_done:
            if options.workers:
                _ask_on_ray(folder, found, source, options.workers, progress)
            stopped = asyncio.run(_fill(folder, found, source, options.cap_usd, progress))
            finished = not stopped
    finally:
        counts = folder.close(finished=finished)
    return ScoreResult(out=out, model=source.model, counts=counts, stopped=stopped)


def _check(source: ScorerSource, options: ScoreOptions) -> None:
    own = {"row", *ANSWER, "certificate"} & set(options.keep)
    if own:
        raise ConfigError(f"column {sorted(own)[0]!r} cannot be kept: the results have one of that name")
    if source.paid and options.workers:
        raise ConfigError(
            f"{source.model} may ask a model that costs money, which one process does",
            hint="leave out --workers, or name a model of this machine: --model small",
        )
    if source.paid and options.cap_usd is None and not options.yes:
        raise ConfigError(
            f"{source.model} may ask a model that costs money, and there is no limit",
            hint="--cap-usd AMOUNT   or --yes to accept any cost",
        )


async def _fill(
    folder: BatchFolder, found: RowSource, source: ScorerSource, cap_usd: float | None, progress: Progress
) -> str:
    """Ask and write part by part in this process; return why it stopped before the end, if it did."""
    scorer, failures = None, Failures()
    budget = Budget(folder, cap_usd) if source.paid else None
    waiting: list[dict[str, Any]] = []
    kept_at = time.monotonic()

    def flush() -> None:
        nonlocal kept_at
        folder.keep(waiting)
        waiting.clear()
        kept_at = time.monotonic()

    def keep(answer: dict[str, Any]) -> None:
        waiting.append(answer)
        if budget or time.monotonic() - kept_at >= KEEP_EVERY_S:
            flush()
        failures.check([answer])

    try:
        with progress.bar(f"asking {source.model}", None) as update:
            for number, rows in folder.parts(found):
                if requests := folder.open_requests(rows):
                    scorer = scorer or Scorer(source.model_dump_json())
                    await scorer.answer(requests, keep, budget)
                    flush()
                if budget and budget.stopped:
                    return budget.stopped
                folder.write(number, rows)
                update(rows[-1].number, rows[-1].number, f"{rows[-1].number:,} rows")
    finally:
        flush()
        if scorer:
            await scorer.model.aclose()
    return ""


def _ask_on_ray(folder: BatchFolder, found: RowSource, source: ScorerSource, workers: int, progress: Progress) -> None:
    """Ask the open requests on a cluster; each worker loads the model once, and Ray starts a dead one again."""
    items, failures, n_answered = [], Failures(), 0
    for number, rows in folder.parts(found):
        if requests := folder.open_requests(rows):
            file = (folder.work / f"requests-{number}.json").absolute()
            items.append({"file": str(write_atomically(file, json.dumps(requests, ensure_ascii=False).encode()))})
    if not items:
        return
    with ray_session(num_cpus=workers) as ray, progress.bar(f"asking {source.model}", len(items)) as update:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.verbose_stats_logs = False, False
        n_gpus = ray.cluster_resources().get("GPU", 0)
        answers = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Scorer,
            fn_constructor_args=[source.model_dump_json()],
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=1,
            num_cpus=1,
            num_gpus=1 if n_gpus >= workers else 0,
        )
        try:
            for row in answers.iter_rows():
                folder.keep(one := json.loads(row["answers"]))
                update(n_answered := n_answered + 1, len(items))
                failures.check(one)
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1].strip()
            raise ModelError(
                f"a worker failed: {why}", hint="what was answered is kept; the same command goes on"
            ) from None


class Failures:
    """Ends a batch whose requests fail one after the other."""

    def __init__(self) -> None:
        self.n = 0

    def check(self, answers: list[dict[str, Any]]) -> None:
        """Count answers in their order. Raise ModelError after MAX_FAILED_IN_A_ROW without one."""
        for one in answers:
            self.n = self.n + 1 if one["error"] and one["error"] != "unreadable" else 0
            if self.n >= MAX_FAILED_IN_A_ROW:
                raise ModelError(
                    f"{self.n} requests in a row brought no answer; the last one: {one['message']}",
                    hint="what was answered is kept; once the cause is gone, run the same command with --retry-errors",
                )
