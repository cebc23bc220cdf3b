"""What a job is told of the hyperparameters, in the words of TrainConfig."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.interfaces.openai_finetuning.requests import make_job_spec, parse_job
from smallfirst.interfaces.openai_finetuning.settings import FineTuningSettings
from smallfirst.interfaces.openai_finetuning.uploaded_rows import UploadedRows, estimate_tokens
from smallfirst.jobs.job_folder import JobSpec, user_name
from smallfirst.training.config import TrainConfig

EXAMPLE = Example(
    messages=(Message(role="user", content="x" * 40),), answer="y" * 20, shape="chat", path="file-1", line=1
)
ROWS = UploadedRows(n_rows=10, n_tokens=estimate_tokens(Dataset(name="file-1", examples=(EXAMPLE,) * 10)))


def order(base: tuple[str, str] = ("tiny", "nowhere"), *, owner: str = "", **asked: Any) -> JobSpec:
    body = parse_job({"model": base[0], "training_file": "file-1", **asked})
    return make_job_spec(body, ROWS, base, owner=owner, settings=FineTuningSettings(register_to="a.b"))


def test_what_is_left_open_is_train_configs_own(tiny_folder: Path) -> None:
    usual = TrainConfig()
    made = order(("tiny", str(tiny_folder)))
    expected = usual.model_copy(update={"max_seq_tokens": 512, "seed": made.config.seed})  # what the model takes
    assert made.config == expected
    assert (made.model, made.weights) == ("tiny", str(tiny_folder))
    assert (made.train_rows, made.eval_rows, made.created_by) == ("file-1", None, user_name())
    assert made.register_to == made.experiment == f"a.b.{made.name}"
    assert made.config.seed != order().config.seed


def test_what_is_given_is_turned_into_our_units() -> None:
    given = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 10}
    made = order(hyperparameters=given, suffix="desk", seed=5, validation_file="file-2", owner="ab" * 32)
    assert made.config.duration == "3ep"
    assert made.config.learning_rate == pytest.approx(2e-3)
    assert made.config.batch_tokens == 4 * ((10 + 5) + (5 + 5))  # a turn: its bytes over 4, and 5 for its frame
    assert made.config.max_seq_tokens == 2048  # the weights are not here to ask
    assert (made.config.seed, made.eval_rows) == (5, "file-2")
    assert (made.register_to, made.created_by) == ("a.b.desk", "key abababab")
    assert made.submitted["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 10.0}


def test_the_smallest_batch_is_one_that_can_be_trained() -> None:
    assert order(hyperparameters={"batch_size": 1}).config.batch_tokens == 32


def test_weights_by_the_models_own_name_are_looked_for_by_it() -> None:
    assert order(("hub/model", "hub/model")).weights is None


def test_a_base_models_folder_is_kept_from_the_root(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    settings = FineTuningSettings(base_models={"tiny": tiny_folder.name, "hub/model": "hub/model"})
    assert settings.base_models == {"tiny": str(tiny_folder), "hub/model": "hub/model"}
