"""The choice of an engine, from machines and folders made for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.servers.selection import (
    EngineChoice,
    Hardware,
    InstalledEngines,
    Setting,
    choose_engine,
    detect_hardware,
    explain_choices,
    find_gguf_export,
    this_setting,
)
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.classify import Classify

CPU = Hardware(processor="Two Cores", cores=2, features=("AVX2", "AVX512-BF16"))
GPU = CPU.model_copy(update={"gpus": 1})
ALL = InstalledEngines(torch=True, xllamacpp=True, vllm=True)
TORCH = InstalledEngines(torch=True)


def folder_of(place: Path, kind: str) -> Path:
    place.mkdir()
    labels = Classify(name="toy", labels=("a", "b"))
    task = Answer(name="rules") if kind in ("writes", "chats") else labels
    codes = (1, 2) if kind == "codes" else ()
    (place / "model.safetensors").write_bytes(bytes(3_000_000))
    write_manifest(place, Manifest(kind=kind, task=task, base="tiny", codes=codes))  # type: ignore[arg-type]
    return place


def refused(choice: EngineChoice) -> dict[str, str]:
    return dict(choice.alternatives)


def test_closed_answers_are_scored_in_this_process_whatever_else_there_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "small", "codes")
    (folder / "small.gguf").touch()
    for setting in (Setting(CPU, TORCH), Setting(GPU, ALL, certified=False)):
        found = choose_engine(folder, setting, name="cards")
        assert (found.model, found.engine, found.threads, found.weights_bytes) == ("cards", "PyTorch", 2, 3_000_000)
        assert "its 2 answers are closed" in found.why
        assert set(refused(found)) == {"llama.cpp", "vLLM"}


@pytest.mark.parametrize("kind", ["words", "encoder"])
def test_linear_model_is_linear(tmp_path: Path, kind: str) -> None:
    found = choose_engine(folder_of(tmp_path / "m", kind), Setting(CPU, InstalledEngines()))
    assert (found.engine, found.threads, found.alternatives) == ("linear", 1, ())


def test_certificate_keeps_a_writing_model_where_it_was_measured(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", "writes")
    (folder / "m.gguf").write_bytes(bytes(1000))
    found = choose_engine(folder, Setting(CPU, ALL))
    assert found.engine == "PyTorch"
    assert "certified" in refused(found)["llama.cpp"]
    assert "certified" in refused(found)["vLLM"]


def test_export_beside_an_uncertified_writing_model_is_run_by_llama(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", "writes")
    free = Setting(CPU, ALL, certified=False)
    assert "no export" in refused(choose_engine(folder, free))["llama.cpp"]
    export = tmp_path / "m.gguf"
    export.write_bytes(bytes(1000))
    found = choose_engine(folder, free)
    assert (found.engine, found.weights, found.weights_bytes) == ("llama.cpp", export, 1000)
    assert refused(found)["vLLM"] == "there is no CUDA GPU"
    without = choose_engine(folder, Setting(CPU, TORCH, certified=False))
    assert without.engine == "PyTorch"
    assert "pip install" in refused(without)["llama.cpp"]


def test_export_older_than_the_model_is_none_of_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", "writes")
    export = folder / "m.gguf"
    export.touch()
    assert find_gguf_export(folder) == export
    os.utime(export, (1, 1))
    assert find_gguf_export(folder) is None


def test_gguf_file_is_run_by_llama(tmp_path: Path) -> None:
    file = tmp_path / "big.gguf"
    file.write_bytes(bytes(5_000_000))
    found = choose_engine(file, Setting(GPU, ALL))
    assert (found.model, found.engine, found.weights_bytes) == ("big", "llama.cpp", 5_000_000)
    with pytest.raises(ConfigError, match=r"needs llama\.cpp, which is not installed"):
        choose_engine(file, Setting(CPU, TORCH))


def test_bare_weights_are_vllms_where_there_is_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert choose_engine(tmp_path, Setting(GPU, ALL)).engine == "vLLM"
    assert refused(choose_engine(tmp_path, Setting(GPU, TORCH)))["vLLM"] == "it is not installed"
    assert refused(choose_engine(tmp_path, Setting(CPU, ALL)))["vLLM"] == "there is no CUDA GPU"
    with pytest.raises(ConfigError, match="needs PyTorch"):
        choose_engine(tmp_path, Setting(CPU, InstalledEngines()))


def test_address_is_asked(tmp_path: Path) -> None:
    found = choose_engine("https://api.example.com/v1", Setting(CPU, InstalledEngines()), name="large")
    assert (found.model, found.engine, found.weights_bytes) == ("large", "endpoint", 0)
    with pytest.raises(ConfigError, match="is no model"):
        choose_engine(tmp_path / "nothing", Setting(CPU, ALL))


def test_adapters_count_their_base(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", folder_of(tmp_path / "m", "codes")
    base.mkdir()
    (base / "model.safetensors").write_bytes(bytes(500))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert choose_engine(folder, Setting(CPU, TORCH)).weights_bytes == 3_000_500


def test_text_tells_machine_engine_reasons_and_memory(tmp_path: Path) -> None:
    choices = [
        choose_engine(folder_of(tmp_path / "cards", "codes"), Setting(CPU, ALL)),
        choose_engine("https://api.example.com/v1", Setting(CPU, ALL), name="large"),
    ]
    assert explain_choices(choices, CPU).splitlines() == [
        "processor  Two Cores: 2 cores, AVX2, AVX512-BF16; no CUDA GPU",
        "",
        "cards",
        "  engine   PyTorch: labels scored in this process, requests together",
        "  why      its 2 answers are closed: one pass over the prompt gives the probability of each",
        "  weights  3 MB in memory, 2 threads",
        "  not llama.cpp: it writes labels token by token; quicker for one client, at 32 less than half the rate",
        "  not vLLM: its probabilities are not those that were measured",
        "",
        "large",
        "  engine   endpoint: asked at its address",
        "  why      it is an address",
    ]


def test_machine_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_looking_loads_no_engine() -> None:
    text = (
        "import sys\n"
        "from smallfirst.models.servers.selection import this_setting\n"
        "assert this_setting().machine.cores > 0\n"
        "print(sorted({'torch', 'transformers', 'xllamacpp'} & sys.modules.keys()))\n"
    )
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True).stdout == "[]\n"
    assert this_setting(certified=False).certified is False
