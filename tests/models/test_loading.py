"""Which engine runs what lies at a place, and that it is loaded with its settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.models.loading import ENGINES, ModelSource, choose_engine, load
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify


def model_folder(folder: Path, kind: Any) -> Path:
    folder.mkdir()
    task = Answer(name="rules") if kind in ("generative", "chat") else Classify(name="toy", labels=("a", "b"))
    codes = (1, 2) if kind == "label_tokens" else ()
    write_manifest(folder, Manifest(kind=kind, task=task, base="tiny", label_tokens=codes))
    return folder


@pytest.mark.parametrize(("kind", "engine"), [
    ("label_tokens", "PyTorch"), ("generative", "PyTorch"), ("chat", "PyTorch"), ("words", "linear"),
    ("encoder", "linear"), ("tagger", "spans"), ("reader", "spans"),
])  # fmt: skip
def test_a_trained_folder_is_run_as_it_was_measured(tmp_path: Path, kind: str, engine: str) -> None:
    folder = model_folder(tmp_path / "m", kind)
    (folder / "m.gguf").touch()  # an export beside it changes nothing
    assert choose_engine(ModelSource(folder)) == engine


def test_files_folders_and_addresses_have_their_engines(tmp_path: Path) -> None:
    file = tmp_path / "big.gguf"
    file.touch()
    (tmp_path / "config.json").write_text("{}")
    assert choose_engine(ModelSource(file)) == "llama.cpp"
    assert choose_engine(ModelSource(tmp_path)) == "PyTorch"
    assert choose_engine(ModelSource("https://api.example.com/v1")) == "endpoint"
    with pytest.raises(ConfigError, match="is not a model: neither a model folder"):
        choose_engine(ModelSource(tmp_path / "nothing"))


def test_engine_named_for_a_model_runs_it_or_says_that_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder = model_folder(tmp_path / "m", "label_tokens")
    assert choose_engine(ModelSource(folder, engine="vLLM", settings={"url": "http://gpu-1:8000"})) == "vLLM"
    with pytest.raises(ConfigError, match=r"cannot be run by llama\.cpp"):
        choose_engine(ModelSource(tmp_path, engine="llama.cpp"))
    with pytest.raises(ConfigError, match='unknown engine "vllm"'):
        choose_engine(ModelSource(tmp_path, engine="vllm"))


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (file := tmp_path / "big.gguf").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r'with PyTorch needs packages .*\n  next: pip install "smallfirst\[train\]"'
    ):
        load(ModelSource(tmp_path))
    with pytest.raises(MissingExtra, match=r"smallfirst\[llama\]"):
        load(ModelSource(file))


class Fake:
    """An engine of another package, which runs files ending in .fake."""

    def runs(self, source: ModelSource) -> bool:
        return source.path.suffix == ".fake"

    def load(self, source: ModelSource) -> Any:
        return source.name, dict(source.settings)


@pytest.fixture
def fake_engine() -> Iterator[str]:
    ENGINES.register("fake", Fake())
    yield "fake"
    del ENGINES._loaded["fake"]


def test_engine_of_another_package_is_chosen_and_loads(tmp_path: Path, fake_engine: str) -> None:
    file = tmp_path / "m.fake"
    assert choose_engine(ModelSource(file)) == fake_engine
    assert load(ModelSource(file, "mine", settings={"speed": 9})) == ("mine", {"speed": 9})
    from smallfirst.path.large_model import general_model
    from smallfirst.path.project.task_file import TaskFile

    large = {"engine": {"name": "fake", "model": "https://example.com/m.fake", "settings": {"speed": 9}}}
    values = {"name": "desk", "data": {"train": "train.jsonl"}, "large": large, "folder": tmp_path}
    assert general_model(TaskFile.model_validate(values)) == ("", {"speed": 9})


def test_gguf_file_and_address_are_loaded_with_their_settings(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    file = tmp_path / "big.gguf"
    file.touch()
    assert load(ModelSource(file, "large", settings={"slots": 4}, answers=("a", "b"))).name == "large"
    with pytest.raises(ConfigError, match="slots: Input should be greater than or equal to 1"):
        load(ModelSource(file, settings={"slots": 0}))
    endpoint = load(ModelSource("http://localhost:9/v1", settings={"model": "our-70b"}))
    assert endpoint.name == "our-70b"
