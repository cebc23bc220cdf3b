"""The large model of a task file: the model itself, its prompt, its recorded answers, and what asking it takes.

Answers to labelled rows are always recorded and replayed: a row is asked and paid for once, an interrupted evaluation
continues where it stopped, and the Router is measured on the answers that the large model was measured on.

A cap that is never exceeded needs a bound before an answer is there: each byte of the prompt is taken for a token, and
the answer for as long as it may be.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import smallfirst
from smallfirst.base.errors import ConfigError, DataError, PriceUnknown, SmallfirstError
from smallfirst.base.paths import home, state_folder
from smallfirst.base.progress import Progress
from smallfirst.base.records import Record, fingerprint
from smallfirst.data.check import Finding, make_finding
from smallfirst.data.dataset import Dataset, Example, Message, sample_rows
from smallfirst.ledger.expenses import note_recording
from smallfirst.models.batching import usable_cores
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import open_encoder
from smallfirst.models.few_shot import NearestShots, PromptedModel, fixed_shots
from smallfirst.models.loading import ModelSource, load
from smallfirst.models.pricing import format_usd, tokens_of
from smallfirst.models.protocol import BYTES_PER_TOKEN, Model, Request, estimate_prompt_tokens
from smallfirst.models.recorded import (
    CONCURRENCY,
    RecordedAnswer,
    ReplayModel,
    Spending,
    SpendingCap,
    read_recording,
    record,
    request_key,
)
from smallfirst.models.remote.model import EndpointModel, is_priced_by_tokens
from smallfirst.path.project.rows import Rows
from smallfirst.path.project.task_file import LargeConfig, TaskFile
from smallfirst.tasks.task import Task
from smallfirst.training.estimates import Range, format_seconds

_NOT_ASKED = {"recorded", "recorded_open", "sample_calibration", "sample_test", "max_usd"}
"""Settings that do not change the requests."""
OPEN_TOKENS = 48
"""Tokens of a recorded answer to an open-ended request."""
TOKENS_AROUND_PROMPT, TOKENS_AROUND_MESSAGE = 128, 16
"""Tokens that a chat template may add; the usual ones add about a quarter of that."""
GGUF_AT_ONCE, GGUF_TIMEOUT_S, GGUF_RETRIES = 2, 300.0, 1
"""How `general_model` runs a GGUF file."""


def general_model(
    task_file: TaskFile, *, answers: tuple[str, ...] | None = None, schema: Mapping[str, Any] | None = None
) -> Model:
    """Return the general model itself, without a task's prompt. Raise ConfigError if task.yaml names none."""
    engine = _config(task_file).general_engine
    if engine is None:
        raise ConfigError(
            "large: names only recorded answers, no model that could answer new requests",
            hint="add endpoint:, gguf: or engine: under large: in task.yaml",
        )
    source = ModelSource(engine.model, engine=engine.name, settings=engine.settings, prices=task_file.prices)
    if source.kind != "address":
        local = task_file.path(Path(engine.model))
        weights = local if local.suffix == ".gguf" and local.is_file() else find_weights(engine.model)
        source = source._replace(location=weights, name=engine.model.split("/")[-1])
    return load(source._replace(answers=answers, schema=schema))


def prompted_model(task_file: TaskFile, task: Task, train: Dataset) -> PromptedModel:
    """Return the general model with the task's prompt: label list, and solved examples from the training rows.

    Where its engine can do that, it is bound to the task's answers.
    """
    large, selector = _config(task_file), None
    if large.nearest:  # by the small path's sentence encoder
        encoder = open_encoder(find_weights(task_file.small.encoder))
        selector = NearestShots(train, encoder, large.nearest, cache=home() / "vectors")
    shots = () if selector else fixed_shots(train, task, large.shots_per_label)
    bound = large.only_labels and not large.endpoint
    schema = task.answer_schema() if bound else None
    inner = general_model(task_file, answers=task.closed or None if bound else None, schema=schema)
    return PromptedModel(inner, task, shots=shots, selector=selector, max_tokens=task.max_answer_tokens)


class _Prompting(Protocol):
    """What adds a prompt to a text; an answer has at most `max_answer_tokens` tokens."""

    max_answer_tokens: int

    def messages(self, text: str) -> tuple[Message, ...]: ...


def worst_usd(task_file: TaskFile, model: _Prompting) -> Callable[[str], float]:
    """Return the function from a text to the most that one answer of `model` to it may cost. Raise PriceUnknown."""
    endpoint, prices = _config(task_file).endpoint, task_file.prices
    if endpoint is not None and is_priced_by_tokens(endpoint, prices):
        name, url = endpoint.model, endpoint.base_url
        if endpoint.priced_by == "billed" and _config(task_file).max_usd is None:
            return lambda text: 0.0  # without a cap nothing is reserved

        def worst(text: str) -> float:
            messages = model.messages(text)
            # No tokenizer in use makes more tokens than bytes, but for what a chat template adds.
            n = sum(len(one.content.encode()) + TOKENS_AROUND_MESSAGE for one in messages) + TOKENS_AROUND_PROMPT
            fresh = tokens_of(n, model.max_answer_tokens)
            kinds = (fresh, fresh.model_copy(update={"cache_write_tokens": n}))
            return max(prices.charge(name, tokens, api_url=url).usd or 0.0 for tokens in kinds)

        return worst
    timeout_s, retries = (endpoint.timeout_s, endpoint.max_retries) if endpoint else (GGUF_TIMEOUT_S, GGUF_RETRIES)
    # Each try may wait to be sent and to be let in, the last one for the first byte and for the rest.
    longest = prices.machine.cost_usd(2 * timeout_s * (retries + 1))
    return lambda text: longest


async def recorded_answers(
    task_file: TaskFile, task: Task, rows: Rows, *, progress: Progress, parts: Sequence[str] = ("calibration", "test")
) -> ReplayModel:
    """Return the recorded answers to the rows of some splits; ask for the missing ones now."""
    large, path = _config(task_file), recording_path(task_file, task)
    if large.recorded and path.exists():
        return ReplayModel.load(path)
    wanted = [e for part in parts for e in sample_rows(getattr(rows, part), large.sample(part)).examples]
    requests = [Request(messages=example.messages) for example in wanted]
    model = prompted_model(task_file, task, rows.train)
    if large.gguf and requests and not path.exists():
        await model.complete(requests[0])  # loading and the first prompt are no request's latency
    header, spending = _header(task_file, task, rows), _spending(task_file, task, model)
    return await _record(task_file, model, requests, path, header, progress, spending)


def answers_so_far(task_file: TaskFile, task: Task) -> ReplayModel | None:
    """Return the answers that the large model has given to the task's rows already; None without any."""
    path = recording_path(task_file, task) if task_file.large else None
    return ReplayModel.load(path) if path and path.exists() else None


async def recorded_open_answers(task_file: TaskFile, rows: Rows, *, progress: Progress) -> ReplayModel | None:
    """Return recorded answers to the open-ended requests; None without such requests or a recording of them."""
    large = _config(task_file)
    if rows.open_ended is None or large.recorded_open is None:
        return None
    path = task_file.path(large.recorded_open)
    if path.exists():
        return ReplayModel.load(path)
    requests = [Request(messages=e.messages, max_tokens=OPEN_TOKENS) for e in rows.open_ended.examples]
    header = _header(task_file, None, rows) | {"settings": {"max_tokens": OPEN_TOKENS, "temperature": 0}}
    return await _record(task_file, general_model(task_file), requests, path, header, progress)


async def _record(
    task_file: TaskFile,
    model: Model,
    requests: Sequence[Request],
    path: Path,
    header: dict[str, Any],
    progress: Progress,
    spending: Spending | None = None,
) -> ReplayModel:
    """Ask for the answers that `path` lacks, note in the ledger what they cost, close the model; return all answers."""
    home()  # the state folder is created when something is written
    try:
        with progress.bar(f"asking {model.name}", len(requests)) as update:
            await record(model, requests, path, header=header, progress=update, spending=spending)
    finally:
        note_recording(task_file.name, "evaluation", path)
        await model.aclose()
    return ReplayModel.load(path)


def _config(task_file: TaskFile) -> LargeConfig:
    if task_file.large is None:
        raise ConfigError("task.yaml names no large model", hint="add a large: section, or leave out this step")
    return task_file.large


def _settings(large: LargeConfig) -> dict[str, Any]:
    """The settings that change answers. `engine` is left out where it is unused: recordings are older than it."""
    unused = set() if large.engine else {"engine"}
    return large.model_dump(mode="json", exclude=_NOT_ASKED | unused)


def recording_path(task_file: TaskFile, task: Task) -> Path:
    """Return the file of answers: the one that task.yaml names, else one for each combination of model and prompt."""
    large = _config(task_file)
    if large.recorded:
        return task_file.path(large.recorded)
    told = [message.model_dump() for message in task.instructions(())]
    way = fingerprint([_settings(large), told, task.answer_schema(), task.max_answer_tokens])
    return state_folder() / "recordings" / task.name / f"{way}.jsonl"


def _spending(task_file: TaskFile, task: Task, model: PromptedModel) -> Spending | None:
    """Return the limit on what answers may cost, those that are recorded already included; None without one."""
    most = _config(task_file).max_usd
    if most is None:
        return None
    path = recording_path(task_file, task)
    spent = sum(answer.cost_usd for answer in read_recording(path)[1]) if path.exists() else 0.0
    return Spending(SpendingCap(most, spent), worst_usd(task_file, model))


def _header(task_file: TaskFile, task: Task | None, rows: Rows) -> dict[str, Any]:
    """Return when, how and with which prompt answers are made; without a task, requests go as they come."""
    large = _config(task_file)
    prompt: Any = "none: the request as it came"
    if task is not None and large.nearest:
        prompt = f"label list, and the {large.nearest} training rows nearest to the request"
    elif task is not None:
        shots = fixed_shots(rows.train, task, large.shots_per_label)
        prompt = tuple(m.model_dump() for m in task.instructions(shots))
    settings = _settings(large)
    settings.pop("endpoint")
    return {
        "made_at": date.today().isoformat(),
        "smallfirst": smallfirst.__version__,
        "command": "smallfirst record task.yaml",
        "settings": settings | {"temperature": 0},
        "prompt": prompt,
        "machine": f"{platform.machine()}, {platform.system()}, {usable_cores()} cores",
    }


class LargeForecast(Record):
    """What the answers that are missing take."""

    model: str
    n_requests: dict[str, int]
    """Requests to send, by split."""
    n_recorded: int
    """Answers that are recorded already and will not be asked again."""
    prompt_tokens: Range
    answer_tokens: Range
    cost_usd: Range | None
    """For all requests; None if it has no price, or is paid by machine time and no earlier answer tells how long."""
    seconds: Range | None
    """Time of all requests; None if no earlier answer is recorded."""
    spent_usd: float
    """What the recorded answers cost."""
    max_usd: float | None
    """Most that all answers may cost, `large.max_usd`."""

    @property
    def n(self) -> int:
        return sum(self.n_requests.values())

    @property
    def in_words(self) -> str:
        recorded = f"{self.n_recorded:,} answers are recorded" if self.n_recorded else ""
        if not self.n:
            return f"{recorded or 'no rows to ask'}, so {self.model} is not asked"
        parts = ", ".join(f"{n:,} {name}" for name, n in self.n_requests.items() if n)
        low, high = (f"{float(f'{n:.2g}'):,.0f}" for n in (self.prompt_tokens.low, self.prompt_tokens.high))
        cost = (
            f"{format_usd(self.cost_usd.low)} to {format_usd(self.cost_usd.high)}" if self.cost_usd else "cost unknown"
        )
        time = f", about {format_seconds(self.seconds)}" if self.seconds else ""
        rest = f"; {recorded} already" if recorded else ""
        read = f"about {low} to {high} tokens to read"
        return f"{self.model} is asked {self.n:,} times ({parts}), {read}, {cost}{time}{rest}"


def forecast_large(file: TaskFile, task: Task, rows: Rows) -> LargeForecast | None:
    """Return what asking takes; None without a large model."""
    large = file.large
    if large is None:
        return None
    engine, path = large.general_engine, recording_path(file, task)
    answered, replayed = _recorded(path), engine is None or bool(large.recorded and path.exists())
    asked: dict[str, list[Example]] = {}
    for part in ("calibration", "test"):
        wanted = () if replayed else sample_rows(getattr(rows, part), large.sample(part)).examples
        asked[part] = [e for e in wanted if request_key(Request(messages=e.messages)) not in answered]
    shots = fixed_shots(rows.train, task, 1)[: large.nearest] if large.nearest else None
    instructions = task.instructions(fixed_shots(rows.train, task, large.shots_per_label) if shots is None else shots)
    examples = [example for part in asked.values() for example in part]
    prompts = [Request(messages=(*instructions, Message(role="user", content=e.text))) for e in examples]
    read = Range(
        low=sum(len(m.content.encode()) // BYTES_PER_TOKEN for p in prompts for m in p.messages),
        high=sum(map(estimate_prompt_tokens, prompts)),
    )
    written = Range(
        low=sum(1 + len(example.answer.encode()) // BYTES_PER_TOKEN for example in examples),
        high=len(examples) * task.max_answer_tokens,
    )
    name = large.endpoint.model if large.endpoint else engine.model.split("/")[-1] if engine else "the large model"
    seconds = _seconds(len(examples), answered.values())
    return LargeForecast(
        model=name,
        n_requests={part: len(rows) for part, rows in asked.items()},
        n_recorded=len(answered),
        prompt_tokens=read,
        answer_tokens=written,
        cost_usd=_cost(file, (read, written), seconds) if examples else Range(low=0.0, high=0.0),
        seconds=seconds,
        spent_usd=sum(row.cost_usd for row in answered.values()),
        max_usd=large.max_usd,
    )


def require_large(file: TaskFile, found: LargeForecast | None) -> None:
    """Raise ConfigError or PriceUnknown if the large model is to be asked and has no key or no price."""
    if file.large is not None and file.large.endpoint and found is not None and found.n:
        EndpointModel(file.large.endpoint, file.prices)  # opens no connection


def large_findings(file: TaskFile, found: LargeForecast | None) -> Iterator[Finding]:
    """Yield a finding if the large model cannot be asked as task.yaml describes it, or costs more than it allows."""
    if file.large is None or found is None or not found.n:
        return
    try:
        require_large(file, found)
    except SmallfirstError as error:
        yield make_finding("fix", f"large model: {error.args[0]}", error.hint or "correct it in task.yaml", n=1)
    least = found.spent_usd + found.cost_usd.low if found.cost_usd else 0.0
    if found.max_usd is not None and least > found.max_usd:
        usd, max_usd = format_usd(least), format_usd(found.max_usd)
        rule = "raise it, or ask fewer rows: large.sample_calibration, large.sample_test"
        yield make_finding("stop", f"large model: {usd} for all answers is above large.max_usd, {max_usd}", rule, n=1)


def _cost(file: TaskFile, tokens: tuple[Range, Range], seconds: Range | None) -> Range | None:
    """Return the price of the tokens, or of the machine's time if that is paid; None if the price is unknown."""
    endpoint = file.large.endpoint if file.large else None
    try:
        if endpoint is not None and is_priced_by_tokens(endpoint, file.prices):
            read, written = tokens
            ends = (tokens_of(round(read.low), round(written.low)), tokens_of(round(read.high), round(written.high)))
            low, high = (file.prices.charge(endpoint.model, n, api_url=endpoint.base_url).usd or 0.0 for n in ends)
            return Range(low=low, high=high)
    except PriceUnknown:
        return None
    return seconds.times(file.prices.machine.cost_usd(1.0)) if seconds else None


def _seconds(n_requests: int, earlier: Iterable[RecordedAnswer]) -> Range | None:
    """Return the time of so many requests side by side: from half to twice the median of earlier answers."""
    latencies = [row.latency_ms for row in earlier]
    if not latencies or not n_requests:
        return None
    each = statistics.median(latencies) / 1000 / CONCURRENCY
    return Range(low=n_requests * each / 2, high=2 * n_requests * each)


def _recorded(path: Path) -> dict[str, RecordedAnswer]:
    """Return the recorded answers by the key of their request; none where `record` would mend the file first."""
    try:
        return {answer.key: answer for answer in read_recording(path)[1]}
    except (DataError, OSError):
        return {}
