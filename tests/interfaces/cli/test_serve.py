"""What `smallfirst serve` loads and hands to the server."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.endpoints import register_words

from smallfirst.base.errors import ConfigError
from smallfirst.data.dataset import Dataset
from smallfirst.interfaces.cli.serve import serve, service_of
from smallfirst.models.protocol import Model
from smallfirst.serving import app, replicas
from smallfirst.tasks.classify import Classify


def test_a_registered_model_is_served_by_name_without_a_task(
    module_store: Path, tmp_path: Path, toy_rows: Dataset, toy_task: Classify, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[dict[str, Model]] = []
    monkeypatch.setattr(app, "serve", lambda models, **_: served.append(dict(models)))
    monkeypatch.chdir(tmp_path)  # no task.yaml stands here
    version = register_words(tmp_path / "model", toy_rows, toy_task, name="main.ml.desk")
    CliRunner().invoke(serve, ["--model", f"desk=main.ml.desk/{version}"], catch_exceptions=False)
    [models] = served
    assert [(name, model.name) for name, model in models.items()] == [("desk", "desk")]


def test_replicas_load_what_the_command_line_names(
    module_store: Path, tmp_path: Path, toy_rows: Dataset, toy_task: Classify, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[list[str], int]] = []
    monkeypatch.setattr(replicas, "serve_replicas", lambda arguments, n, **_: given.append((arguments, n)))
    monkeypatch.chdir(tmp_path)
    version = register_words(tmp_path / "model", toy_rows, toy_task, name="main.ml.desk")
    typed = ["--model", f"desk=main.ml.desk/{version}", "--ledger", "here.db", "--keep-days", "7", "--replicas", "3"]
    CliRunner().invoke(serve, typed, catch_exceptions=False)
    assert given == [(typed, 3)]
    service = service_of(typed)
    assert list(service.models) == ["desk"]
    assert (service.ledger.place, service.place) == ("here.db", Path("here.db"))
    service.ledger.close()


def test_a_model_without_a_name_is_refused() -> None:
    found = CliRunner().invoke(serve, ["--model", "main.texts.tales/1"]).exception
    assert isinstance(found, ConfigError)
    assert "expected NAME=REFERENCE" in str(found)
