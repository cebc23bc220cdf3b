"""Every rule of create()'s arguments, and that all that break one are told at once."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.interfaces.databricks.exceptions import DatabricksGenAIError, ValidationError
from smallfirst.interfaces.databricks.validation import CreateArguments
from smallfirst.jobs.spec import JobSpec
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


def given(base: Path, rows: Path, **changes: Any) -> CreateArguments:
    return CreateArguments(str(base), str(rows), "main.claims.tickets")._replace(**changes)


def order(base: Path, rows: Path, **changes: Any) -> JobSpec:
    return given(base, rows, **changes).spec()


def test_the_defaults(base: Path, rows: Path) -> None:
    made = order(base, rows)
    assert made.name.startswith("tiny-base-")
    assert (made.recipe, made.model, made.train_rows, made.eval_rows) == ("chat", str(base), str(rows), None)
    assert (made.register_to, made.experiment) == ("main.claims.tickets", "main.claims.tickets")
    # The duration is Databricks' default, the rate our own, the length the model's (it takes less than our 2048).
    assert made.config == TrainConfig(duration="1ep", learning_rate=2e-4, max_seq_tokens=512)
    assert made.submitted == {
        "model": str(base),
        "train_data_path": str(rows),
        "register_to": "main.claims.tickets",
        "task_type": "CHAT_COMPLETION",
    }


def test_what_is_given_is_taken(base: Path, rows: Path) -> None:
    made = order(
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
    assert order(base, rows, task_type="CONTINUED_PRETRAIN").recipe == "text"


def test_a_config_has_the_last_word_on_what_is_not_given(base: Path, rows: Path) -> None:
    config = TrainConfig(method="lora", duration="7ep", max_seq_tokens=64)
    assert order(base, rows, config=config).config == config
    assert order(base, rows, config=config, training_duration="2ep").config.duration == "2ep"
    assert order(base, rows, config=config).submitted["config"]["method"] == "lora"


@pytest.mark.parametrize(
    ("parameter", "value", "rule", "next_step"),
    [
        ("model", "", "'' is no text", "between quotes"),
        ("model", None, "None is no text", "between quotes"),
        ("model", "no/such-model", "no weights found", "smallfirst models"),
        ("model", "Qwen/Qwen2.5-Coder-1.5B-Instruct", "cannot be trained: its weights are GGUF", "get_models"),
        ("train_data_path", 7, "7 is no text", "between quotes"),
        ("register_to", "tickets", "neither catalog.schema nor", "main.claims.tickets"),
        ("register_to", "main..tickets", "neither catalog.schema nor", "main.claims.tickets"),
        ("register_to", "a.b.c.d", "neither catalog.schema nor", "main.claims.tickets"),
        ("register_to", "main.claims.my tickets", "each of letters, digits", "main.claims.tickets"),
        ("task_type", "CHAT_COMPLETIONS", 'did you mean "CHAT_COMPLETION"', "INSTRUCTION_FINETUNE"),
        ("eval_prompts", "where is my card", "is no list of texts", "eval_prompts=["),
        ("eval_prompts", ["where", ""], "is no list of texts", "eval_prompts=["),
        ("eval_prompts", 3, "is no list of texts", "eval_prompts=["),
        ("training_duration", "soon", '"soon" is no duration', "3ep"),
        ("training_duration", "0ep", '"0ep" is no duration', "3ep"),
        ("training_duration", 3, '"3" is no duration', "3ep"),
        ("learning_rate", "fast", "'fast' is no number between 0 and 1", "0.0002"),
        ("learning_rate", 0, "0 is no number between 0 and 1", "0.0002"),
        ("learning_rate", 1.5, "1.5 is no number between 0 and 1", "0.0002"),
        ("learning_rate", math.nan, "nan is no number between 0 and 1", "0.0002"),
        ("learning_rate", True, "True is no number between 0 and 1", "0.0002"),
        ("context_length", 15, "15 is no whole number from 16", "context_length=1024"),
        ("context_length", "128", "'128' is no whole number from 16", "context_length=1024"),
        ("context_length", True, "True is no whole number from 16", "context_length=1024"),
        ("context_length", 513, "513 is more than the 512 tokens", "context_length=512"),
        ("custom_weights_path", "weights.pt", "is a checkpoint of Composer", "safetensors"),
        ("custom_weights_path", "no-such-folder", "is no folder on this machine", "name a folder"),
        (
            "custom_weights_path",
            "dbfs:/databricks/mlflow-tracking/1/2/artifacts/ep1",
            "file system of Databricks",
            "copy",
        ),
        ("custom_weights_path", "dbfs:/Volumes/main/claims/files/ep1", "no way to this volume", "SMALLFIRST_VOLUMES"),
    ],
)
def test_each_rule_is_told_with_the_parameter_and_the_next_step(
    base: Path, rows: Path, parameter: str, value: Any, rule: str, next_step: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        order(base, rows, **{parameter: value})
    (wrong,) = caught.value.wrong
    assert wrong.parameter == parameter
    assert rule in wrong.rule
    assert next_step in wrong.next_step
    assert str(caught.value) == f"{parameter}: {wrong.rule}\n  next: {wrong.next_step}"


def test_all_faults_are_told_at_once(base: Path, rows: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        order(base, rows, training_duration="soon", learning_rate="fast", register_to="tickets")
    assert [wrong.parameter for wrong in caught.value.wrong] == ["register_to", "training_duration", "learning_rate"]
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 arguments cannot be used:"
    assert len(lines) == 7


def test_it_can_be_caught_as_ours_and_as_theirs() -> None:
    for kind in (SmallfirstError, ConfigError, DatabricksGenAIError):
        assert issubclass(ValidationError, kind)


def test_weights_of_composer_in_a_folder_are_never_unpickled(base: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded" / "__0_0.distcp").touch()
    with pytest.raises(ValidationError, match="a pickle"):
        order(base, rows, custom_weights_path=str(tmp_path / "sharded"))


def test_custom_weights_need_configuration_weights_and_tokenizer(base: Path, rows: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "model.safetensors").unlink()
    with pytest.raises(ValidationError, match="holds no safetensors, no a tokenizer"):
        order(base, rows, custom_weights_path=str(base))


def test_custom_weights_in_a_volume(base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "volumes" / "main" / "claims" / "files"
    place.mkdir(parents=True)
    base.rename(place / "ep1")
    monkeypatch.setenv("SMALLFIRST_VOLUMES", str(tmp_path / "volumes"))
    for address in ("dbfs:/Volumes/main/claims/files/ep1", "/Volumes/main/claims/files/ep1"):
        made = order(base, rows, model="any/name", custom_weights_path=address)
        assert made.weights == str(place / "ep1")
        assert made.model == "any/name"
        assert made.config.max_seq_tokens == 512


def test_addresses_of_volumes_tables_and_data_sets_are_left_as_they_are(base: Path, rows: Path) -> None:
    for address in ("dbfs:/Volumes/a/b/c/rows.jsonl", "/Volumes/a/b/c/rows.jsonl", "main.claims.rows", "org/set/train"):
        assert order(base, rows, train_data_path=address).train_rows == address


def test_a_file_that_is_here_is_named_from_the_root(base: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    assert order(base, rows, train_data_path="rows.jsonl").train_rows == str(rows)


def test_without_looking_for_weights_any_model_is_taken(base: Path, rows: Path) -> None:
    assert given(base, rows, model="no/such-model").spec(look_for_weights=False).model == "no/such-model"


def test_what_will_hardly_work_is_warned_of(base: Path, rows: Path) -> None:
    with pytest.warns(UserWarning, match="learning_rate=5e-7 teaches a small model next to nothing"):
        given(base, rows, learning_rate="5e-7").warn()
    with pytest.warns(UserWarning, match="data_prep_cluster_id is not used"):
        given(base, rows, data_prep_cluster_id="0123-abc").warn()


@pytest.mark.filterwarnings("error")
def test_nothing_else_is_warned_of(base: Path, rows: Path) -> None:
    given(base, rows, learning_rate=1e-5).warn()
