"""Heads and gain are learnt on selection rows, kept only where they help, and change confidences, not answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.progress import Progress
from smallfirst.data.dataset import Example
from smallfirst.measuring.out_of_fold import FoldAnswers, RawAnswer
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Chunk, Completion, Request, stream_in_one_chunk
from smallfirst.models.recorded import record
from smallfirst.path.confidence_heads import (
    ConfidenceHeads,
    HeldOut,
    fit_gain,
    fit_heads,
    foreign_drafts,
    head_confidences,
    load_gain,
    with_confidences,
)
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import LargeConfig, read_task_file
from smallfirst.routing.confidence_head import DraftHead
from smallfirst.routing.domain import fit_task_profile
from smallfirst.routing.router import Stage

LABELS = ("billing", "delivery")


def number(text: str) -> int:
    return int(text.split()[1])


class Words:
    """Right on even rows, on odd ones it says the other label; always sure."""

    capabilities: frozenset[Capability] = frozenset()

    name = "words"

    async def complete(self, request: Request) -> Completion:
        n = number(request.text)
        label = LABELS[0] if n % 2 == 0 else LABELS[1]
        return Completion(text=label, answered_by=self.name, latency_ms=1.0, cost_usd=0.0, confidence=0.8)

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        return stream_in_one_chunk(self, request)

    async def aclose(self) -> None:
        """Holds nothing."""


async def record_large(of: Project, path: Path, rows: Sequence[Example]) -> None:
    """A large model that says billing to everything, recorded on some rows."""
    requests = [Request(messages=example.messages) for example in rows]
    header = {"model": "large", "made_at": "2026-01-01", "smallfirst": "0", "n": len(requests)}
    await record(Small(), requests, path, header=header)


class Small(Words):
    """Always says billing with the same confidence: only the words' view tells when it is wrong."""

    name = "small"

    async def complete(self, request: Request) -> Completion:
        found = await super().complete(request)
        return found.model_copy(update={"text": LABELS[0], "confidence": 0.7})


def project(folder: Path) -> Project:
    """Every row is answered as the words say."""
    for part, n in (("train", 40), ("validation", 400), ("test", 10)):
        rows = [{"text": f"{part} {i}", "label": LABELS[i % 2]} for i in range(n)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {part: f"{part}.jsonl" for part in ("train", "validation", "test")}
    file = {"name": "desk", "labels": list(LABELS), "data": data, "routing": {"selection_share": 0.6}}
    (folder / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return Project.read(read_task_file(folder / "task.yaml"), Progress(quiet=True))


def test_a_head_that_sees_the_cheaper_draft_parts_right_from_wrong(tmp_path: Path) -> None:
    of, stages = project(tmp_path), (Stage("words", Words()), Stage("small", Small()))
    heads, held = asyncio.run(fit_heads(of, stages))
    assert set(heads.by_stage) == {"small"}  # words are always right: nothing to learn
    assert [stage.head for stage in heads.on(stages)] == [None, heads.by_stage["small"]]
    assert held.rows == of.rows.selection
    assert len(held.drafts["small"]) == len(of.rows.selection)
    found = asyncio.run(head_confidences(heads, stages, of.rows.calibration))
    assert set(found) == {"small"}
    sure = {e.text: found["small"][e.key] for e in of.rows.calibration.examples}
    assert min(v for text, v in sure.items() if number(text) % 2 == 0) > 0.9
    assert max(v for text, v in sure.items() if number(text) % 2) < 0.1
    assert ConfidenceHeads.model_validate_json(heads.model_dump_json()) == heads


def test_without_a_head_nothing_is_asked_and_nothing_changes(tmp_path: Path) -> None:
    of, stages = project(tmp_path), (Stage("small", Words()),)
    heads, _ = asyncio.run(fit_heads(of, stages))
    assert heads == ConfidenceHeads()  # always right shows nothing
    assert asyncio.run(head_confidences(heads, stages, of.rows.calibration)) == {}
    assert ConfidenceHeads(by_stage={"x": DraftHead()}).on(stages)[0].head is None


def folds_of_small(of: Project) -> FoldAnswers:
    """Return out-of-fold answers of a model that is right and sure about even numbers alone."""
    rows = of.rows.development
    right = [number(example.text) % 2 == 0 for example in rows.examples]
    first = [(LABELS.index(e.answer) == 0) is ok for e, ok in zip(rows.examples, right, strict=True)]
    answers = [RawAnswer(nats=(-0.01, -4.6) if one else (-4.6, -0.01)) for one in first]
    return FoldAnswers.fit(answers, rows, Manifest(kind="words", task=of.task, base=""), 5)


def test_heads_are_fitted_on_out_of_fold_answers_where_every_stage_has_them(tmp_path: Path) -> None:
    apart, small, words = project(tmp_path), Stage("small", Small()), Stage("words", Words())
    folds = {"small": folds_of_small(apart)}
    data = apart.file.data.model_copy(update={"exchangeable": True})
    of = apart._replace(file=apart.file.model_copy(update={"data": data}))
    _, held = asyncio.run(fit_heads(of, (small,), folds=folds))
    assert held.rows == of.rows.development
    assert [one.text for one in held.drafts["small"]] == [one.text for one in folds["small"].completions("small")]
    # The words have seen the training rows: only selection rows are left for both.
    _, both = asyncio.run(fit_heads(of, (words, small), folds=folds))
    assert both.rows == of.rows.selection
    assert both.drafts["small"] == held.drafts["small"][-len(both.rows) :]
    # Of files of their own, training rows may be unlike those that certify.
    _, own = asyncio.run(fit_heads(apart, (small,), folds=folds))
    assert (own.rows, own.drafts["small"]) == (both.rows, both.drafts["small"])


class Chatty(Words):
    """Answers any request, always sure; own rows are right."""

    async def complete(self, request: Request) -> Completion:
        own = request.text.split()[0] in ("train", "validation", "test")
        label = LABELS[number(request.text) % 2] if own else LABELS[0]
        return Completion(text=label, answered_by=self.name, latency_ms=1.0, cost_usd=0.0, confidence=0.8)


def test_foreign_requests_lower_the_confidence_with_which_a_draft_is_served(tmp_path: Path) -> None:
    of, stages = project(tmp_path), (Stage("small", Chatty()),)
    profile = fit_task_profile(of.rows.train, of.rows.selection)
    heads, _ = asyncio.run(fit_heads(of, stages, profile))
    (served,) = heads.on(stages)
    assert served.acceptance == heads.acceptance["small"]
    own = asyncio.run(head_confidences(heads, stages, of.rows.calibration, profile=profile))["small"]
    foreign = asyncio.run(foreign_drafts(of, heads, stages, profile))
    assert len(foreign.confidence[0]) > 40
    lower = [value < min(own.values()) - 0.1 for value in foreign.confidence[0]]  # though the model is as sure of both
    assert sum(lower) > 0.8 * len(lower)
    assert foreign.n_outside > 0.8 * len(lower)
    assert asyncio.run(foreign_drafts(of, ConfidenceHeads(), stages, profile)).confidence == []


def test_confidences_are_rewritten_by_row_and_answers_stay() -> None:
    row = evaluated_row("a", "g", "g", confidence=0.5)
    made = evaluation_of([row, row.model_copy(update={"key": "b"})], split="calibration")
    changed = with_confidences(made, {"a": 0.9, "b": 0.1})
    assert [(r.confidence, r.answer) for r in changed.rows] == [(0.9, "g"), (0.1, "g")]
    assert with_confidences(made, {}) is made


def test_the_gain_is_fitted_on_selection_rows_and_kept(tmp_path: Path) -> None:
    of = project(tmp_path)
    drafts = [asyncio.run(Small().complete(Request(messages=e.messages))) for e in of.rows.selection.examples]
    assert load_gain(tmp_path) is None
    found = asyncio.run(fit_gain(of, HeldOut(of.rows.selection, {"small": drafts}), "small", tmp_path))
    again = load_gain(tmp_path)
    assert again is not None
    assert again.fitted == found.fitted
    assert again.score(["validation 7"]).tolist() == found.score(["validation 7"]).tolist()
    assert set(found.fitted.models) == {"small"}  # no large model: taken to be always right


def test_only_recorded_answers_of_the_large_model_count(tmp_path: Path) -> None:
    of = project(tmp_path)
    rows = of.rows.selection.examples
    asked = rows[: len(rows) // 2]
    asyncio.run(record_large(of, tmp_path / "large.jsonl", asked))
    large = LargeConfig(recorded=tmp_path / "large.jsonl")
    with_large = of._replace(file=of.file.model_copy(update={"large": large}))
    drafts = [asyncio.run(Small().complete(Request(messages=e.messages))) for e in rows]
    found = asyncio.run(fit_gain(with_large, HeldOut(of.rows.selection, {"small": drafts}), "small", tmp_path))
    known = found.fitted.models["large"]
    right = [number(example.text) % 2 == 0 for example in asked]
    assert (known.n_rows, known.rate) == (len(asked), sum(right) / len(right))
