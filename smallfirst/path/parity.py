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
from typing import TYPE_CHECKING, NamedTuple

from smallfirst.base.errors import GateFailed, StageMissing
from smallfirst.base.progress import one_line
from smallfirst.base.records import Record
from smallfirst.base.sync import run_sync
from smallfirst.data.dataset import Message, sample_rows
from smallfirst.models.protocol import probed_model
from smallfirst.models.remote.http import ConnectionBroken, HttpSession, ResponseTimeout
from smallfirst.path.project.project import Project, load_small, small_engine
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.registry import versions
from smallfirst.registry.versions import ModelVersion
from smallfirst.tasks.task import Task

if TYPE_CHECKING:
    from smallfirst.serving.app import Address

PARITY, VLLM_PARITY = "parity.json", "parity-vllm.json"
"""Files attached to the version, whatever the result: on PyTorch, and on the vLLM of its task."""
MOST_ROWS, MOST_WRITTEN = 200, 50
"""Rows with closed answers to ask, and with generated ones, which take longer; drawn by content hash: the same rows
every time."""
CONFIDENCE_TOLERANCE = 0.05
"""Allowed difference of confidences, in [0, 1]; bf16 alone moved those of Banking77 by up to 0.017."""
TIE_MARGIN = 0.02
"""Two labels whose confidences, when measured and when served, differ by less than this are a tie."""
MOST_TIES = 0.02
"""Share of the rows, in [0, 1], that may be ties (one row always may)."""
_SPLIT, _CONCURRENCY, _TIMEOUT_S, _SHOWN = "calibration", 8, 120.0, 20


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
    why: str
    """The difference, in one clause."""
    tie: bool = False
    """True if both labels had nearly the same confidence."""


class ParityResult(Record):
    """The result of a parity check."""

    model: str
    """The served name that was asked."""
    version: int | None = None
    """Version in the registry whose answers were expected; None if not given."""
    n: int
    """Rows asked."""
    n_same: int
    """Rows with the measured answer and confidence."""
    n_ties: int
    """Rows with another label of nearly the same confidence."""
    largest_gap: float | None
    """Largest difference between confidences of equal answers, in [0, 1]; None if none were compared."""
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
        for row in self.differences[:_SHOWN]:
            lines.append(f"  {'tie ' if row.tie else 'DIFF'}  {row.why}: expected {row.expected!r}, got {row.got!r}")
            lines.append(f"        {row.text}")
        more = len(self.differences) - _SHOWN
        return [*lines, f"  and {more} more in {PARITY}"] if more > 0 else lines


class ParityFailed(GateFailed):
    """The served model does not answer as the measured one did."""


def parity_stage(project: Project, run_folder: RunFolder, version: ModelVersion, candidate: str) -> ParityResult:
    """Check the version through the real server and attach the result to it as `parity.json`.

    Call it between `versions.register` and `versions.promote`. Raises ParityFailed naming the rows that differ,
    StageMissing if the candidate was not evaluated, RegistryError if the version's files are damaged.
    """
    found = served_parity(project, run_folder, version, candidate)
    project.progress.log(f"parity: {found.in_words[0]}")
    return require_parity(found)


def require_parity(found: ParityResult) -> ParityResult:
    """Return the result if it passed, else raise ParityFailed."""
    if found.passed:
        return found
    raise ParityFailed(
        "\n".join(["the served model does not answer as the measured one", *found.in_words]),
        hint="the version is registered, not live; look at the rows, then evaluate and promote again",
    )


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
    from smallfirst.serving.app import serve_on_loopback

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
        filename = VLLM_PARITY if engine else PARITY
        versions.attach(version.name, version.version, filename, found.model_dump_json(indent=2).encode())
    return found


def parity_rows(
    project: Project, run_folder: RunFolder, candidate: str, n_rows: int | None = None
) -> tuple[ParityRow, ...]:
    """Return evaluated calibration rows of a candidate, at most `n_rows` (None: as many as promotion asks).

    Raises StageMissing if there are none.
    """
    evaluation, closed = run_folder.evaluation(candidate, _SPLIT), bool(project.task.closed)
    known = evaluation.by_key if evaluation else {}
    chosen = sample_rows(project.rows.calibration, n_rows or (MOST_ROWS if closed else MOST_WRITTEN)).examples
    # The confidence of a written answer moves in steps, so that rounding alone can move it far.
    rows = tuple(
        ParityRow(row.key, example.messages, row.answer, row.confidence if closed else None)
        for example in chosen
        if (row := known.get(example.key))
    )
    if not rows:
        raise StageMissing(
            f"{candidate} was not evaluated on today's {_SPLIT} rows", hint="smallfirst evaluate task.yaml"
        )
    return rows


async def check_parity(address: Address, model: str, rows: Sequence[ParityRow], *, task: Task) -> ParityResult:
    """Ask an endpoint `rows` and compare its answers with the measured ones; a refused one is a difference."""
    session = HttpSession(
        address.base_url.rstrip("/"), key=address.key, timeout_s=_TIMEOUT_S, max_connections=_CONCURRENCY
    )
    try:
        found = await asyncio.gather(*(_compare(session, model, row, task) for row in rows))
    finally:
        await session.aclose()
    differences = tuple(one for one, _ in found if one is not None)
    n_ties = sum(one.tie for one in differences)
    return ParityResult(
        model=model,
        n=len(rows),
        n_same=len(rows) - len(differences),
        n_ties=n_ties,
        largest_gap=max((gap for _, gap in found if gap is not None), default=None),
        differences=differences,
        passed=bool(rows) and len(differences) == n_ties <= max(1, MOST_TIES * len(rows)),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


async def _compare(
    session: HttpSession, model: str, row: ParityRow, task: Task
) -> tuple[ParityDifference | None, float | None]:
    """Return the difference, if any, and the gap between the confidences of equal answers."""
    text, said, why = await _ask(session, model, row.messages)
    got, tie, apart = None if text is None else task.parse(text), False, None
    if row.confidence is not None and said is not None:
        apart = abs(row.confidence - said)
    if not why and got != row.answer:
        why = "another answer"
        if got is not None and apart is not None and apart < TIE_MARGIN:
            # Of two labels with nearly the same confidence each has one of one half at most.
            tie = (row.confidence or 0.0) <= (1 + TIE_MARGIN) / 2
            why = f"another label, with nearly the same confidence ({apart:.4f} apart)" if tie else why
    elif not why and apart is not None and apart > CONFIDENCE_TOLERANCE:
        why = f"the same answer, but confidence {said:.3f} instead of {row.confidence:.3f}"
    gap = apart if got == row.answer else None
    if not why:
        return None, gap
    question = next((m.content for m in reversed(row.messages) if m.role == "user"), "")
    shown = got if got is not None else text
    difference = ParityDifference(
        key=row.key,
        text=one_line(question),
        expected=row.answer and one_line(row.answer),
        got=shown and one_line(shown),
        why=why,
        tie=tie,
    )
    return difference, gap


async def _ask(session: HttpSession, model: str, messages: Sequence[Message]) -> tuple[str | None, float | None, str]:
    """Return the answer, the confidence where one is reported, and why there is no answer."""
    body = {"model": model, "messages": [{"role": one.role, "content": one.content} for one in messages]}
    try:
        response = await session.post("/chat/completions", json.dumps(body).encode())
        content = await response.read()
        if response.status != 200:
            return None, None, f"HTTP {response.status}: {one_line(content.decode(errors='replace'))}"
        found = json.loads(content)
        return found["choices"][0]["message"]["content"], (found.get("smallfirst") or {}).get("confidence"), ""
    except (ConnectionBroken, ResponseTimeout) as failure:
        return None, None, f"no answer ({type(failure).__name__})"
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return None, None, "the response is not a chat completion"
