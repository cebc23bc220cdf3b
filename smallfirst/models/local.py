"""A causal model on this machine, read at one position: probabilities over all labels from one forward pass.

Rows are sorted by length and padded on the right without an attention mask: causal attention never looks at what comes
later, so padding cannot change an answer. Only the code tokens' rows of the output matrix are multiplied.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallfirst.errors import MissingExtra
from smallfirst.models.manifest import Manifest
from smallfirst.models.scored import Scored
from smallfirst.watching import quiet_in_a_pipe


class LabelScorer:
    """Weights and tokenizer of a causal model, and the label probabilities they give. Not thread-safe."""

    batch_rows = 32

    def __init__(self, model: Any, tokenizer: Any, manifest: Manifest) -> None:
        import torch

        self.model, self.tokenizer, self.manifest = model, tokenizer, manifest
        self.codes = torch.tensor(manifest.codes)

    @classmethod
    def load(cls, folder: Path, manifest: Manifest) -> LabelScorer:
        """From a folder written by training."""
        model, tokenizer = load_causal(folder)
        return cls(model, tokenizer, manifest)

    def score(self, texts: Sequence[str]) -> list[Scored]:
        """Label probabilities of each text, in order, at the machine's prefill speed."""
        task, most = self.manifest.task, self.manifest.max_tokens
        encoded = [encode_prompt(self.tokenizer, task.prompt(text), most) for text in texts]
        results: dict[int, Scored] = {}
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), self.batch_rows):
            chosen = order[start : start + self.batch_rows]
            began = time.perf_counter()
            rows = self._forward([encoded[i] for i in chosen])
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: Scored(row, len(encoded[i]), busy_s) for i, row in zip(chosen, rows, strict=True)}
        return [results[i] for i in range(len(encoded))]

    def _forward(self, batch: list[list[int]]) -> list[list[float]]:
        import torch

        device = self.model.device
        lengths = torch.tensor([len(ids) for ids in batch])
        ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = torch.tensor(row)
        with torch.inference_mode():
            hidden = self.model.model(input_ids=ids.to(device), use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(batch)), lengths - 1].float()  # (batch, hidden)
            head = self.model.get_output_embeddings().weight[self.codes.to(device)].float()
            return torch.log_softmax(last @ head.T, dim=-1).tolist()  # (batch, labels)


def encode_prompt(tokenizer: Any, prompt: str, max_tokens: int) -> list[int]:
    """Start token, then the prompt; if too long, its middle is cut (the cue at the end always stays)."""
    start = tokenizer.bos_token_id
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    if start is not None:
        ids = [start, *ids]
    if len(ids) > max_tokens:
        half = max_tokens // 2
        ids = ids[:half] + ids[len(ids) - (max_tokens - half) :]
    return ids


def load_causal(folder: Path) -> tuple[Any, Any]:
    """Model (bf16, evaluation mode) and tokenizer from a folder of safetensors. Raises MissingExtra."""
    transformers = quiet_transformers("Running a local model")
    import torch

    from smallfirst.models import attention

    keep_freed_memory()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        use_safetensors=True,
        local_files_only=True,
        attn_implementation=attention.register(),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def quiet_transformers(step: str) -> Any:
    """The transformers module, its chatter and bars off. Raises MissingExtra naming `step`."""
    quiet_in_a_pipe()
    try:
        import torch  # noqa: F401 - transformers imports without it and fails later
        import transformers as module
    except ImportError:
        raise MissingExtra(step, "train") from None
    transformers: Any = module  # its functions carry no types
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def keep_freed_memory() -> None:
    """Nothing back; tells glibc to keep what is freed instead of returning it to the system.

    Every step frees and takes back the same large arrays. Fetching them as fresh pages each time costs about a sixth
    of a training step on two cores; keeping them costs the memory of the largest step.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc only; elsewhere nothing changes
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def weights_fingerprint(model: Any) -> str:
    """16 hex digits that change with any weight (SHA-256 of each tensor's name and bytes)."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
