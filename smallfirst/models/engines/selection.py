"""Choose the engine that runs a model, explain the choice, and load the model with it; no engine is imported to choose.

To add one, register an instance with the methods of `Engine` in the entry-point group `smallfirst.engines`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.extensions import Registry
from smallfirst.models.catalog import find_weights
from smallfirst.models.engines.engine import Assessment, Engine, Environment, ModelSource
from smallfirst.models.engines.hardware import Hardware, detect_hardware
from smallfirst.models.manifest import ADAPTER_CONFIG, read_manifest
from smallfirst.models.protocol import Model

ENGINES: Registry[Engine] = Registry(
    "smallfirst.engines",
    {
        "endpoint": "smallfirst.models.engines.endpoint:ENDPOINT",
        "linear": "smallfirst.models.engines.in_process:LINEAR",
        "spans": "smallfirst.models.engines.in_process:SPANS",
        "llama.cpp": "smallfirst.models.engines.llama_cpp:LLAMA_CPP",
        "vLLM": "smallfirst.models.engines.vllm:VLLM",
        "PyTorch": "smallfirst.models.engines.pytorch:PYTORCH",
    },
    noun="engine",
)
"""All engines by name, preferred ones first."""


class EngineChoice(NamedTuple):
    """The engine of one model."""

    model: str
    engine: str
    assessment: Assessment
    alternatives: dict[str, str]
    """Other engines, each with what speaks against it here."""

    @property
    def weights_bytes(self) -> int:
        """Memory for the weights; for an adapter, those of its base included."""
        return _size(self.assessment.weights) if self.assessment.weights else 0


def detect_environment() -> Environment:
    """Return the hardware of this machine and the engines installed on it."""
    return Environment(detect_hardware(), frozenset(name for name, engine in ENGINES if engine.is_installed()))


def choose_engine(source: ModelSource, environment: Environment) -> EngineChoice:
    """Return the engine the model names, else the first that can run it. Raise ConfigError, or MissingExtra."""
    if source.engine:
        ENGINES.check(source.engine)
    found = {engine: part.assess(source, environment) for engine, part in ENGINES}
    candidates = {source.engine: found[source.engine]} if source.engine else found
    chosen = next((engine for engine, one in candidates.items() if one.usable), None)
    if chosen is None:
        raise _no_engine(source, candidates)
    name = source.name or (str(source.location) if source.kind == "address" else source.path.stem)
    against = {engine: one.drawback if one.usable else one.reason for engine, one in found.items() if engine != chosen}
    return EngineChoice(name, chosen, found[chosen], {engine: reason for engine, reason in against.items() if reason})


def load(source: ModelSource) -> Model:
    """Return the model, run by the engine that `choose_engine` finds for it on this machine."""
    return ENGINES.get(choose_engine(source, detect_environment()).engine).load(source)


def explain_choices(choices: Sequence[EngineChoice], hardware: Hardware) -> str:
    """Return a text: the machine, then for each model its engine, the reason, its memory and the other engines."""
    features = ", ".join(hardware.features) or "no features known"
    gpus = f"{hardware.gpus} CUDA GPU{'s' * (hardware.gpus > 1)}" if hardware.gpus else "no CUDA GPU"
    lines = [f"processor  {hardware.processor}: {hardware.cores} cores, {features}; {gpus}"]
    for choice in choices:
        found = choice.assessment
        lines += ["", choice.model, f"  engine   {choice.engine}: {found.method}", f"  why      {found.reason}"]
        if size := choice.weights_bytes:
            threads = f", {found.threads} thread{'s' * (found.threads > 1)}" if found.threads else ""
            lines.append(f"  weights  {size / 1e6:,.0f} MB in memory{threads}")
        lines += [f"  not {engine}: {reason}" for engine, reason in choice.alternatives.items()]
    return "\n".join(lines)


def _no_engine(source: ModelSource, candidates: dict[str, Assessment]) -> SmallfirstError:
    for assessment in candidates.values():
        if assessment.missing:
            return assessment.missing
    if source.engine:
        return ConfigError(f"{source.location} cannot be run by {source.engine}: {candidates[source.engine].reason}")
    return ConfigError(
        f"{source.location} is not a model: neither a model folder, a folder of weights, a GGUF file nor an address"
    )


def _size(weights: Path) -> int:
    if weights.is_file():
        return weights.stat().st_size
    files = [path for ending in ("safetensors", "gguf", "npz") for path in weights.glob(f"*.{ending}")]
    try:
        if (weights / ADAPTER_CONFIG).is_file():
            files += find_weights(read_manifest(weights).base, download=False).glob("*.safetensors")
    except SmallfirstError:
        pass
    return sum(path.stat().st_size for path in files)
