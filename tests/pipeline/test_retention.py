"""The stage that measures what a fine-tune has forgotten: when, how often, and where its figures go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from smallfirst.data.dataset import Dataset
from smallfirst.errors import DataError
from smallfirst.evaluation.retention import run_probe
from smallfirst.gate.gate import Gate
from smallfirst.pipeline import retention as module
from smallfirst.pipeline.retention import (
    FILE_NAME,
    RetentionRecord,
    in_words,
    measure_retention,
    requested_probe,
    saved_retention,
)
from smallfirst.pipeline.run import gate_stage, train_stage
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import SmallConfig, TaskFile, read_task_file
from smallfirst.registry import runs

pytestmark = pytest.mark.usefixtures("module_home")
ANSWERS = ("card", "refund", "late", "exchange", "lost", "pin")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, toy_rows: Dataset) -> TaskFile:
    """A toy task whose gate asks for retention on thirty questions that the untouched tiny model answers right."""
    folder = tmp_path_factory.mktemp("task")
    rows = [{"text": e.text, "label": e.answer} for e in toy_rows.examples]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, easy_for(tiny_folder, folder))), encoding="utf-8")
    training = {"duration": "2ep", "learning_rate": 3e-3, "batch_tokens": 64, "max_seq_tokens": 64}
    values: dict[str, Any] = {
        "name": "toy",
        "data": {"train": "rows.jsonl"},
        "ladder": ["small"],
        "small": {"base": str(tiny_folder), "training": training},
        "gate": {"retention_at_least": 0.5, "retention_prompts": "own.jsonl"},
    }
    (folder / "task.yaml").write_text(json.dumps(values), encoding="utf-8")
    return read_task_file(folder / "task.yaml")


def easy_for(base: Path, folder: Path) -> list[dict[str, Any]]:
    """Questions with the right answer being what the model itself finds likeliest of the six."""
    prompts = [f"{word} number {n}" for word in ("card", "pin", "late", "euro", "help") for n in range(6)]
    tried = [
        {"prompt": prompt, "answer": answer, "wrong": [a for a in ANSWERS if a != answer]}
        for prompt in prompts
        for answer in ANSWERS
    ]
    path = folder / "tried.jsonl"
    path.write_text("\n".join(map(json.dumps, tried)), encoding="utf-8")
    right = run_probe(module.read_probe(path), base, name="tiny").right
    return [question for question, is_right in zip(tried, right, strict=True) if is_right]


@pytest.fixture(scope="module")
def project(file: TaskFile) -> Project:
    return Project.read(file, Progress(quiet=True))


@pytest.fixture(scope="module")
def run_folder(project: Project) -> RunFolder:
    return train_stage(project)


def test_it_is_measured_where_something_asks_for_it(file: TaskFile) -> None:
    silent = file.model_copy(update={"gate": Gate(accuracy_at_least=0.5)})
    assert requested_probe(silent) is None
    asked = silent.model_copy(update={"small": file.small.model_copy(update={"retention": True})})
    assert len(requested_probe(asked).questions) == 72  # type: ignore[union-attr]
    barred = file.model_copy(update={"gate": Gate(retention_at_least=0.5)})
    assert len(requested_probe(barred).questions) == 72  # type: ignore[union-attr]
    own = requested_probe(file)
    assert own is not None
    assert (own.name, len(own.questions)) == ("own.jsonl", 30)


def test_naming_questions_is_no_bar() -> None:
    assert not Gate(retention_prompts=Path("own.jsonl")).has_thresholds
    assert not SmallConfig().retention


def test_what_was_forgotten_is_measured_kept_and_shown_in_mlflow(project: Project, run_folder: RunFolder) -> None:
    found = measure_retention(project, run_folder)
    assert found is not None
    assert found == saved_retention(run_folder)
    measured = RetentionRecord.load(run_folder.path / FILE_NAME)
    assert all(measured.before.right)  # the questions were made so
    assert measured.after.right != measured.before.right
    assert found.right_after is not None
    assert found.kept is not None
    n = sum(measured.after.right)
    assert found.right_after.value == n / 30
    assert found.kept.value == pytest.approx((n - (30 - n) * (1 / 6) / (5 / 6)) / 30)
    run = runs.client().get_run(json.loads((run_folder.path / "run.json").read_text())["run_id"])
    assert run.data.metrics["retention/kept"] == pytest.approx(found.kept.value)
    assert run.data.metrics["retention/difference"] == pytest.approx(n / 30 - 1)
    assert run.data.metrics["retention/right_before"] == 1.0
    assert in_words(found).startswith(f"1.000 right before, {n / 30:.3f} after; kept ")


def test_nothing_is_measured_twice(project: Project, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measure_retention(project, run_folder)
    asked: list[str] = []

    def counting(probe: Any, folder: Path, *, name: str) -> Any:
        asked.append(name)
        return run_probe(probe, folder, name=name)

    monkeypatch.setattr(module, "run_probe", counting)
    assert measure_retention(project, run_folder) == first
    assert asked == []
    (run_folder.path / FILE_NAME).unlink()
    assert measure_retention(project, run_folder) == first
    assert asked == ["toy-small"]  # the base is known from before, whichever run asks
    weights = run_folder.path / "model" / "model.safetensors"
    moved = {name: tensor * 1.5 for name, tensor in load_file(weights).items()}
    shutil.copyfile(weights, run_folder.path / "before")
    save_file(moved, weights, metadata={"format": "pt"})
    measure_retention(project, run_folder)
    assert asked == ["toy-small", "toy-small"]  # other weights, other answers
    shutil.copyfile(run_folder.path / "before", weights)
    assert measure_retention(project, run_folder) == first
    asked.clear()
    own = project.file.small.model_copy(update={"retention": True})
    other = project._replace(file=project.file.model_copy(update={"gate": Gate(accuracy_at_least=0.5), "small": own}))
    measure_retention(other, run_folder)
    assert asked == [project.file.small.base, "toy-small"]  # other questions


def test_a_run_that_nobody_asks_is_left_alone(project: Project, run_folder: RunFolder) -> None:
    (run_folder.path / FILE_NAME).unlink(missing_ok=True)
    silent = project._replace(file=project.file.model_copy(update={"gate": Gate(accuracy_at_least=0.5)}))
    assert measure_retention(silent, run_folder) is None
    assert saved_retention(run_folder) is None


def test_the_gate_holds_the_fine_tuned_model_to_it(project: Project, run_folder: RunFolder) -> None:
    from smallfirst.pipeline.run import evaluate_stage

    evaluate_stage(project, run_folder)
    assert (run_folder.path / FILE_NAME).exists()
    found = measure_retention(project, run_folder)
    assert found is not None
    (line,) = gate_stage(project, run_folder).of("small").checks
    assert line.requirement == "general ability kept at least 0.500"
    assert f"{found.before:.3f} before and {found.after:.3f} after" in line.measured
    small = run_folder.evaluation("small", "test")
    assert small is not None
    run_folder.save_evaluation(small.model_copy(update={"candidate": "words"}))
    (words,) = gate_stage(project, run_folder).of("words").checks
    assert (words.passed, words.measured) == (False, "not measured")  # a linear model has no general ability


def test_questions_that_cannot_be_asked_are_told_before_training(project: Project) -> None:
    bad = project.file.gate.model_copy(update={"retention_prompts": Path("task.yaml")})
    before = list((Path(module.home()) / "tasks" / "toy").glob("*"))
    with pytest.raises(DataError, match=r"task\.yaml"):
        train_stage(project._replace(file=project.file.model_copy(update={"gate": bad})))
    assert list((Path(module.home()) / "tasks" / "toy").glob("*")) == before
