"""Score rows in bulk: each request asked once, here or on a Ray cluster, and its answer written beside the row."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import pydantic

from smallfirst.base.errors import ConfigError, ModelError, NotRecorded, RateLimited, RequestRefused, Unauthorised
from smallfirst.base.files import write_atomically
from smallfirst.base.paths import ledger_place, state_of
from smallfirst.base.progress import Progress
from smallfirst.base.ray_session import ray_session
from smallfirst.base.records import Record, fingerprint
from smallfirst.base.sync import run_sync
from smallfirst.deployment.batch.folder import ANSWER, BatchCounts, BatchFolder, BatchIdentity
from smallfirst.deployment.batch.rows import RowSource
from smallfirst.deployment.task_deployment import CERTIFICATE, TargetVersions, TaskDeployment
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.few_shot import PromptedModel
from smallfirst.models.manifest import MANIFEST, read_manifest
from smallfirst.models.protocol import Completion, DelegatingModel, Model, Request
from smallfirst.models.recorded import SpendingCap
from smallfirst.path.large_model import prompted_model, worst_usd
from smallfirst.path.project.project import Project, load_small
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.router_setup import routes_to_challenger, versioned_name
from smallfirst.registry import versions
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.policies import CHALLENGER
from smallfirst.routing.router import Router

AT_ONCE = 1024
"""Requests that wait for a model at a time, so that its passes are full."""
PAUSES_S = (2.0, 10.0, 30.0)
"""Before each further try of a request that certainly cost nothing: an endpoint may be down for a moment."""
_FREE = (Unauthorised, RateLimited, RequestRefused, NotRecorded)
"""Errors that cost nothing; any other may have been paid for, with an unknown amount."""


class ScorerSource(Record):
    """Which model answers, in a form that travels to other processes."""

    task: str
    """Path of task.yaml."""
    reference: str
    """`router`, `large`, the folder of a model, or `NAME/VERSION`."""
    champion: int = 0
    challenger: int | None = None
    decides: str = ""
    """Fingerprint of all that decides on its answers."""
    certificate: str = ""
    paid: bool = False
    """True if a large model behind an address may be asked."""

    @property
    def model(self) -> str:
        return f"router of version {self.champion}" if self.reference == "router" else self.reference

    @classmethod
    def find(cls, task: Path, model: str) -> Self:
        """Return what `model` means now: empty for the Router, `small`, `large`, a version, an alias or a folder.

        Raise RegistryError if there is no such version.
        """
        file = read_task_file(task)
        with state_of(file.folder):
            return cls._find(file, {"task": str(task.absolute())}, model)

    @classmethod
    def _find(cls, file: TaskFile, values: dict[str, Any], model: str) -> Self:
        paid = file.large is not None and file.large.endpoint is not None
        settings = file.model_dump(mode="json", exclude={"gate", "prices"})
        if model == "large":
            return cls(**values, reference=model, decides=fingerprint(settings), paid=paid)
        if model:
            folder, reference = Path(model).absolute(), str(Path(model).absolute())
            if not (folder / MANIFEST).is_file():
                alias = {"small": f"@{versions.CHAMPION}"}.get(model, f"/{model}" if model.isdecimal() else model)
                version = versions.resolve(f"{file.register_to}{alias}" if alias[0] in "@/" else alias)
                folder, reference = version.folder, f"{version.name}/{version.version}"
            return cls(
                **values, reference=reference, decides=fingerprint(read_manifest(folder).model_dump(mode="json"))
            )
        champion = versions.resolve(f"{file.register_to}@{versions.CHAMPION}").version
        beside = versions.resolve(f"{file.register_to}@{CHALLENGER}").version if routes_to_challenger(file) else None
        raw = versions.read_attachment(file.register_to, champion, CERTIFICATE)
        certificate = Certificate.from_json(raw, where="the certificate").fingerprint() if raw else ""
        return cls(
            **values,
            reference="router",
            champion=champion,
            challenger=beside,
            decides=fingerprint([champion, beside, certificate, settings]),
            certificate=certificate,
            paid=paid,
        )


class BatchScorer:
    """A loaded model that answers parts. Ray makes one in each of its actors, from JSON."""

    def __init__(self, source: str) -> None:
        """Load the model that a ScorerSource in JSON names."""
        self.source = ScorerSource.model_validate_json(source)
        file = read_task_file(Path(self.source.task))
        self.worst_usd: Callable[[str], float] = lambda _: 0.0
        with state_of(file.folder):
            self.model, self.task = self._load(file)
        self.max_tokens = self.task.max_answer_tokens

    def _load(self, file: TaskFile) -> tuple[Model, Any]:
        reference = self.source.reference
        if reference == "router":
            return self._router(file)
        if reference == "large":
            project = Project.read(file, Progress(quiet=True))
            model = prompted_model(file, project.task, project.rows.train)
            self.worst_usd = worst_usd(file, model)
            return model, project.task
        named = Path(reference).is_absolute()
        folder = Path(reference) if named else versions.resolve(reference).folder
        name = folder.name if named else versioned_name(f"{file.name}-small", int(reference.rpartition("/")[2]))
        return load_small(file, folder, name=name), read_manifest(folder).task

    def _router(self, file: TaskFile) -> tuple[Model, Any]:
        """Return the Router as it is served, without its audits: a batch is no traffic that tells of drift."""
        ledger = Ledger(ledger_place(create=True))
        try:
            deployment = TaskDeployment(file, ledger)
            audited = deployment.load(TargetVersions(self.source.champion, self.source.challenger)).router
        finally:
            ledger.close()
        if self.source.paid and isinstance(large := deployment.shared[0], PromptedModel):
            self.worst_usd = worst_usd(file, large)
        return _Unaudited(audited.router, audited.paused), audited.auditing.task

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer requests for Ray Data: `file` has them as JSON, and so are the answers."""
        found: list[dict[str, Any]] = []
        run_sync(self.answer(json.loads(Path(batch["file"][0]).read_bytes()), found.append))
        return {"answers": [json.dumps(found, ensure_ascii=False)]}

    async def answer(
        self, requests: Mapping[str, str], keep: Callable[[dict[str, Any]], None], budget: CostCap | None = None
    ) -> None:
        """Answer requests by hash, shortest first, so that those of a pass are alike; hand each answer to `keep`.

        A request is not sent if the budget leaves too little for it.
        """
        todo = iter(sorted(requests.items(), key=lambda pair: len(pair[1])))

        async def some() -> None:
            for key, line in todo:
                request = Request.model_validate({**json.loads(line), "max_tokens": self.max_tokens})
                amount = await budget.reserve(key, self.worst_usd(request.text)) if budget else 0.0
                if amount is None:
                    return
                answer = {"hash": key, **await self._answer(request)}
                if answer["cost_usd"] is None:
                    answer["cost_usd"] = amount
                keep(answer)
                if budget:
                    await budget.cap.release(amount, answer["cost_usd"])

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(requests))):
                    group.create_task(some())
        except BaseExceptionGroup as group_of:
            raise group_of.exceptions[0] from None

    async def _answer(self, request: Request) -> dict[str, Any]:
        for pause_s in (*PAUSES_S, None):
            try:
                return self._columns(await self.model.complete(request))
            except ModelError as error:
                if pause_s is None or not error.retryable:
                    free = error.retryable or isinstance(error, _FREE)
                    return {"error": _code(error), "message": error.args[0], "cost_usd": 0.0 if free else None}
                await asyncio.sleep(pause_s)
        raise AssertionError

    def _columns(self, found: Completion) -> dict[str, Any]:
        answer, route = self.task.parse(found.text), found.route
        confidence = found.confidence if route is None or route.confidence is None else route.confidence
        problem = {"error": "unreadable", "message": f"no answer of the task: {found.text[:200]!r}"}
        return {
            "answer": answer,
            "confidence": confidence,
            "stage": route.stage if route else "",
            "certified": bool(route and route.certified),
            "cost_usd": found.cost_usd,
            "answered_by": found.answered_by,
            "error": None,
            **({} if answer is not None or found.refusal else problem),
        }


class CostCap:
    """What a batch may still cost: the worst case of a request is set aside, on disk too, before it is sent."""

    def __init__(self, folder: BatchFolder, cap_usd: float | None) -> None:
        counts = folder.counts
        self.cap, self.stopped = SpendingCap(cap_usd, counts.cost_usd + counts.lost_usd), ""
        self._folder = folder

    async def reserve(self, key: str, worst_usd: float) -> float | None:
        """Return the amount that is set aside for a request; None if the cap leaves too little."""
        amount = None if self.stopped else await self.cap.reserve(worst_usd)
        if amount is None:
            self.stopped = self.stopped or (
                f"stopped at the cap of ${self.cap.cap_usd:g}: the next answer may cost ${worst_usd:.4f}; "
                "run the same command with a higher --cap-usd to go on"
            )
            return None
        self._folder.set_aside(key, amount)
        return amount


class _Unaudited(DelegatingModel):
    """A Router in the state in which it is served: while its guarantee is not in force the large model answers."""

    def __init__(self, router: Router, paused: str) -> None:
        super().__init__(router)
        self.router, self.paused = router, paused

    async def complete(self, request: Request) -> Completion:
        return await self.router.finish(await self.router.decide(request, paused=self.paused), request)


def _code(error: ModelError) -> str:
    """Return the kind of an error as a word, such as `rate_limited`."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


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
    budget = CostCap(folder, cap_usd) if source.paid else None
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
                    scorer = scorer or BatchScorer(source.model_dump_json())
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
            BatchScorer,
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
