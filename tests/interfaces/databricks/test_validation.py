"""Every rule of create()'s arguments, and that all broken rules are reported together."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from smallfirst.errors import ConfigError
from smallfirst.interfaces.databricks.training_run import DatabricksGenAIError, ValidationError
from smallfirst.interfaces.databricks.validation import CreateArguments, parse_arguments
from smallfirst.jobs.job_folder import JobSpec
from smallfirst.training.config import TrainConfig


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "where is my card", "response": "on its way"}))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder that looks like weights of 512 positions."""
    folder = tmp_path / "tiny-base"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 512}')
    (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").touch()
    return folder


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLFIRST_HOME", str(tmp_path / "home"))
    for name in ("SMALLFIRST_VOLUMES", "SMALLFIRST_TABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "databricks.sdk", None)  # no workspace either, and no seconds to import it


def parse(base: Path, rows: Path, **changes: Any) -> CreateArguments:
    given = {"model": str(base), "train_data_path": str(rows), "register_to": "main.claims.tickets"}
    return parse_arguments(**{**given, **changes})


def spec(base: Path, rows: Path, **changes: Any) -> JobSpec:
    return parse(base, rows, **changes).job_spec()


def test_the_defaults(base: Path, rows: Path) -> None:
    made = spec(base, rows, task_type=None, experiment_path="")
    assert made.name.startswith("tiny-base-")
    assert (made.recipe, made.model, made.train_rows, made.eval_rows) == ("chat", str(base), str(rows), None)
    assert (made.register_to, made.experiment) == ("main.claims.tickets", "main.claims.tickets")
    # The duration is Databricks' default, the rate our own, the length the model's (it takes less than our 2048).
    assert made.config == TrainConfig(duration="1ep", learning_rate=2e-4, max_seq_tokens=512)
    assert made.submitted == {"model": str(base), "train_data_path": str(rows), "register_to": "main.claims.tickets"}


def test_given_values_are_used(base: Path, rows: Path) -> None:
    made = spec(
        base,
        rows,
        register_to="main.claims",
        experiment_path="/Shared/desk",
        task_type="instruction_finetune",
        eval_data_path=str(rows),
        eval_prompts=["where is my card"],
        custom_weights_path=str(base),
        training_duration="1_000_000tok",
        learning_rate="3e-05",
        context_length=128,
    )
    assert made.register_to == f"main.claims.{made.name}"
    assert (made.experiment, made.recipe, made.eval_rows) == ("/Shared/desk", "chat", str(rows))
    assert (made.eval_prompts, made.weights) == (("where is my card",), str(base))
    assert made.config == TrainConfig(duration="1_000_000tok", learning_rate=3e-5, max_seq_tokens=128)
    assert spec(base, rows, task_type="CONTINUED_PRETRAIN").recipe == "text"


def test_a_config_sets_what_is_not_given(base: Path, rows: Path) -> None:
    config = TrainConfig(method="lora", duration="7ep", max_seq_tokens=64)
    assert spec(base, rows, config=config).config == config
    assert spec(base, rows, config=config, training_duration="2ep").config.duration == "2ep"
    assert spec(base, rows, config=config).submitted["config"]["method"] == "lora"


@pytest.mark.parametrize(
    ("parameter", "value", "rule"),
    [
        ("model", "", "model: missing"),
        ("model", None, "model: missing"),
        ("model", 7, "model: must be text (got 7)"),
        ("model", "no/such-model", "no weights found"),
        ("model", "Qwen/Qwen2.5-Coder-1.5B-Instruct", "cannot be trained: its weights are GGUF"),
        ("train_data_path", 7, "train_data_path: must be text (got 7)"),
        ("register_to", "tickets", "must be catalog.schema or"),
        ("register_to", "main..tickets", "must be catalog.schema or"),
        ("register_to", "a.b.c.d", "must be catalog.schema or"),
        ("register_to", "main.claims.my tickets", 'for example register_to="main.claims.tickets" (got'),
        ("task_type", "CHAT_COMPLETIONS", "should be 'CHAT_COMPLETION', 'INSTRUCTION_FINETUNE' or"),
        ("eval_prompts", "where is my card", "eval_prompts: Input should be a valid tuple"),
        ("eval_prompts", ["where", ""], "eval_prompts.1: must be text"),
        ("training_duration", "soon", '"soon" is not a duration'),
        ("training_duration", "0ep", '"0ep" is not a duration'),
        ("training_duration", 3, "training_duration: must be text (got 3)"),
        ("learning_rate", "fast", "learning_rate: Input should be a valid number"),
        ("learning_rate", 0, "should be greater than 0 (got 0)"),
        ("learning_rate", math.nan, "should be a finite number"),
        ("learning_rate", True, "should be less than 1 (got True)"),
        ("context_length", 15, "greater than or equal to 16 (got 15)"),
        ("context_length", "128", "context_length: Input should be a valid integer"),
        ("context_length", True, "context_length: Input should be a valid integer"),
        ("context_length", 513, "is more than the 512 tokens that the model takes (got 513)"),
        ("custom_weights_path", "weights.pt", "is a checkpoint of Composer"),
        ("custom_weights_path", "no-such-folder", "is no folder on this machine; name a folder"),
        (
            "custom_weights_path",
            "dbfs:/databricks/mlflow-tracking/1/2/artifacts/ep1",
            "file system of Databricks; copy",
        ),
        ("custom_weights_path", "dbfs:/Volumes/main/claims/files/ep1", "set SMALLFIRST_VOLUMES"),
    ],
)
def test_each_broken_rule_is_reported_with_its_argument(
    base: Path, rows: Path, parameter: str, value: Any, rule: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(base, rows, **{parameter: value})
    (line,) = str(caught.value.args[0]).splitlines()[1:2]
    assert line.startswith(f"  {parameter}")
    assert rule in str(caught.value)
    assert isinstance(caught.value, ConfigError | DatabricksGenAIError)


def test_all_broken_rules_are_reported_together(base: Path, rows: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(base, rows, training_duration="soon", learning_rate="fast", register_to="tickets", model="no/such")
    lines = str(caught.value).splitlines()
    assert lines[0] == "arguments of create() that cannot be used:"
    told = [line.split(":")[0].strip() for line in lines if re.match(r"  \w+: ", line)]
    assert told == ["model", "register_to", "training_duration", "learning_rate", "next"]


def test_weights_of_composer_in_a_folder_are_never_unpickled(base: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "__0_0.distcp").touch()
    with pytest.raises(ValidationError, match="a pickle"):
        spec(base, rows, custom_weights_path=str(tmp_path / "sharded"))


def test_custom_weights_need_configuration_weights_and_tokenizer(base: Path, rows: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "model.safetensors").unlink()
    with pytest.raises(ValidationError, match="holds no safetensors, no tokenizer"):
        spec(base, rows, custom_weights_path=str(base))


def test_custom_weights_in_a_volume(base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "volumes" / "main" / "claims" / "files"
    place.mkdir(parents=True)
    base.rename(place / "ep1")
    monkeypatch.setenv("SMALLFIRST_VOLUMES", str(tmp_path / "volumes"))
    for address in ("dbfs:/Volumes/main/claims/files/ep1", "/Volumes/main/claims/files/ep1"):
        made = spec(base, rows, model="any/name", custom_weights_path=address)
        assert made.weights == str(place / "ep1")
        assert made.model == "any/name"
        assert made.config.max_seq_tokens == 512


def test_addresses_of_volumes_tables_and_data_sets_are_left_as_they_are(base: Path, rows: Path) -> None:
    for address in ("dbfs:/Volumes/a/b/c/rows.jsonl", "/Volumes/a/b/c/rows.jsonl", "main.claims.rows", "org/set/train"):
        assert spec(base, rows, train_data_path=address).train_rows == address


def test_a_file_that_is_here_is_named_from_the_root(base: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    assert spec(base, rows, train_data_path="rows.jsonl").train_rows == str(rows)


def test_without_looking_for_weights_any_model_is_accepted(base: Path, rows: Path) -> None:
    assert spec(base, rows, model="no/such-model", validate_inputs=False).model == "no/such-model"


def test_doubtful_arguments_are_warned_of(base: Path, rows: Path) -> None:
    with pytest.warns(UserWarning, match="learning_rate=5e-07 hardly changes a small model"):
        parse(base, rows, learning_rate="5e-7").warn()
    with pytest.warns(UserWarning, match="data_prep_cluster_id is not used"):
        parse(base, rows, data_prep_cluster_id="0123-abc").warn()


@pytest.mark.filterwarnings("error")
def test_usual_arguments_are_not_warned_of(base: Path, rows: Path) -> None:
    parse(base, rows, learning_rate=1e-5).warn()
