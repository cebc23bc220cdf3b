"""Causal weights loaded by transformers from a folder of safetensors; code that comes with weights is never run."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallfirst.base.errors import ConfigError, MissingExtra
from smallfirst.base.progress import disable_tqdm_in_pipes

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


def import_transformers(step: str, *, weights: bool = True) -> Any:
    """Return the transformers module, its log lines and progress bars off. Raise MissingExtra naming `step`.

    Without `weights` only tokenizers are wanted, which need no PyTorch.
    """
    disable_tqdm_in_pipes()
    try:
        if weights:
            import torch  # noqa: F401 - transformers imports without it and fails later
        import transformers as module
    except ImportError:
        raise MissingExtra(step, "train" if weights else "serve") from None
    transformers: Any = module  # its functions carry no types
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_pretrained(auto_class: Any, folder: Path, **settings: Any) -> Any:
    """Return what a class of transformers loads from `folder`; the only call of `from_pretrained`.

    Nothing is fetched, no code of the folder is run and nobody is asked whether it may. Raise ConfigError if it
    brings code.
    """
    refuse_remote_code(folder)
    return auto_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **settings)


def refuse_remote_code(folder: Path) -> None:
    """Raise ConfigError if the folder holds Python or a configuration that asks to run some."""
    hint = "use a model of a family that transformers itself implements"
    if code := next(folder.glob("*.py"), None):
        raise ConfigError(f"{code} is code, and code that comes with weights is never run", hint=hint)
    for path in folder.glob("*config.json"):
        if '"auto_map"' in path.read_text(encoding="utf-8"):
            raise ConfigError(
                f"{path} names code to run (auto_map), and code that comes with weights is never run", hint=hint
            )


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
