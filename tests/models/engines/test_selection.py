"""The choice of an engine, from hardware and folders made for it, and the loading that follows the choice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.light_process import LightProcess

from smallfirst.errors import ConfigError, MissingExtra
from smallfirst.models.engines import selection
from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.engines.hardware import Hardware, detect_hardware
from smallfirst.models.engines.llama_cpp import ExportedModel, find_gguf_export
from smallfirst.models.engines.selection import (
    ENGINES,
    EngineChoice,
    choose_engine,
    explain_choices,
    load,
)
from smallfirst.models.generation.model import GenerativeModel
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import Manifest, read_manifest, write_manifest
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify

CPU = Hardware(processor="Two Cores", cores=2, features=("AVX2", "AVX512-BF16"))
GPU = CPU.model_copy(update={"gpus": 1})


def environment(*installed: str, hardware: Hardware = CPU) -> Environment:
    return Environment(hardware, frozenset({"linear", "endpoint", *installed}))


ALL = environment("PyTorch", "llama.cpp", "vLLM")
ALL_WITH_GPU = ALL._replace(hardware=GPU)
TORCH = environment("PyTorch")


def model_folder(folder: Path, kind: Any) -> Path:
    folder.mkdir()
    task = Answer(name="rules") if kind in ("generative", "chat") else Classify(name="toy", labels=("a", "b"))
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    codes = (1, 2) if kind == "label_tokens" else ()
    write_manifest(folder, Manifest(kind=kind, task=task, base="tiny", label_tokens=codes))
    return folder


def choose(location: Path | str, where: Environment = ALL, **source: Any) -> EngineChoice:
    return choose_engine(ModelSource(location, **source), where)


def reasons(choice: EngineChoice) -> dict[str, str]:
    return choice.alternatives


@pytest.mark.parametrize(("where", "certified"), [(TORCH, True), (ALL_WITH_GPU, False)])
def test_closed_answers_are_scored_by_pytorch_whatever_else_is_installed(
    tmp_path: Path, where: Environment, certified: bool
) -> None:
    folder = model_folder(tmp_path / "small", "label_tokens")
    (folder / "small.gguf").touch()
    found = choose(folder, where, name="cards", certified=certified)
    assert (found.model, found.engine, found.assessment.threads, found.weights_bytes) == (
        "cards",
        "PyTorch",
        2,
        3_000_000,
    )
    assert "its 2 answers are closed" in found.assessment.reason
    assert set(reasons(found)) == {"llama.cpp", "vLLM"}


@pytest.mark.parametrize(
    ("kind", "engine"), [("words", "linear"), ("encoder", "linear"), ("tagger", "spans"), ("reader", "spans")]
)
def test_a_model_that_only_this_process_can_run_has_its_own_engine(tmp_path: Path, kind: str, engine: str) -> None:
    found = choose(model_folder(tmp_path / "m", kind), environment("spans"))
    assert (found.engine, found.assessment.threads, found.alternatives) == (engine, 1, {})


def test_certificate_binds_a_generative_model_to_the_engine_it_was_measured_with(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "generative")
    (folder / "m.gguf").write_bytes(bytes(1000))
    found = choose(folder)
    assert found.engine == "PyTorch"
    assert "certified" in reasons(found)["llama.cpp"]
    assert "certified" in reasons(found)["vLLM"]


def test_export_beside_an_uncertified_generative_model_is_run_by_llama_cpp(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "generative")
    assert "no GGUF export" in reasons(choose(folder, certified=False))["llama.cpp"]
    export = tmp_path / "m.gguf"
    export.write_bytes(bytes(1000))
    found = choose(folder, certified=False)
    assert (found.engine, found.assessment.weights, found.weights_bytes) == ("llama.cpp", export, 1000)
    assert reasons(found) == {
        "vLLM": "its probabilities are not those that were certified; see small: vllm:",
        "PyTorch": "faster at reading long prompts, slower at generating in bf16",
    }
    assert "small: vllm:" in reasons(choose(folder, ALL_WITH_GPU, certified=False))["vLLM"]
    without = choose(folder, TORCH, certified=False)
    assert without.engine == "PyTorch"
    assert "pip install" in reasons(without)["llama.cpp"]


def test_export_older_than_the_model_is_not_its_export(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "generative")
    export = folder / "m.gguf"
    export.touch()
    assert find_gguf_export(ModelSource(folder)) == export
    os.utime(export, (1, 1))
    assert find_gguf_export(ModelSource(folder)) is None


def test_gguf_file_is_run_by_llama_cpp(tmp_path: Path) -> None:
    file = tmp_path / "big.gguf"
    file.write_bytes(bytes(5_000_000))
    found = choose(file, ALL_WITH_GPU)
    assert (found.model, found.engine, found.weights_bytes) == ("big", "llama.cpp", 5_000_000)
    assert set(reasons(found)) == {"PyTorch"}
    with pytest.raises(MissingExtra, match=r'big\.gguf with llama\.cpp needs packages .*\n  next: pip install "small'):
        choose(file, TORCH)


def test_bare_weights_are_run_here_and_a_vllm_is_an_address(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = choose(tmp_path, ALL_WITH_GPU)
    assert found.engine == "PyTorch"
    assert reasons(found)["vLLM"] == "a general model on a vLLM is an address: large: endpoint"
    with pytest.raises(MissingExtra, match="with PyTorch needs packages that are not installed"):
        choose(tmp_path, environment())


def test_engine_named_for_a_model_runs_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder = model_folder(tmp_path / "m", "label_tokens")
    found = choose(folder, TORCH, engine="vLLM", settings={"url": "http://gpu-1:8000"})
    assert (found.engine, found.assessment.reason) == ("vLLM", "it is the engine named for this model")
    assert found.assessment.method == "the vLLM at http://gpu-1:8000"
    with pytest.raises(ConfigError, match=r"cannot be run by llama\.cpp: it needs a GGUF file"):
        choose(tmp_path, engine="llama.cpp")
    with pytest.raises(ConfigError, match='unknown engine "vllm"'):
        choose(tmp_path, engine="vllm")


def test_address_is_an_endpoint(tmp_path: Path) -> None:
    found = choose("https://api.example.com/v1", environment(), name="large")
    assert (found.model, found.engine, found.weights_bytes) == ("large", "endpoint", 0)
    with pytest.raises(ConfigError, match="is not a model: neither a model folder"):
        choose(tmp_path / "nothing")


def test_adapter_counts_its_base(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", model_folder(tmp_path / "m", "label_tokens")
    base.mkdir()
    (base / "model.safetensors").write_bytes(bytes(500))
    (base / "config.json").write_text("{}")
    (folder / "adapter_config.json").write_text("{}")
    write_manifest(folder, read_manifest(folder).model_copy(update={"base": str(base)}))
    assert choose(folder, TORCH).weights_bytes == 3_000_500


def test_explanation_names_machine_engine_reasons_and_memory(tmp_path: Path) -> None:
    choices = [
        choose(model_folder(tmp_path / "cards", "label_tokens")),
        choose("https://api.example.com/v1", name="large"),
    ]
    assert explain_choices(choices, CPU).splitlines() == [
        "processor  Two Cores: 2 cores, AVX2, AVX512-BF16; no CUDA GPU",
        "",
        "cards",
        "  engine   PyTorch: labels scored in this process, requests batched together",
        "  why      its 2 answers are closed: one pass over the prompt gives the probability of each",
        "  weights  3 MB in memory, 2 threads",
        "  not llama.cpp: it generates labels token by token: faster for one client, at 32 less than half the "
        "throughput",
        "  not vLLM: its probabilities are not those that were certified; see small: vllm:",
        "",
        "large",
        "  engine   endpoint: asked at its address",
        "  why      it is an address",
    ]


def test_hardware_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 avx512_bf16 avx512_vnni\n\nflags\t: x\n"
    )
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    found = detect_hardware(cpuinfo, tmp_path)
    assert (found.processor, found.gpus) == ("Fast One", 1)
    assert found.features == ("AVX2", "AVX512-BF16", "AVX512-VNNI")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_hardware(cpuinfo, tmp_path).gpus == 0
    assert detect_hardware(tmp_path / "none", tmp_path).features == ()


def test_choosing_imports_no_engine(light_process: LightProcess) -> None:
    code = (
        "import sys\n"
        "from smallfirst.models.engines.engine import ModelSource\n"
        "from smallfirst.models.engines.selection import choose_engine, detect_environment\n"
        "choose_engine(ModelSource('https://api.example.com/v1'), detect_environment())\n"
        "print(sorted({'torch', 'transformers', 'xllamacpp'} & sys.modules.keys()))\n"
    )
    assert light_process(code) == "[]\n"


# --- loading follows the choice -----------------------------------------------------------------------------------


class Fake:
    """An engine of another package, which runs files ending in .fake."""

    def is_installed(self) -> bool:
        return True

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        return Assessment(source.path.suffix == ".fake", "it is a .fake file", "by magic")

    def load(self, source: ModelSource) -> Any:
        return source.name, dict(source.settings)


@pytest.fixture
def fake_engine() -> Iterator[str]:
    ENGINES.register("fake", Fake())
    yield "fake"
    del ENGINES._loaded["fake"]


def test_engine_of_another_package_is_chosen_and_loads(tmp_path: Path, fake_engine: str) -> None:
    file = tmp_path / "m.fake"
    assert choose(file).engine == fake_engine
    assert load(ModelSource(file, "mine", settings={"speed": 9})) == ("mine", {"speed": 9})
    from smallfirst.pipeline.large_model import general_model
    from smallfirst.project.task_file import TaskFile

    large = {"engine": {"name": "fake", "model": "https://example.com/m.fake", "settings": {"speed": 9}}}
    values = {"name": "desk", "data": {"train": "train.jsonl"}, "large": large, "folder": tmp_path}
    assert general_model(TaskFile.model_validate(values)) == ("", {"speed": 9})


def test_export_is_loaded_where_it_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    folder = model_folder(tmp_path / "m", "generative")
    (tmp_path / "m.gguf").touch()
    monkeypatch.setattr(selection, "detect_environment", lambda: ALL)
    model = load_model(folder, name="rules", certified=False)
    assert (type(model), model.name) == (ExportedModel, "rules")


def test_bare_weights_are_loaded_as_a_chat_model(tiny_folder: Path) -> None:
    model = load(ModelSource(tiny_folder, engine="PyTorch"))
    assert (type(model), model.name) == (GenerativeModel, tiny_folder.name)


def test_folder_without_a_manifest_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"smallfirst\.json"):
        load_model(tmp_path)


def test_gguf_file_and_address_are_loaded_with_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(selection, "detect_environment", lambda: ALL)
    file = tmp_path / "big.gguf"
    file.touch()
    assert load(ModelSource(file, "large", settings={"slots": 4}, answers=("a", "b"))).name == "large"
    with pytest.raises(ConfigError, match="slots: Input should be greater than or equal to 1"):
        load(ModelSource(file, settings={"slots": 0}))
    endpoint = load(ModelSource("http://localhost:9/v1", settings={"model": "our-70b"}))
    assert endpoint.name == "our-70b"
