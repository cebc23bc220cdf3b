"""LoRA adapters as peft saves them: written, read without trusting them, put over a base, merged into it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.base.files import sha256
from smallfirst.models.catalog import find_weights
from smallfirst.models.local.weights import import_transformers, load_causal, load_pretrained
from smallfirst.models.manifest import ADAPTER_CONFIG, Manifest, read_manifest, require_base

ADAPTER_WEIGHTS = "adapter_model.safetensors"
SETTINGS = ("r", "lora_alpha", "target_modules")
"""The settings of peft that are read; the rest is about training, or names code or places that are not followed."""
RESCALED = ("use_rslora", "rank_pattern", "alpha_pattern")
"""Settings of peft by which an adapter would count for another scale than lora_alpha / r."""
OWN_NAME = "default"
"""Name that peft gives to the adapter in training."""


def load_merged(folder: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder that training wrote; an adapter is merged into its base.

    Raise ConfigError if the adapter does not fit the base that is found here, WeightsNotFound if none is.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return load_causal(folder)
    model, _ = load_causal(find_base(folder, manifest := read_manifest(folder)))
    attach_adapter(model, folder, base=manifest.base)
    tokenizer = load_pretrained(import_transformers("Running a local model").AutoTokenizer, folder)
    return merge_adapters(model).to(model.device), tokenizer


def find_base(folder: Path, manifest: Manifest) -> Path:
    """Return the folder of the base that the adapter in `folder` was trained on, or raise ConfigError."""
    base = find_weights(manifest.base)
    require_base(folder, manifest, base)
    return base


def save_adapter(model: Any, folder: Path) -> str:
    """Write the adapter of a model in training as peft does; return the fingerprint of its weights."""
    import peft
    from safetensors.torch import save_file

    config = model.peft_config[OWN_NAME]
    base = Path(model.config.name_or_path).name.replace("--", "/", 1)  # no path of this machine
    settings = {**config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
    text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    weights = peft.get_peft_model_state_dict(model, adapter_name=OWN_NAME, save_embedding_layers=False)
    tensors = {f"base_model.model.{name}": weight.cpu().contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    return sha256(folder / ADAPTER_WEIGHTS)[:16]


def attach_adapter(model: Any, folder: Path, *, base: str) -> None:
    """Put the adapter in `folder` over `model`, in place. Raise ConfigError if it does not fit `base`."""
    try:
        import peft
    except ImportError:
        raise MissingExtra("Running adapters", "train") from None
    settings, weights = _read_settings(folder), _read_weights(folder)
    config = peft.LoraConfig(**settings, inference_mode=True, task_type=peft.TaskType.CAUSAL_LM)
    try:
        wrapped = peft.get_peft_model(model, config, OWN_NAME, autocast_adapter_dtype=False)
        found: Any = peft.set_peft_model_state_dict(wrapped, weights, OWN_NAME)
        wrong = [*(key for key in found.missing_keys if f".{OWN_NAME}." in key), *found.unexpected_keys]
    except (RuntimeError, ValueError, KeyError) as error:
        wrong = [str(error)]
    if wrong:
        raise ConfigError(f"{folder}: this adapter does not fit the base {base}: {wrong[0]}")
    wrapped.eval().requires_grad_(False)


def merge_adapters(model: Any) -> Any:
    """Return the model with its adapters merged, in fp32 before rounding once; without any, the model itself.

    Merged weights are in the processor's memory, others are shared with `model`, which stays as it is. A base in four
    bits is written out in bf16: the sums are those of the model that was trained.
    """
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return model
    from peft.tuners.lora import LoraLayer

    whole = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for name, module in list(whole.named_modules()):
        parent, _, own = name.rpartition(".")
        if isinstance(module, LoraLayer) or (_in_4_bits(module) and own != "base_layer"):
            setattr(whole.get_submodule(parent), own, _merged(module))
    # peft and bitsandbytes mark the model in places that save_pretrained would follow.
    whole._hf_peft_config_loaded, whole.hf_quantizer = False, None
    if hasattr(whole.config, "quantization_config"):
        del whole.config.quantization_config
    return whole


def _merged(module: Any) -> Any:
    import torch

    base = module.get_base_layer() if hasattr(module, "lora_A") else module
    if _in_4_bits(base):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(base.weight.data, base.weight.quant_state).float()
        for name in getattr(module, "active_adapters", ()):
            weight += module.scaling[name] * module.lora_B[name].weight.float() @ module.lora_A[name].weight.float()
        dtype = torch.bfloat16
    else:
        sums = copy.deepcopy(module).float()
        sums.merge()
        weight, dtype = sums.get_base_layer().weight, base.weight.dtype
    linear = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight.detach().to("cpu", dtype), requires_grad=False)
    linear.bias = base.bias
    return linear.train(module.training)


def _in_4_bits(module: Any) -> bool:
    return type(getattr(module, "weight", None)).__name__ == "Params4bit"


def _read_settings(folder: Path) -> Mapping[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(config, dict) or str(config.get("peft_type", "")).upper() != "LORA" or config.get("use_dora"):
        raise ConfigError(f"{path}: peft_type must be LORA, without use_dora; no other adapters are served")
    if scaled := [key for key in RESCALED if config.get(key)]:
        rule = f"{', '.join(scaled)} changes the scale of an adapter and is not read"
        raise ConfigError(f"{path}: {rule}", hint="merge it into the base with peft, and serve that")
    return {key: config[key] for key in SETTINGS if config.get(key) is not None}


def _read_weights(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    try:
        weights: dict[str, Any] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not readable as safetensors: {error}") from None
    other = [key for key in weights if ".layers." not in key or ".lora_" not in key]
    if other:
        rule = "only low-rank parts of the blocks' linear layers are served"
        raise ConfigError(f"{path}: {rule}, not {other[0]}", hint="merge it into the base, and serve that")
    return weights
