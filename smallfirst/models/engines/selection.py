"""Choose the engine that runs a model, explain the choice, and load the model with it.

One choice serves `load_model`, the general model of a task file and `smallfirst serve --explain`. Engines are asked in
the order of the registry and the first that can run the model does; a model may name its engine instead. Looking
imports no engine, so a gateway without PyTorch can choose as well.

To add an engine, write a class with the three methods of `Engine` and register an instance under its name:

    [project.entry-points."smallfirst.engines"]
    my_engine = "my_package.module:MY_ENGINE"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smallfirst.errors import ConfigError
from smallfirst.extensions import Registry
from smallfirst.models.engines.engine import Assessment, Engine, Environment, ModelSource
from smallfirst.models.engines.hardware import Hardware, detect_hardware
from smallfirst.models.protocol import Model
from smallfirst.records import Record

ENGINES: Registry[Engine] = Registry(
    "smallfirst.engines",
    {
        "endpoint": "smallfirst.models.engines.endpoint:ENDPOINT",
        "linear": "smallfirst.models.engines.linear:LINEAR",
        "llama.cpp": "smallfirst.models.engines.llama_cpp:LLAMA_CPP",
        "vLLM": "smallfirst.models.engines.vllm:VLLM",
        "PyTorch": "smallfirst.models.engines.pytorch:PYTORCH",
    },
    noun="engine",
)
"""All engines by name, preferred ones first."""


class EngineChoice(Record):
    """The engine of one model."""

    model: str
    """Name of the model."""
    engine: str
    """Name of the engine in ENGINES."""
    method: str
    """How it runs the model, in a few words."""
    reason: str
    """Why this engine."""
    alternatives: tuple[tuple[str, str], ...] = ()
    """Other engines, each with what speaks against it here."""
    weights: Path | None = None
    """File or folder that is loaded; None for an address."""
    weights_bytes: int = 0
    """Memory for the weights on this machine."""
    threads: int = 0
    """Threads that compute; 0 where another machine or a GPU does."""


def detect_environment() -> Environment:
    """Return the hardware of this machine and the engines installed on it."""
    return Environment(detect_hardware(), frozenset(name for name, engine in ENGINES if engine.is_installed()))


def choose_engine(source: ModelSource, environment: Environment) -> EngineChoice:
    """Return the engine for a model: the one it names, else the first in ENGINES that can run it.

    Raise ConfigError if there is none, naming the package to install where that would help.
    """
    name = source.name or (str(source.location) if source.is_address else source.path.stem)
    found = {engine: part.assess(source, environment) for engine, part in ENGINES}
    if source.engine:
        ENGINES.check(source.engine, where=name)
    chosen = source.engine or next((engine for engine, assessment in found.items() if assessment.usable), "")
    if not chosen or not found[chosen].usable:
        raise _unusable(name, source, {chosen: found[chosen]} if chosen else found)
    best = found[chosen]
    others = ((engine, one.drawback if one.usable else one.reason) for engine, one in found.items() if engine != chosen)
    return EngineChoice(
        model=name,
        engine=chosen,
        method=best.method,
        reason=best.reason,
        alternatives=tuple((engine, reason) for engine, reason in others if reason),
        weights=best.weights,
        weights_bytes=best.weights_bytes,
        threads=best.threads,
    )


def load(source: ModelSource) -> Model:
    """Return the model, run by the engine that `choose_engine` finds for it on this machine."""
    return ENGINES.get(choose_engine(source, detect_environment()).engine).load(source)


def explain_choices(choices: Sequence[EngineChoice], hardware: Hardware) -> str:
    """Return a text: the machine, then for each model its engine, the reason, its memory and the other engines."""
    features = ", ".join(hardware.features) or "no features known"
    gpus = f"{hardware.gpus} CUDA GPU{'s' * (hardware.gpus > 1)}" if hardware.gpus else "no CUDA GPU"
    lines = [f"processor  {hardware.processor}: {hardware.cores} cores, {features}; {gpus}"]
    for choice in choices:
        lines += ["", choice.model, f"  engine   {choice.engine}: {choice.method}", f"  why      {choice.reason}"]
        if choice.weights_bytes:
            threads = f", {choice.threads} thread{'s' * (choice.threads > 1)}" if choice.threads else ""
            lines.append(f"  weights  {choice.weights_bytes / 1e6:,.0f} MB in memory{threads}")
        lines += [f"  not {engine}: {reason}" for engine, reason in choice.alternatives]
    return "\n".join(lines)


def _unusable(name: str, source: ModelSource, found: dict[str, Assessment]) -> ConfigError:
    for engine, assessment in found.items():
        if assessment.install_hint:
            return ConfigError(f"{name} needs {engine}, which is not installed", hint=assessment.install_hint)
    if source.engine:
        return ConfigError(f"{name} cannot be run by {source.engine}: {found[source.engine].reason}")
    return ConfigError(
        f"{source.location} is not a model: neither a model folder, a folder of weights, a GGUF file nor an address"
    )
