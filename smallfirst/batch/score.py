"""Score rows in bulk: cut into parts, each asked once, here or on a Ray cluster, and written beside what failed."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pydantic

from smallfirst.batch.folder import ANSWER, BatchCounts, BatchFolder, BatchIdentity
from smallfirst.batch.rows import RowSource
from smallfirst.batch.scorer import Budget, Scorer, ScorerSource, shared_budget
from smallfirst.cluster.ray_session import ray_session
from smallfirst.errors import ConfigError, ModelError
from smallfirst.files import write_atomically
from smallfirst.progress import Progress, ProgressCallback
from smallfirst.project.task_file import read_task_file
from smallfirst.records import Record

PARTS_AT_ONCE = 2
"""Parts that are asked side by side in one process, so that the end of one leaves nothing idle."""
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
    """Processes on a Ray cluster, each with the model; None: this process alone."""
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
            f"{n.n_rows:,} rows ({n.n_requests:,} different) in {n.n_written:,} of {n.n_parts:,} parts of {self.out}, "
            f"answered by {self.model}",
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
    folder = BatchFolder(out, identity)
    if folder.about.finished:
        return ScoreResult(out=out, model=source.model, counts=folder.close())
    stopped = ""
    try:
        if options.retry_errors:
            folder.forget_errors()
        with progress.bar("cutting rows into parts", None) as update:
            folder.cut(found, lambda n: update(n, n, f"{n:,} rows"))
        with progress.bar(f"asking {source.model}", folder.n_requests) as update:
            if folder.pending and options.workers:
                stopped = _ask_on_ray(folder, source, options.workers, options.cap_usd, update)
            elif folder.pending:
                stopped = asyncio.run(_Here(folder, source, options.cap_usd, update).ask())
    finally:
        counts = folder.close()
    return ScoreResult(out=out, model=source.model, counts=counts, stopped=stopped)


def _check(source: ScorerSource, options: ScoreOptions) -> None:
    own = {"row", *ANSWER, "certificate"} & set(options.keep)
    if own:
        raise ConfigError(f"column {sorted(own)[0]!r} cannot be kept: the results have one of that name")
    if source.paid and options.cap_usd is None and not options.yes:
        raise ConfigError(
            f"{source.model} may ask a model that costs money, and there is no limit",
            hint="--cap-usd AMOUNT   or --yes to accept any cost",
        )


class _Here:
    """Ask the parts in this process."""

    def __init__(
        self, folder: BatchFolder, source: ScorerSource, cap_usd: float | None, update: ProgressCallback
    ) -> None:
        self.folder, self.update, self.failures = folder, update, Failures()
        self.scorer = Scorer(source.model_dump_json())
        self.budget = Budget(folder.database, cap_usd, folder.spent_usd) if source.paid else None
        self._found: list[dict[str, Any]] = []
        self._kept_at = time.monotonic()

    async def ask(self) -> str:
        """Ask all parts; return why it stopped before the end, if it did."""
        parts = iter([*self.folder.pending.values()])
        calls = (self.budget.reserve, self.budget.release) if self.budget else ()

        async def some() -> None:
            for part in parts:
                if self.budget and self.budget.stopped:
                    return
                await self.scorer.answer(self.folder.open_requests(part), self._keep, *calls)
                self._flush()
                self.folder.finish(part)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(PARTS_AT_ONCE):
                    group.create_task(some())
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        finally:
            self._flush()
            await self.scorer.model.aclose()
        return self.budget.stopped if self.budget else ""

    def _keep(self, answer: dict[str, Any]) -> None:
        self._found.append(answer)
        if self.budget or time.monotonic() - self._kept_at >= KEEP_EVERY_S:
            self._flush()
        self.failures.check([answer])

    def _flush(self) -> None:
        self.folder.keep(self._found)
        self.update(self.folder.n_answered, self.folder.n_requests)
        self._found, self._kept_at = [], time.monotonic()


def _ask_on_ray(
    folder: BatchFolder, source: ScorerSource, workers: int, cap_usd: float | None, update: ProgressCallback
) -> str:
    """Ask the parts on a cluster; each worker loads the model once, and Ray starts a dead one again.

    Return why it stopped before the end, if it did.
    """
    parts, items, failures = dict(folder.pending), [], Failures()
    for part in parts.values():
        file = folder.database.with_name(f"part-{part.part}.json").absolute()
        write_atomically(file, json.dumps(folder.open_requests(part), ensure_ascii=False).encode())
        items.append({"file": str(file), "part": part.part})
    with ray_session(num_cpus=workers) as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars, context.verbose_stats_logs = False, False
        n_gpus = ray.cluster_resources().get("GPU", 0)
        spent = (folder.database.absolute(), cap_usd, folder.spent_usd)
        budget = shared_budget(ray, workers, *spent) if source.paid else None
        answers = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Scorer,
            fn_constructor_args=[source.model_dump_json(), budget],
            compute=ray.data.ActorPoolStrategy(size=workers),
            batch_size=1,
            num_cpus=1,
            num_gpus=1 if n_gpus >= workers else 0,
        )
        try:
            for row in answers.iter_rows():
                found = json.loads(row["answers"])
                folder.keep(found)
                folder.finish(parts[row["part"]])
                update(folder.n_answered, folder.n_requests)
                failures.check(found)
            return ray.get(budget.why_stopped.remote()) if budget else ""
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
