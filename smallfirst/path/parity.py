"""The parity check: a served version must answer as the measured model did, row by row over HTTP, before it goes live.

A served model can differ from the measured one without a change of the weights: incomplete files, another prompt or
chat template, labels in another order, a missing temperature, an engine that rounds differently. So evaluation rows are
sent to the real server, with the version's files from the registry, and the answers are compared with the measured
ones: up to 200 labels, or 50 generated answers.

Sums of bf16 products depend on their order, so a row whose two best labels are nearly equal may change from one batch
to the next. Then both are given with nearly the same confidence, of one half at most: such a row is a tie. It is shown
and counted, and a few of them do not fail the check.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from smallfirst.base.errors import GateFailed, StageMissing
from smallfirst.base.progress import one_line
from smallfirst.base.records import Record
from smallfirst.base.sync import run_sync
from smallfirst.data.dataset import Message, sample_rows
from smallfirst.models.protocol import probed_model
from smallfirst.models.remote.http import ConnectionBroken, HttpSession, ResponseTimeout
from smallfirst.models.remote.responses import did_nothing
from smallfirst.path.project.project import Project, load_small, small_engine
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.registry import versions
from smallfirst.registry.versions import ModelVersion
from smallfirst.tasks.task import Task

if TYPE_CHECKING:
    from smallfirst.serving.loopback import Address

PARITY, VLLM_PARITY = "parity.json", "parity-vllm.json"
"""Files attached to the version, whatever the result: on PyTorch, and on the vLLM of its task."""
MOST_ROWS = 200
"""Rows with closed answers to ask, drawn by content hash: the same rows every time."""
MOST_WRITTEN = 50
"""Rows with generated answers to ask; these take longer."""
CONFIDENCE_TOLERANCE = 0.05
"""Allowed difference of confidences, in [0, 1]; bf16 alone moved those of Banking77 by up to 0.017."""
TIE_MARGIN = 0.02
"""Two labels whose confidences, when measured and when served, differ by less than this are a tie."""
MOST_TIES = 0.02
"""Share of the rows, in [0, 1], that may be ties (one row always may)."""
_SPLIT = "calibration"
_CONCURRENCY = 8
_MAX_ATTEMPTS = 4
_TIMEOUT_S = 120.0


class ParityRow(NamedTuple):
    """A row to ask."""

    key: str
    messages: tuple[Message, ...]
    answer: str | None
    confidence: float | None
    """Its measured confidence, in [0, 1]; None where confidences are not compared."""


class ParityDifference(Record):
    """A row whose served answer differs from the measured one."""

    key: str
    """The row's content key."""
    text: str
    """The question, shortened."""
    expected: str | None
    """The measured answer, shortened; None if the model gave none."""
    got: str | None
    """The served answer, shortened; None if it gave none."""
    expected_confidence: float | None
    """In [0, 1]."""
    got_confidence: float | None
    """In [0, 1]."""
    why: str
    """The difference, in one clause."""
    tie: bool = False
    """True if both labels had nearly the same confidence."""


class ParityResult(Record):
    """The result of a parity check."""

    model: str
    """The served name that was asked."""
    version: int | None
    """Version in the registry whose answers were expected; None if not given."""
    split: str
    n: int
    """Rows asked."""
    n_same: int
    """Rows with the measured answer and confidence."""
    n_ties: int
    """Rows with another label of nearly the same confidence."""
    largest_gap: float | None
    """Largest difference between confidences of equal answers, in [0, 1]; None if none were compared."""
    tie_margin: float = TIE_MARGIN
    """Difference of probabilities below which answers were a tie."""
    confidence_tolerance: float = CONFIDENCE_TOLERANCE
    """Allowed difference of confidences."""
    differences: tuple[ParityDifference, ...] = ()
    """Every row that differs, ties included."""
    passed: bool
    """True if only a few ties differ."""
    at: str
    """Time in ISO 8601, UTC."""
    engine: str = ""
    """What ran the served model (`small_engine`); empty: PyTorch in the server's process, or a server of its own."""

    @property
    def in_words(self) -> list[str]:
        """The result and the differing rows, one line each."""
        gap = "" if self.largest_gap is None else f", confidences at most {self.largest_gap:.4f} apart"
        ties = f", {self.n_ties} of the others ties" if self.n_ties else ""
        lines = [f"{self.model}: {self.n_same} of {self.n} rows answered as measured{gap}{ties}"]
        for row in self.differences[:20]:
            lines.append(f"  {'tie ' if row.tie else 'DIFF'}  {row.why}: expected {row.expected!r}, got {row.got!r}")
            lines.append(f"        {row.text}")
        more = len(self.differences) - 20
        return [*lines, f"  and {more} more in {PARITY}"] if more > 0 else lines


class EndpointReply(NamedTuple):
    """The reply to one conversation."""

    text: str | None
    """The answer; None if there is none."""
    confidence: float | None = None
    """The endpoint's confidence, in [0, 1]; None where it reports none."""
    error: str = ""
    """Why there is no answer."""


class ParityFailed(GateFailed):
    """The served model does not answer as the measured one did."""


async def check_parity(address: Address, model: str, rows: Sequence[ParityRow], *, task: Task) -> ParityResult:
    """Ask an endpoint `rows` and compare its answers with the measured ones; a refused one is a difference."""
    served = await ask_all(address, model, [row.messages for row in rows])
    found = [_compare(row, reply, task) for row, reply in zip(rows, served, strict=True)]
    differences = tuple(one for one, _ in found if one is not None)
    n_ties = sum(one.tie for one in differences)
    return ParityResult(
        model=model,
        version=None,
        split=_SPLIT,
        n=len(rows),
        n_same=len(rows) - len(differences),
        n_ties=n_ties,
        largest_gap=max((gap for _, gap in found if gap is not None), default=None),
        differences=differences,
        passed=bool(rows) and len(differences) == n_ties <= max(1, MOST_TIES * len(rows)),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def parity_stage(project: Project, run_folder: RunFolder, version: ModelVersion, candidate: str) -> ParityResult:
    """Check the version through the real server and attach the result to it as `parity.json`.

    Call it between `versions.register` and `versions.promote`. Raises ParityFailed naming the rows that differ,
    StageMissing if the candidate was not evaluated, RegistryError if the version's files are damaged.
    """
    found = served_parity(project, run_folder, version, candidate)
    project.progress.log(f"parity: {found.in_words[0]}")
    return require_parity(found)


def served_parity(
    project: Project,
    run_folder: RunFolder,
    version: ModelVersion,
    candidate: str,
    *,
    n_rows: int | None = None,
    at: tuple[Address, str] | None = None,
) -> ParityResult:
    """Return how the endpoint and served name of `at`, else a server of the version, answers `n_rows`.

    The result of the latter on all that promotion asks is attached to the version.
    """
    from smallfirst.serving.loopback import serve_on_loopback

    name = f"{project.file.name}-small"
    rows = parity_rows(project, run_folder, candidate, n_rows)
    if at is not None:
        found = asyncio.run(check_parity(*at, rows, task=project.task))
        return found.model_copy(update={"version": version.version})
    folder = versions.resolve(f"{version.name}/{version.version}").folder
    small, engine = load_small(project.file, folder, name=name), small_engine(project.file)
    if engine and (probed := probed_model(small)):
        run_sync(probed.ready())  # or the first rows would wait for the engine's start, which takes minutes
    with serve_on_loopback({name: small}) as address:
        found = asyncio.run(check_parity(address, name, rows, task=project.task))
    found = found.model_copy(update={"version": version.version, "engine": engine})
    if n_rows is None:
        filename = VLLM_PARITY if found.engine else PARITY
        versions.attach(version.name, version.version, filename, found.model_dump_json(indent=2).encode())
    return found


def require_parity(found: ParityResult) -> ParityResult:
    """Return the result if it passed, else raise ParityFailed."""
    if found.passed:
        return found
    raise ParityFailed(
        "\n".join(["the served model does not answer as the measured one", *found.in_words]),
        hint="the version is registered, not live; look at the rows, then evaluate and promote again",
    )


def parity_rows(
    project: Project, run_folder: RunFolder, candidate: str, n_rows: int | None = None
) -> tuple[ParityRow, ...]:
    """Return evaluated calibration rows of a candidate, at most `n_rows` (None: as many as promotion asks).

    Raises StageMissing if there are none.
    """
    evaluation = run_folder.evaluation(candidate, _SPLIT)
    if evaluation is None:
        raise StageMissing(f"{candidate} was not evaluated on {_SPLIT} rows", hint="smallfirst evaluate task.yaml")
    most = n_rows or (MOST_ROWS if project.task.closed else MOST_WRITTEN)
    chosen = sample_rows(project.rows.calibration, most).examples
    known = [(example.messages, row) for example in chosen if (row := evaluation.by_key.get(example.key))]
    # The confidence of a written answer moves in steps, so that rounding alone can move it far.
    closed = bool(project.task.closed)
    rows = tuple(ParityRow(row.key, said, row.answer, row.confidence if closed else None) for said, row in known)
    if not rows:
        raise StageMissing(
            f"none of today's {_SPLIT} rows is among those {candidate} was evaluated on",
            hint="smallfirst evaluate task.yaml",
        )
    return rows


def _compare(row: ParityRow, reply: EndpointReply, task: Task) -> tuple[ParityDifference | None, float | None]:
    """Return the difference, if any, and the gap between the confidences of equal answers."""
    got = None if reply.text is None else task.parse(reply.text)
    both = row.confidence is not None and reply.confidence is not None
    apart = abs((row.confidence or 0.0) - (reply.confidence or 0.0)) if both else None
    tie, gap, why = False, apart if got == row.answer else None, reply.error
    if not why and got != row.answer:
        why = "another answer"
        if got is not None and apart is not None and apart < TIE_MARGIN:
            tie = (row.confidence or 0.0) <= (1 + TIE_MARGIN) / 2
            why = f"another label, with nearly the same confidence ({apart:.4f} apart)" if tie else why
    elif not why and gap is not None and gap > CONFIDENCE_TOLERANCE:
        why = f"the same answer, but confidence {reply.confidence:.3f} instead of {row.confidence:.3f}"
    if not why:
        return None, gap
    text = next((m.content for m in reversed(row.messages) if m.role == "user"), "")
    shown = got if got is not None else reply.text
    difference = ParityDifference(
        key=row.key,
        text=one_line(text),
        expected=row.answer and one_line(row.answer),
        got=shown and one_line(shown),
        expected_confidence=row.confidence,
        got_confidence=reply.confidence,
        why=why,
        tie=tie,
    )
    return difference, gap


async def ask_all(address: Address, model: str, conversations: Sequence[Sequence[Message]]) -> list[EndpointReply]:
    """Return one reply to each conversation, in order. Raise nothing for what the endpoint does."""
    session = HttpSession(
        address.base_url.rstrip("/"), key=address.key, timeout_s=_TIMEOUT_S, max_connections=_CONCURRENCY
    )

    async def ask(messages: Sequence[Message]) -> EndpointReply:
        body = {"model": model, "messages": [{"role": one.role, "content": one.content} for one in messages]}
        return await _ask(session, json.dumps(body).encode())

    try:
        return list(await asyncio.gather(*map(ask, conversations)))
    finally:
        await session.aclose()


async def _ask(session: HttpSession, body: bytes) -> EndpointReply:
    error = ""
    for attempt in range(_MAX_ATTEMPTS):
        try:
            response = await session.post("/chat/completions", body)
            content = await response.read()
            if response.status == 200:
                return _parse(json.loads(content))
        except (ConnectionBroken, ResponseTimeout, ValueError) as failure:
            return EndpointReply(None, error=f"no answer ({type(failure).__name__})")
        error = f"HTTP {response.status}: {one_line(content.decode(errors='replace'))}"
        if not did_nothing(response.status, response.header("retry-after")):
            break
        await asyncio.sleep(2.0**attempt / 2)
    return EndpointReply(None, error=error)


def _parse(body: Any) -> EndpointReply:
    try:
        extension = body.get("smallfirst") or {}
        return EndpointReply(body["choices"][0]["message"]["content"], extension.get("confidence"))
    except (AttributeError, KeyError, IndexError, TypeError):
        return EndpointReply(None, error="the response is not a chat completion")
