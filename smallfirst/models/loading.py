"""Load the model in a folder, whatever kind it is."""

from __future__ import annotations

from pathlib import Path

from smallfirst.models.engines.engine import ModelSource
from smallfirst.models.engines.selection import load
from smallfirst.models.manifest import read_manifest
from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import VllmServer
from smallfirst.pricing.machine import MachinePrice
from smallfirst.pricing.prices import PriceBook
from smallfirst.sync import run_in_thread


def load_model(
    folder: Path,
    *,
    name: str = "",
    price: MachinePrice | None = None,
    certified: bool = True,
    vllm: VllmServer | None = None,
) -> Model:
    """Return the model in a folder that training or the registry wrote, ready to answer, or raise ConfigError.

    With `certified=False`, where no certificate covers its confidences, a faster engine than the measured one may run
    it. With `vllm` that runs language models; linear ones and encoders stay in this process.
    """
    read_manifest(folder)  # raises the error that names what is missing
    prices = PriceBook(machine=price or MachinePrice())
    source = on_vllm(ModelSource(folder, name, certified=certified, prices=prices), vllm)
    return run_in_thread(lambda: load(source))


def on_vllm(source: ModelSource, vllm: VllmServer | None) -> ModelSource:
    """Return the source with vLLM as its engine, where that is given and it is a language model."""
    if vllm is None or source.kind not in ("label", "generative"):
        return source
    return source._replace(engine="vLLM", settings=vllm.model_dump(exclude_defaults=True))
