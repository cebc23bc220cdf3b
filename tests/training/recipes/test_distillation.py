"""Learning from a teacher: the loss as in Hinton et al., only where answers stand, and only from one who can teach."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.training import Bench, Killed, killing

from smallfirst.errors import ConfigError
from smallfirst.models.manifest import read_manifest, write_manifest
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify
from smallfirst.training.batches import TokenizedRow
from smallfirst.training.causal_lm import CausalBackend, accumulate_gradient
from smallfirst.training.config import TeacherConfig, TrainConfig
from smallfirst.training.loop import MasterAdamW
from smallfirst.training.recipes.distillation import DistillationBackend, check_vocabulary, distillation_loss
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import Run

pytestmark = pytest.mark.usefixtures("module_home")
ROWS = [
    TokenizedRow((0, 5, 9, 300, 301), 4),
    TokenizedRow((0, 7, 300, 301, 302), 3),
    TokenizedRow((0, 11, 12, 300), 3),
    TokenizedRow((0, 4, 300, 301, 302, 303, 304), 2),
]
WRITES = Answer(name="toy")
CONFIG = TrainConfig(duration="3ep", learning_rate=3e-3, batch_tokens=64, max_seq_tokens=64)


@pytest.fixture(scope="module")
def other_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape and tokenizer with other weights."""
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(tiny_folder)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def student(base: Path, teacher_folder: Path, **settings: float) -> tuple[Any, DistillationBackend]:
    """Student and study, both models in fp32."""
    study = DistillationBackend(TeacherConfig(base=str(teacher_folder), **settings), WRITES)
    model, _ = study.load(base, CONFIG)
    study.reader.float()
    return model.float(), study


def gradients(model: Any, step: Callable[[MasterAdamW], float]) -> list[torch.Tensor]:
    optimizer = MasterAdamW(list(model.parameters()), CONFIG)
    loss = step(optimizer)
    return [torch.tensor(loss), *(m.grad for m in optimizer.masters if m.grad is not None)]


def logs_at_targets(model: Any, rows: list[TokenizedRow], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities before each target (targets, vocabulary), row by row, from the whole model."""
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0, row.n_prompt - 1 :]
            found.append((logits.double() / temperature).log_softmax(-1))
    return torch.cat(found)


def test_the_loss_is_the_formula(tiny_folder: Path, other_folder: Path) -> None:
    model, study = student(tiny_folder, other_folder, weight=0.3, temperature=3.0)
    tokens = torch.tensor([token for row in ROWS for token in row.ids[row.n_prompt :]])
    hard = -logs_at_targets(model, ROWS)[torch.arange(len(tokens)), tokens].sum()
    own, theirs = logs_at_targets(model, ROWS, 3.0), logs_at_targets(study.reader, ROWS, 3.0)
    distance = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(theirs, own, strict=True))
    assert distance > 0.1
    expected = 0.7 * float(hard) + 0.3 * 9 * distance
    assert float(study.loss(model, ROWS).detach()) == pytest.approx(expected, rel=1e-4)
    whole = gradients(model, lambda o: study.gradient(model, ROWS, CONFIG, o))
    assert whole[0].item() == pytest.approx(expected / len(tokens), rel=1e-4)


def test_two_tokens_by_hand() -> None:
    # Student (1/2, 1/2), teacher (4/5, 1/5): KL = 0.8 ln 1.6 + 0.2 ln 0.4 at T = 1.
    teacher = TeacherConfig(base="x", weight=0.25, temperature=1.0)
    logits, taught = torch.zeros(1, 2), torch.tensor([[0.8, 0.2]]).log()
    loss = distillation_loss(logits, taught, torch.tensor([1]), teacher)
    assert loss.item() == pytest.approx(0.75 * 0.6931472 + 0.25 * 0.1927450, abs=1e-6)
    # A column that only one of them has is no token.
    wide = torch.cat([taught, torch.tensor([[50.0]])], dim=1)
    assert distillation_loss(logits, wide, torch.tensor([1]), teacher).item() == pytest.approx(loss.item(), abs=1e-6)


def test_a_teacher_that_is_the_student_leaves_plain_cross_entropy(tiny_folder: Path) -> None:
    model, study = student(tiny_folder, tiny_folder, weight=0.4)
    taught = gradients(model, lambda o: study.gradient(model, ROWS, CONFIG, o))
    plain = gradients(model, lambda o: accumulate_gradient(model, ROWS, CONFIG, o))
    assert len(taught) == len(plain) > 10
    for one, other in zip(taught, plain, strict=True):
        torch.testing.assert_close(one, 0.6 * other, atol=1e-5, rtol=1e-4)


def test_micro_batches_and_shared_beginnings_change_nothing(tiny_folder: Path, other_folder: Path) -> None:
    model, study = student(tiny_folder, other_folder)
    start = tuple(range(20, 32))
    rows = [
        TokenizedRow((*start, 5, 300), 13),
        TokenizedRow((*start, 7, 9, 301, 302), 14),
        TokenizedRow((*start, 8, 303), 13),
    ]
    whole = gradients(model, lambda o: study.gradient(model, rows, CONFIG, o))
    cut = CONFIG.model_copy(update={"micro_tokens": 12})
    for one, other in zip(gradients(model, lambda o: study.gradient(model, rows, cut, o)), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_frozen_layers_of_the_student_are_computed_once(tiny_folder: Path, other_folder: Path) -> None:
    _, plain = student(tiny_folder, other_folder)
    model, _ = plain.load(tiny_folder, CONFIG)
    study = DistillationBackend(plain.teacher, WRITES)
    halved, _ = study.load(tiny_folder, CONFIG.model_copy(update={"frozen_layers": 1}))
    study.begin(halved, ROWS, CONFIG)
    own, expected = study.loss(halved, ROWS).detach(), plain.loss(model, ROWS).detach()
    assert float(own) == pytest.approx(float(expected), rel=0.02)  # both in bf16
    with pytest.raises(KeyError):
        study.loss(halved, [TokenizedRow((0, 1, 2, 3), 3)])  # was never put through the frozen layers


def test_prompts_are_never_judged(tiny_folder: Path, other_folder: Path) -> None:
    model, study = student(tiny_folder, other_folder, weight=1.0)
    # Each row's loss is its targets' alone, so a row whose prompt takes all but one token counts that one.
    row = ROWS[3]
    parts = [
        float(study.loss(model, [TokenizedRow(row.ids[: n + 1], n)]).detach())
        for n in range(row.n_prompt, len(row.ids))
    ]
    assert float(study.loss(model, [row]).detach()) == pytest.approx(sum(parts), rel=1e-4)
    together = float(study.loss(model, ROWS).detach())
    assert together == pytest.approx(sum(float(study.loss(model, [r]).detach()) for r in ROWS), rel=1e-4)


def test_the_teacher_does_not_move_and_the_student_comes_nearer(tiny_folder: Path, other_folder: Path) -> None:
    model, study = student(tiny_folder, other_folder, weight=1.0, temperature=1.0)
    before = [p.clone() for p in study.reader.parameters()]

    def distance() -> float:
        theirs, own = logs_at_targets(study.reader, ROWS), logs_at_targets(model, ROWS)
        return float((theirs.exp() * (theirs - own)).sum(-1).mean())

    far = distance()
    optimizer = MasterAdamW([p for p in model.parameters() if p.requires_grad], CONFIG)
    for _ in range(30):
        study.gradient(model, ROWS, CONFIG, optimizer)
        optimizer.step(3e-3)
    assert distance() < 0.2 * far
    assert all(torch.equal(p, q) for p, q in zip(study.reader.parameters(), before, strict=True))
    assert not any(p.requires_grad for p in study.reader.parameters())


def test_another_vocabulary_is_refused_naming_the_difference(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_vocabulary("big", {"a": 0, "b": 2, "x": 3}, {"a": 0, "b": 1, "c": 2, "d": 4, "e": 5, "f": 6})
    said = str(caught.value)
    assert "big has another vocabulary" in said
    assert "1 only in the teacher's: “x”" in said
    assert "4 only in the student's: “c”, “d”, “e”, …" in said
    assert "1 under another number: “b (2, not 1)”" in said
    check_vocabulary("same", {"a": 0, "b": 1}, {"b": 1, "a": 0})
    folder = tmp_path / "more"
    shutil.copytree(tiny_folder, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match="1 only in the teacher's: “zebra”"):
        DistillationBackend(TeacherConfig(base=str(folder)), WRITES).load(tiny_folder, CONFIG)


def test_a_gguf_file_cannot_teach(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "big.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="is a GGUF file here"):
        DistillationBackend(TeacherConfig(base=str(tmp_path / "big.gguf")), WRITES).load(tiny_folder, CONFIG)


@pytest.fixture(scope="module")
def taught_by(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    """A model fine-tuned for the toy task."""
    longer = CONFIG.model_copy(update={"duration": "12ep"})
    return TeacherConfig(base=str(bench.train(longer, tmp_path_factory.mktemp("teacher")).folder))


def test_a_recipe_has_a_teacher_only_where_one_is_named(bench: Bench, taught_by: TeacherConfig, tmp_path: Path) -> None:
    assert type(TaskRecipe(bench.task, bench.rows, bench.selection).backend) is CausalBackend
    short = CONFIG.model_copy(update={"duration": "2ba"})
    runs = [
        bench.train(short, tmp_path / name, teacher=teacher)
        for name, teacher in (("plain", None), ("taught", taught_by))
    ]
    assert runs[0].loss_curve[0] != runs[1].loss_curve[0]


@pytest.mark.parametrize("more", [{}, {"method": "lora", "lora_rank": 4}, {"frozen_layers": 1}])
def test_a_taught_run_that_was_broken_off_reaches_the_same_weights(
    bench: Bench, taught_by: TeacherConfig, tmp_path: Path, more: dict[str, Any]
) -> None:
    config = CONFIG.model_copy(update=more)

    whole = bench.train(config, tmp_path / "whole", teacher=taught_by)
    with pytest.raises(Killed):
        bench.train(config, tmp_path / "broken", teacher=taught_by, on_step=killing(5), save_every_s=0)
    resumed = bench.train(config, tmp_path / "broken", teacher=taught_by)
    assert resumed.loss_curve == whole.loss_curve
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


def test_closed_answers_are_taught_by_a_model_with_the_same_codes_only(
    bench: Bench, taught_by: TeacherConfig, tiny_folder: Path, tmp_path: Path
) -> None:
    def refused(teacher_folder: Path, task: Any = bench.task) -> str:
        with pytest.raises(ConfigError) as caught:
            DistillationBackend(TeacherConfig(base=str(teacher_folder)), task).load(tiny_folder, CONFIG)
        return str(caught.value)

    assert "knows no codes for the labels of toy" in refused(tiny_folder)
    folder = tmp_path / "changed"
    shutil.copytree(taught_by.base, folder)
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"label_tokens": manifest.label_tokens[::-1]}))
    assert "has other labels or codes: “card_arrival”, “exchange_rate”, “lost_pin”, …" in refused(folder)
    fewer = Classify(name="toy", labels=bench.task.labels[:3])
    assert "has other labels or codes: “lost_pin”" in refused(Path(taught_by.base), fewer)
    assert 'is of kind "label_tokens"' in refused(Path(taught_by.base), WRITES)
    # The order of the labels is no difference: a code belongs to its label.
    turned = Classify(name="toy", labels=bench.task.labels[::-1])
    DistillationBackend(taught_by, turned).load(tiny_folder, CONFIG)


def test_a_task_file_names_the_teacher(tmp_path: Path, tiny_folder: Path) -> None:
    from smallfirst.project.task_file import read_task_file

    values = {"name": "t", "data": {"train": "t.jsonl"}, "small": {"teacher": {"base": "big", "weight": 0.7}}}
    (tmp_path / "task.yaml").write_text(json.dumps(values), encoding="utf-8")
    assert read_task_file(tmp_path).teacher == TeacherConfig(base="big", weight=0.7, temperature=2.0)
    shutil.copytree(tiny_folder, tmp_path / "big")
    assert read_task_file(tmp_path).teacher == TeacherConfig(base=str(tmp_path / "big"), weight=0.7)
    values["small"] = {}
    (tmp_path / "task.yaml").write_text(json.dumps(values), encoding="utf-8")
    assert read_task_file(tmp_path).teacher is None


def test_a_task_files_run_is_taught(bench: Bench, taught_by: TeacherConfig, tiny_folder: Path, tmp_path: Path) -> None:
    from smallfirst.pipeline.run import train_stage
    from smallfirst.progress import Progress
    from smallfirst.project.project import Project
    from smallfirst.project.task_file import read_task_file
    from smallfirst.registry.runs import client

    for name, data in (("train", bench.rows), ("validation", bench.selection), ("test", bench.selection)):
        lines = [json.dumps({"text": e.text, "label": e.answer}) for e in data.examples]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    values = {
        "name": "taught",
        "labels": list(bench.task.labels),
        "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
        "ladder": ["small"],
        "small": {
            "base": str(tiny_folder),
            "training": {"duration": "2ba", "batch_tokens": 64},
            "teacher": {"base": taught_by.base, "weight": 0.9},
        },
    }
    (tmp_path / "task.yaml").write_text(json.dumps(values), encoding="utf-8")
    workspace = train_stage(Project.read(read_task_file(tmp_path), Progress(quiet=True)))
    run = Run.load(workspace.path / "run.json")
    params = client().get_run(run.run_id).data.params
    assert (params["teacher.base"], params["teacher.weight"]) == (taught_by.base, "0.9")
    # The first loss is a tenth of a plain run's, and the distance to the teacher.
    plain = bench.train(CONFIG.model_copy(update={"duration": "2ba"}), tmp_path / "plain")
    assert run.loss_curve[0][1] != pytest.approx(plain.loss_curve[0][1], rel=1e-3)
