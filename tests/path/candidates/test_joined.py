"""A tagger and a language model in one answer: each learns its own fields, the confidence is that of both."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import task_of

from smallfirst.models.loading import load_model
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Completion, Request
from smallfirst.models.spans.joined import JoinedModel, nats
from smallfirst.path.candidates.joined import TAGGER_AND_SMALL
from smallfirst.path.candidates.tuned import TAGGER
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("module_home")


def project_of(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Project:
    return task_of(folder, {"train": rows, "validation": rows, "test": rows}, kind="extract", **more)


def order(n: int, **more: str) -> dict[str, Any]:
    return {"text": f"my card {n} is late", "target": {"reply": f"sorry {n + 1}", "order": str(n), **more}}


def test_it_suits_where_some_fields_stand_in_the_text_and_others_do_not(tmp_path: Path) -> None:
    assert TAGGER_AND_SMALL.why_unsuitable(project_of(tmp_path, [order(n) for n in range(50)])) == ""
    bare = [{"text": f"order {n}", "target": {"order": str(n)}} for n in range(50)]
    assert TAGGER_AND_SMALL.why_unsuitable(project_of(tmp_path, bare)) == "tagger does all"
    written = [{"text": f"order {n}", "target": {"reply": str(n + 1)}} for n in range(50)]
    assert TAGGER_AND_SMALL.why_unsuitable(project_of(tmp_path, written)) == "no field stands in the texts"


def test_both_are_fitted_on_their_own_fields_and_answer_together(
    tmp_path: Path, tiny_encoder_folder: Path, tiny_folder: Path
) -> None:
    training = {"duration": "1ep", "batch_tokens": 256, "max_seq_tokens": 128}
    small = {"encoder": str(tiny_encoder_folder), "encoder_training": {"duration": "1ep"}}
    small |= {"base": str(tiny_folder), "training": training}
    project = project_of(tmp_path, [order(n) for n in range(40)], small=small, max_answer_tokens=8)
    run_folder = RunFolder(tmp_path / "run")
    assert 0 <= TAGGER_AND_SMALL.fit(project, run_folder) <= 1
    folder = run_folder.model_folder(TAGGER_AND_SMALL.name)
    names = {
        name: list(read_manifest(folder / "members" / name).task.json_schema["properties"])
        for name in ("marked", "written")
    }
    assert names == {"marked": ["order"], "written": ["reply"]}
    assert read_manifest(folder).task == project.task

    async def answer() -> Completion:
        model = load_model(folder)
        said = await model.complete(Request.ask(project.rows.test.examples[0].text))
        await model.aclose()
        return said

    said = asyncio.run(answer())
    assert list(json.loads(said.text))[-1] == "order"
    assert "order" in said.field_confidence
    assert said.prompt_tokens > 0
    assert said.confidence is not None
    assert 0 <= said.confidence <= 1
    assert TAGGER.why_unsuitable(project).endswith("that needs writing, which small and tagger_small do")


def test_parts_become_one_answer_and_one_without_json_adds_nothing() -> None:
    def part(text: str, confidence: float) -> Completion:
        return Completion(text=text, answered_by="m", latency_ms=0, cost_usd=0, confidence=confidence)

    parts = [part('{"a": "x"}', 0.5), part('{"b": "ü"', 0.0)]
    assert JoinedModel.join(parts) == '{"a": "x"}'
    assert JoinedModel.join([parts[0], part('{"b": "ü"}', 1)]) == '{"a": "x", "b": "ü"}'
    assert nats(parts) == [pytest.approx(-0.6931, abs=1e-3), -100.0]
