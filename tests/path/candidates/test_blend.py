"""A blend in a run: its folder holds all it needs, and a run goes on without one that gains nothing."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from fixtures.expenses import spent_once
from fixtures.preflight import task_of, things

from smallfirst.models.linear import blend
from smallfirst.models.linear.blend import MEMBERS_FOLDER
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import read_manifest
from smallfirst.models.pricing import PriceBook
from smallfirst.models.protocol import Request
from smallfirst.path.project.candidates import fitted_candidates, get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.train import train_stage


@pytest.fixture
def project(tmp_path: Path, tiny_encoder_folder: Path) -> Project:
    small = {"encoder": str(tiny_encoder_folder)}
    return task_of(tmp_path, {"train": things(90)}, ladder=["blend", "words", "encoder"], small=small)


def test_a_run_leaves_out_a_blend_that_gains_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blend, "choose_weights", lambda of_members, gold: {"words": 1.0})
    filled = [{"key": str(i), "text": "t", "given": "g", "suggested": "s", "answer": "card"} for i in range(2)]
    project.file.path(Path("relabels.jsonl")).write_text("".join(json.dumps(line) + "\n" for line in filled))
    data = project.file.data.model_copy(update={"relabels": Path("relabels.jsonl")})
    project = project._replace(
        file=project.file.model_copy(update={"data": data, "prices": PriceBook(usd_per_label=0.5)})
    )
    run_folder = train_stage(project)
    assert [candidate.name for candidate in fitted_candidates(project, run_folder)] == ["words", "encoder"]
    found = run_folder.fitted()
    labels = {"labels": pytest.approx(2 * 0.5)}  # a person answered two probable label errors
    hours = sum(found.minutes.values()) / 60
    assert spent_once(project.file.folder, "desk") == {"training": pytest.approx(0.1 * hours), **labels}
    assert found.left_out == {"blend": "no blend is better out of fold than words alone"}

    monkeypatch.setattr(blend, "choose_weights", lambda of_members, gold: dict.fromkeys(of_members, 0.5))
    get_candidate("blend").fit(project, run_folder)
    folder = run_folder.model_folder("blend")
    assert sorted(path.name for path in (folder / MEMBERS_FOLDER).iterdir()) == ["encoder", "words"]
    assert read_manifest(folder).weights_fingerprint
    for name in ("words", "encoder"):
        shutil.rmtree(run_folder.model_folder(name))  # a registered version has nothing beside it
    model = load_model(folder)
    assert asyncio.run(model.complete(Request.ask("where is my fee number 3"))).text == "fee"
    asyncio.run(model.aclose())
