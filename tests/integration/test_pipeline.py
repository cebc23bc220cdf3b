"""The whole path on a tiny seeded model: what each stage leaves is what the next one takes."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from smallfirst.base.errors import DataError, GateFailed, StageMissing
from smallfirst.base.paths import home
from smallfirst.base.progress import Progress, ProgressCallback
from smallfirst.deployment import service
from smallfirst.deployment.billing.saved import evaluated_costs
from smallfirst.interfaces.cli.main import main
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.protocol import Request, Route
from smallfirst.path import run as pipeline
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.summary import RunSummary, format_summary
from smallfirst.registry import versions
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.training.events import EventLog
from smallfirst.training.run import Run

DEMO = Path(__file__).parents[2] / "examples" / "claims_desk" / "task.yaml"


@pytest.fixture(scope="module")
def desk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model with a tokenizer made from the demo's own texts, so that labels find code tokens."""
    texts = [json.loads(line)["text"] for line in (DEMO.parent / "train.jsonl").open(encoding="utf-8")]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    words.train_from_iterator([f"{text} {text}" for text in texts], trainer)
    folder = tmp_path_factory.mktemp("tiny")
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


def task_file(base: Path, **gate: float) -> TaskFile:
    """The demo's task with a tiny model, without the rungs that need real weights."""
    file = read_task_file(DEMO)
    training = file.small.training.model_copy(update={"duration": "2ep", "learning_rate": 3e-3})
    small = file.small.model_copy(update={"base": str(base), "training": training})
    bars = file.gate.model_copy(update={"accuracy_at_least": None, "not_worse_than_large_by": None, **gate})
    # The demo's 10 % cannot be shown for words alone: nothing would go live.
    routing = file.routing.model_copy(update={"small": "smallest", "guarantee": Guarantee(max_error=0.2)})
    return file.model_copy(update={"ladder": ("words", "small"), "small": small, "gate": bars, "routing": routing})


@pytest.fixture(scope="module", autouse=True)
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One state folder for the module, so that its tests share a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def outcome(desk_folder: Path, shared_home: None) -> RunSummary:
    """The whole path, once."""
    return pipeline.run(task_file(desk_folder, accuracy_at_least=0.5), progress=Progress(quiet=True))


def test_the_whole_path_ends_with_a_promoted_certified_measured_router(desk_folder: Path, outcome: RunSummary) -> None:
    assert outcome.gate.winner == "words"  # the tiny model cannot pass, the linear one can
    assert outcome.promoted is not None
    assert outcome.promoted.candidate == "words"
    assert outcome.paths["large"].accuracy.n == 200
    assert 0 <= outcome.paths["routed"].share <= 1
    assert versions.resolve("main.claims.tickets@champion").version == 1
    assert Path(outcome.report).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert RunSummary.model_validate_json(outcome.model_dump_json()) == outcome
    assert "gate PASS · promoted main.claims.tickets version 1 @champion" in format_summary(outcome)
    _router_answers(task_file(desk_folder, accuracy_at_least=0.5))


def _router_answers(file: TaskFile) -> None:
    ledger = Ledger(home() / "ledger.db")
    deployed = service.deploy([file], ledger, live=False)
    models = deployed.models
    assert set(models) == {"claims-desk", "claims-desk-small", "claims-desk-large", "auto"}
    live = deployed.by_task["claims-desk"]
    assert live.monitor.state == ("live" if live.router.certificate.issued else "shadow")
    # The page takes the large model's cost from where the statement does.
    evaluated = deployed.evaluated(["claims-desk", "unknown"])
    assert evaluated == evaluated_costs({"claims-desk": file.folder})
    assert evaluated["claims-desk"].n == 200

    async def ask(name: str, text: str) -> Route:
        answer = await models[name].complete(Request.ask(text))
        assert answer.route is not None
        return answer.route

    async def all_of_them() -> None:
        known = Project.read(file, Progress(quiet=True)).rows.test.examples[0].text
        assert (await ask("claims-desk", known)).task == "claims-desk"
        routed = await ask("auto", known)
        assert (routed.task, routed.trail[0].stage) == ("claims-desk", "auto")
        for model in models.values():
            await model.aclose()

    asyncio.run(all_of_them())
    ledger.close()


def test_a_gate_that_fails_promotes_nothing_and_still_reports(desk_folder: Path, outcome: RunSummary) -> None:
    file = task_file(desk_folder, accuracy_at_least=0.99)
    strict = file.routing.model_copy(update={"guarantee": Guarantee(max_error=0.01)})
    project = Project.read(file.model_copy(update={"routing": strict}), Progress(quiet=True))
    evaluated = Path(outcome.report).parent
    run_folder = RunFolder(evaluated.with_name(f"{evaluated.name}-strict"))
    later = shutil.ignore_patterns("promoted.json", "certificate.json", "verdicts.json", "report.html")
    shutil.copytree(evaluated, run_folder.path, ignore=later)
    with pytest.raises(GateFailed, match=r"accuracy at least 0\.990"):
        pipeline.gate_and_release(project, run_folder)
    assert (run_folder.path / "report.html").exists()
    with pytest.raises(StageMissing, match=r"promoted\.json is missing"):
        run_folder.promoted()


class Interrupting(Progress):
    """Presses Ctrl-C in the middle of the first bar."""

    @contextmanager
    def bar(self, label: str, total: float | None, unit: str = "rows") -> Iterator[ProgressCallback]:
        def press(done: float, of: float, words: str = "") -> None:
            if done > of / 2:
                raise KeyboardInterrupt

        yield press


def test_a_training_that_was_broken_off_is_gone_on_with(
    desk_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))  # other tests leave runs without a report in the shared home
    project = Project.read(task_file(desk_folder), Progress(quiet=True))
    with pytest.raises(StageMissing, match="claims-desk has no interrupted run to resume"):
        pipeline.train_stage(project, resume=True)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train_stage(project._replace(progress=Interrupting(quiet=True)))
    broken = RunFolder.unfinished("claims-desk")
    assert broken is not None
    run_folder = pipeline.train_stage(project, resume=True)
    assert run_folder.path == broken.path
    begun = [e for e in EventLog(broken.path / "events.jsonl").read() if e.kind == "CREATED"]
    assert [Run.load(broken.path / "run.json").run_id] == [e.values["run_id"] for e in begun]
    assert run_folder.is_fitted


def test_a_fine_tuned_encoder_is_measured_and_judged(desk_folder: Path, tiny_encoder_folder: Path) -> None:
    file = task_file(desk_folder, accuracy_at_least=0.5)
    brief = file.small.encoder_training.model_copy(update={"duration": "2ba", "max_seq_tokens": 512})
    more = {"encoder": str(tiny_encoder_folder), "encoder_training": brief}
    changed = {"ladder": ("tuned",), "small": file.small.model_copy(update=more)}
    project = Project.read(file.model_copy(update=changed), Progress(quiet=True))
    run_folder = pipeline.train_stage(project)
    assert "tuned" in {e.candidate for e in pipeline.evaluate_stage(project, run_folder)}
    verdict = pipeline.gate_stage(project, run_folder).of("tuned")
    tuned = run_folder.evaluation("tuned", "test")
    assert tuned is not None
    assert verdict.evaluation_fingerprint == tuned.fingerprint()
    assert Run.load(run_folder.path / "tuned" / "run.json").task == "claims-desk"


def test_rows_that_check_refuses_are_told_before_anything_is_trained(
    desk_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(Exception): ...

    def train(*_: object, **__: object) -> None:
        raise Trained

    monkeypatch.setattr(pipeline, "train_stage", train)
    file = task_file(desk_folder)
    leaking = file.model_copy(update={"data": file.data.model_copy(update={"test": file.data.train})})
    with pytest.raises(DataError, match="550 of 550 test texts are also in train"):
        pipeline.run(leaking, progress=Progress())
    with pytest.raises(Trained):
        pipeline.run(leaking, progress=Progress(), despite_check=True)
    assert "check: NO (550 rows to train on); run despite it: 550 of 550 test texts" in capsys.readouterr().err


def test_a_stage_without_an_earlier_one_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path))
    result = CliRunner().invoke(main, ["evaluate", str(DEMO)])
    assert result.exit_code == 1
    assert "claims-desk has no finished run" in result.output
    assert f"next: smallfirst train {DEMO}" in result.output  # as it was typed
