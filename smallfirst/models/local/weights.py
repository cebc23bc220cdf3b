"""Causal weights loaded by transformers from a folder of safetensors, and LoRA adapters over them as peft saves them.

Code that comes with weights is never run, and an adapter is read without trusting it.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.base.files import sha256
from smallfirst.models.catalog import find_weights
from smallfirst.models.local.tokenizer import import_transformers, load_pretrained
from smallfirst.models.manifest import ADAPTER_CONFIG, read_manifest, require_base

if TYPE_CHECKING:
    import torch


DEVICE_VARIABLE = "SMALLFIRST_DEVICE"
"""Environment variable that names the device of models: `cpu`, `cuda`, `cuda:1`, `mps`."""


def choose_device() -> torch.device:
    """Return the device that models are trained and run on.

    What SMALLFIRST_DEVICE names, else the CUDA GPU of this process (of several on a machine the one of its LOCAL_RANK),
    else the processor. Raise ConfigError if it names one that is not here.
    """
    import torch

    name = os.environ.get(DEVICE_VARIABLE, "").strip()
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ConfigError(f'{DEVICE_VARIABLE}: "{name}" is no device', hint="name cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    here = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= here.get(device.type, 0):
        raise ConfigError(
            f"{DEVICE_VARIABLE} is {name}, and this machine or this build of PyTorch has no such device",
            hint="unset it to use what is here, or install PyTorch for your GPU (pytorch.org)",
        )
    return device


def load_causal(folder: Path, *, nf4: bool = False) -> tuple[Any, Any]:
    """Return the model (bf16, evaluation mode) and its tokenizer. Raise ConfigError, or MissingExtra without torch.

    With `nf4` the matrices of its blocks are in 4-bit NormalFloat, their scales in 8 bits (Dettmers et al. 2023).
    """
    transformers = import_transformers("Running a local model")
    import torch

    from smallfirst.models.local import packed_rows

    keep_freed_memory()
    device, settings = choose_device(), dict[str, Any]()
    if nf4:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtra("A base in 4 bits (method: qlora)", "gpu")
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        settings["device_map"] = {"": device}  # each matrix is packed there as it is read
    tokenizer = load_pretrained(transformers.AutoTokenizer, folder)
    model = load_pretrained(
        transformers.AutoModelForCausalLM,
        folder,
        dtype=torch.bfloat16,
        use_safetensors=True,
        attn_implementation=packed_rows.register(),
        **settings,
    )
    for part in model.modules() if nf4 else ():
        part.support_avx512bf16_for_cpu = False  # it would round the scales once more at the first validation
    return (model if nf4 else model.to(device)).eval(), tokenizer


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: mapping fresh pages takes a sixth of a training step."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc only; elsewhere nothing changes
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def release_memory() -> None:
    """Give back what nothing refers to any more.

    glibc keeps freed blocks below 32 MB, which most weights and gradients are: after a fine-tune of 135 M weights a
    process of 3.1 GB is one of 0.7 GB.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)


def weights_fingerprint(model: Any) -> str:
    """Return 16 hex digits that change with any weight (SHA-256 of each tensor's name and bytes)."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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
    manifest = read_manifest(folder)
    base = find_weights(manifest.base)
    require_base(folder, manifest, base)
    model, _ = load_causal(base)
    attach_adapter(model, folder, base=manifest.base)
    tokenizer = load_pretrained(import_transformers("Running a local model").AutoTokenizer, folder)
    return merge_adapters(model).to(model.device), tokenizer


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
