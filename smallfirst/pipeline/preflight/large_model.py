"""What asking the large model will take, before it is asked: requests, tokens, USD and time.

Prompts are those that would be sent (with `large.nearest`, other examples of usual length in their place). Tokens are
estimated from bytes; an answer has as many as the rows' own answers at least, and as many as it may have at most.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

from smallfirst.data.dataset import Example, Message, sample_rows
from smallfirst.data.findings import Finding, make_finding
from smallfirst.errors import DataError, PriceUnknown, SmallfirstError
from smallfirst.models.few_shot import fixed_shots
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import CONCURRENCY, RecordedAnswer, read_recording, request_key
from smallfirst.models.remote.model import EndpointModel, is_priced_by_tokens
from smallfirst.models.usage import BYTES_PER_TOKEN, estimate_prompt_tokens
from smallfirst.paths import state_folder
from smallfirst.pipeline.large_model import n_second_answers, recording_path, second_recording_path
from smallfirst.pricing.charge import format_usd
from smallfirst.pricing.tokens import tokens_of
from smallfirst.project.rows import Rows
from smallfirst.project.task_file import TaskFile
from smallfirst.records import Record
from smallfirst.tasks.task import Task
from smallfirst.training.estimates import Range, format_seconds


class LargeForecast(Record):
    """What the answers that are missing take."""

    model: str
    n_requests: dict[str, int]
    """Requests to send: `calibration`, `test`, and `again` for second answers to test rows."""
    n_recorded: int
    """Answers that are recorded already and will not be asked again."""
    prompt_tokens: Range
    answer_tokens: Range
    cost_usd: Range | None
    """For all requests; None if it has no price, or is paid by machine time and no earlier answer tells how long."""
    seconds: Range | None
    """Time of all requests; None if no earlier answer of the model is recorded."""
    spent_usd: float
    """What the recorded answers cost."""
    max_usd: float | None
    """Most that all answers may cost, `large.max_usd`."""

    @property
    def n(self) -> int:
        """All requests to send."""
        return sum(self.n_requests.values())

    @property
    def in_words(self) -> str:
        recorded = f"{self.n_recorded:,} answers are recorded" if self.n_recorded else ""
        if not self.n:
            return f"{recorded or 'no rows to ask'}, so {self.model} is not asked"
        parts = ", ".join(f"{n:,} {name}" for name, n in self.n_requests.items() if n)
        read = f"about {_rounded(self.prompt_tokens.low)} to {_rounded(self.prompt_tokens.high)} tokens to read"
        cost = "cost unknown"
        if self.cost_usd is not None:
            cost = f"{format_usd(self.cost_usd.low)} to {format_usd(self.cost_usd.high)}"
        time = f", about {format_seconds(self.seconds)}" if self.seconds else ""
        rest = f"; {recorded} already" if recorded else ""
        return f"{self.model} is asked {self.n:,} times ({parts}), {read}, {cost}{time}{rest}"


def _rounded(n: float) -> str:
    return f"{float(f'{n:.2g}'):,.0f}"


def forecast_large(file: TaskFile, task: Task, rows: Rows) -> LargeForecast | None:
    """Return what asking takes; None without a large model."""
    large = file.large
    if large is None:
        return None
    engine = large.general_engine
    first, again = recording_path(file, task), second_recording_path(file, task)
    answered, repeated = _recorded(first), _recorded(again)
    wanted = {part: sample_rows(getattr(rows, part), large.sample(part)) for part in ("calibration", "test")}
    wanted["again"] = sample_rows(rows.test, n_second_answers(file))
    known = {name: repeated if name == "again" else answered for name in wanted}
    replayed = engine is None or bool(large.recorded and first.exists())
    missing: dict[str, list[Example]] = {
        name: []
        if engine is None or (replayed and name != "again")
        else [e for e in data.examples if request_key(Request(messages=e.messages)) not in known[name]]
        for name, data in wanted.items()
    }
    shots = fixed_shots(rows.train, task, 1)[: large.nearest] if large.nearest else None
    instructions = task.instructions(fixed_shots(rows.train, task, large.shots_per_label) if shots is None else shots)
    examples = [example for part in missing.values() for example in part]
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
    seconds = _seconds(len(examples), [*answered.values()] or _answers_of(name))
    return LargeForecast(
        model=name,
        n_requests={part: len(rows) for part, rows in missing.items()},
        n_recorded=len(answered) + len(repeated),
        prompt_tokens=read,
        answer_tokens=written,
        cost_usd=_cost(file, (read, written), seconds) if examples else Range(low=0.0, high=0.0),
        seconds=seconds,
        spent_usd=sum(row.cost_usd for row in (*answered.values(), *repeated.values())),
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


def _answers_of(model: str) -> list[RecordedAnswer]:
    """Return the answers of a model to another task of this state folder; none if there are none."""
    for path in sorted((state_folder() / "recordings").glob("*/*.jsonl")):
        try:
            header, answers = read_recording(path)
        except (DataError, OSError):
            continue  # it only does not help
        if header.model == model:
            return [*answers]
    return []


def _recorded(path: Path) -> dict[str, RecordedAnswer]:
    """Return the recorded answers by the key of their request; none where `record` would mend the file first."""
    try:
        return {answer.key: answer for answer in read_recording(path)[1]}
    except (DataError, OSError):
        return {}
