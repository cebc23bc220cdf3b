"""Which engine answers for a model, and why not another: a pure choice from what is there, and a text that tells it.

Closed answers are read by PyTorch in this process, exactly as they were measured. What is written is written there too,
unless an export as GGUF lies beside the model and no certificate binds it to the engine it was made with: llama.cpp in
int8 moves half the bytes for each token, but its probabilities are not the ones that were certified. A GPU is vLLM's.
Nothing is imported to look: a gateway that holds no PyTorch can choose as well.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from smallfirst.errors import ConfigError
from smallfirst.models.manifest import MANIFEST, read_manifest
from smallfirst.models.servers.hardware import Hardware, detect_hardware
from smallfirst.models.servers.vllm import find_vllm
from smallfirst.records import Record

EngineName = Literal["linear", "PyTorch", "llama.cpp", "vLLM", "endpoint"]
WEIGHTS = ("*.safetensors", "*.gguf", "*.npz")


class InstalledEngines(Record):
    """Which engines are installed."""

    torch: bool = False
    """PyTorch and transformers, in this environment."""
    xllamacpp: bool = False
    """llama.cpp, in this environment."""
    vllm: bool = False
    """vLLM, in an environment of its own."""


class EngineChoice(Record):
    """The engine of one model."""

    model: str
    """What is served: a name."""
    engine: EngineName
    """Who answers."""
    how: str
    """How it does that, in a few words."""
    why: str
    """Why it is this one."""
    alternatives: tuple[tuple[str, str], ...] = ()
    """Other engines, each with what speaks against it here."""
    weights: Path | None = None
    """What is loaded: a file or a folder; None for an address."""
    weights_bytes: int = 0
    """Memory that the weights take in this machine."""
    threads: int = 0
    """Threads that compute; 0 where others do."""


class Setting(NamedTuple):
    """What a choice is made from."""

    machine: Hardware
    """The machine."""
    installed: InstalledEngines
    """The engines."""
    certified: bool = True
    """True if the model's confidences stand under a certificate, made with PyTorch."""


def this_setting(*, certified: bool = True, vllm: Path | None = None) -> Setting:
    """What this machine and this environment have. `vllm` names a program that is not on PATH."""
    there = {name: importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "xllamacpp")}
    installed = InstalledEngines(
        torch=there["torch"] and there["transformers"],
        xllamacpp=there["xllamacpp"],
        vllm=find_vllm(vllm) is not None,
    )
    return Setting(detect_hardware(), installed, certified)


def choose_engine(place: Path | str, setting: Setting, *, name: str = "") -> EngineChoice:
    """The engine for a model's folder, a GGUF file, a folder of bare weights, or an address.

    Raises ConfigError if it is none of these, or no installed engine can run it.
    """
    if isinstance(place, str) and place.startswith(("http://", "https://")):
        return EngineChoice(model=name or place, engine="endpoint", how="asked at its address", why="it is an address")
    path = Path(place)
    name = name or path.stem
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path, setting, name)
    if (path / MANIFEST).is_file():
        return _of_our_folder(path, setting, name)
    if (path / "config.json").is_file():
        return _of_bare_weights(path, setting, name)
    raise ConfigError(f"{path} is no model: neither a folder of one nor a GGUF file")


def find_gguf_export(folder: Path) -> Path | None:
    """A GGUF export of the model in a folder: in it, or beside it under its name; None if there is none.

    What is older than the model is no export of it.
    """
    found = [*sorted(folder.glob("*.gguf")), folder.with_name(f"{folder.name}.gguf")]
    made_s = (folder / MANIFEST).stat().st_mtime
    return next((path for path in found if path.is_file() and path.stat().st_mtime >= made_s), None)


def explain_choices(choices: Sequence[EngineChoice], machine: Hardware) -> str:
    """The machine, and each model with its engine, why, and what else there was; some lines each."""
    features = ", ".join(machine.features) or "no features known"
    gpus = f"{machine.gpus} CUDA GPU{'s' * (machine.gpus > 1)}" if machine.gpus else "no CUDA GPU"
    lines = [f"processor  {machine.processor}: {machine.cores} cores, {features}; {gpus}"]
    for choice in choices:
        lines += ["", choice.model, f"  engine   {choice.engine}: {choice.how}", f"  why      {choice.why}"]
        if choice.weights_bytes:
            threads = f", {choice.threads} thread{'s' * (choice.threads > 1)}" if choice.threads else ""
            lines.append(f"  weights  {choice.weights_bytes / 1e6:,.0f} MB in memory{threads}")
        lines += [f"  not {engine}: {reason}" for engine, reason in choice.alternatives]
    return "\n".join(lines)


def _of_our_folder(folder: Path, setting: Setting, name: str) -> EngineChoice:
    manifest, size, threads = read_manifest(folder), _size(folder), setting.machine.cores
    kept = {"model": name, "weights": folder, "weights_bytes": size, "threads": threads}
    if manifest.kind in ("words", "encoder"):
        why = "a linear model has nothing that another engine could speed up"
        return EngineChoice(engine="linear", how="scored in this process", why=why, **{**kept, "threads": 1})
    if manifest.kind != "codes" and (export := find_gguf_export(folder)) and _may_leave(setting):
        return EngineChoice(
            model=name,
            engine="llama.cpp",
            how="written by a child process",
            why=f"{export.name} lies beside it: fewer bytes for each written token; and no certificate binds it",
            alternatives=(("PyTorch", "faster at reading long prompts, slower at writing in bf16"), _not_vllm(setting)),
            weights=export,
            weights_bytes=export.stat().st_size,
            threads=threads,
        )
    if not setting.installed.torch:
        raise ConfigError(f"{name} needs PyTorch, which is not installed", hint='pip install "smallfirst[train]"')
    if manifest.kind == "codes":
        n_labels = len(manifest.codes)
        return EngineChoice(
            engine="PyTorch",
            how="labels scored in this process, requests together",
            why=f"its {n_labels} answers are closed: one pass over the prompt gives the probability of each",
            alternatives=(
                (
                    "llama.cpp",
                    "it writes labels token by token; quicker for one client, at 32 less than half the rate",
                ),
                ("vLLM", "its probabilities are not those that were measured"),
            ),
            **kept,
        )
    return EngineChoice(
        engine="PyTorch",
        how="written in this process, requests together",
        why="its answers and confidences are those that were measured",
        alternatives=(("llama.cpp", _why_not_llama(folder, setting)), _not_vllm(setting, certified=setting.certified)),
        **kept,
    )


def _of_gguf(path: Path, setting: Setting, name: str) -> EngineChoice:
    if not setting.installed.xllamacpp:
        raise ConfigError(f"{path} needs llama.cpp, which is not installed", hint='pip install "smallfirst[llama]"')
    return EngineChoice(
        model=name,
        engine="llama.cpp",
        how="in a child process, behind a Unix socket",
        why="it is a GGUF file, which llama.cpp runs as it is",
        alternatives=(
            ("PyTorch", "it would unpack the weights to two or four times the memory"),
            ("vLLM", "it takes folders of safetensors"),
        ),
        weights=path,
        weights_bytes=path.stat().st_size,
        threads=setting.machine.cores,
    )


def _of_bare_weights(folder: Path, setting: Setting, name: str) -> EngineChoice:
    kept = {"model": name, "weights": folder, "weights_bytes": _size(folder)}
    if setting.machine.gpus and setting.installed.vllm:
        return EngineChoice(
            engine="vLLM",
            how="a server of its own, behind a Unix socket",
            why=f"{setting.machine.gpus} CUDA GPU, and vLLM is installed: it answers many requests side by side",
            alternatives=(("PyTorch", "it writes for fewer requests at once"), ("llama.cpp", "it needs a GGUF file")),
            **kept,
        )
    if not setting.installed.torch:
        raise ConfigError(f"{name} needs PyTorch, which is not installed", hint='pip install "smallfirst[train]"')
    return EngineChoice(
        engine="PyTorch",
        how="written in this process, requests together",
        why="the weights are a folder of safetensors",
        alternatives=(("llama.cpp", "it needs a GGUF file"), _not_vllm(setting)),
        threads=setting.machine.cores,
        **kept,
    )


def _may_leave(setting: Setting) -> bool:
    return setting.installed.xllamacpp and not setting.certified


def _why_not_llama(folder: Path, setting: Setting) -> str:
    if find_gguf_export(folder) is None:
        return "no export as GGUF lies beside the model, newer than it (smallfirst export)"
    if not setting.installed.xllamacpp:
        return 'it is not installed (pip install "smallfirst[llama]")'
    return "its confidences are not those that were certified; serve the export under a name of its own"


def _not_vllm(setting: Setting, *, certified: bool = False) -> tuple[str, str]:
    if certified:
        return "vLLM", "its confidences are not those that were certified"
    if not setting.machine.gpus:
        return "vLLM", "there is no CUDA GPU"
    return "vLLM", "not for a task's own model" if setting.installed.vllm else "it is not installed"


def _size(folder: Path) -> int:
    """Bytes of the weights in a folder; of adapters, with their base."""
    own = _bytes(path for ending in WEIGHTS for path in folder.glob(ending))
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return own
    return own + (_bytes(Path(base).glob("*.safetensors")) if Path(base).is_dir() else 0)


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
