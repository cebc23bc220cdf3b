"""A causal model on this machine, read at one position: probabilities over all labels from one forward pass.

Read by the packed engine where the model's family and the machine allow it (`models.packed`), in eight bits where a
check on rows has shown the same answers (`models.quantised`), else by transformers' own forward: rows sorted by length
and padded on the right without an attention mask, since causal attention never looks at what comes later. Only the code
tokens' rows of the output matrix are multiplied.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smallfirst.errors import ConfigError, MissingExtra
from smallfirst.models.compute_thread import run_in_compute_thread
from smallfirst.models.label_model import LabelLogProbs, TextEmbedding
from smallfirst.models.manifest import Manifest
from smallfirst.progress import disable_tqdm_in_pipes

if TYPE_CHECKING:
    import torch

    from smallfirst.models.local.packed_decoder import PackedDecoder

Engine = Literal["transformers", "packed", "eight bits"]
"""Who multiplies: transformers' own forward, or the packed one in the model's precision or in eight bits."""

PACKED_BATCH_TOKENS = 256
"""Tokens that the packed engine reads together. Without padding more of them only leave the cache: 8 or 16 rows of 15
tokens were a tenth faster than 32 in eight bits, and a third faster than 48 (one core of an AMD EPYC, 1 MB of L2)."""


class LabelScorer:
    """Weights and tokenizer of a causal model, and the label probabilities they give. Not thread-safe."""

    batch_rows = 32
    batch_tokens = 1024
    """Most tokens in a batch that has more than one row: what one long text waits for another."""

    def __init__(self, model: Any, tokenizer: Any, manifest: Manifest) -> None:
        """Read by transformers' own forward, so weights may go on being trained."""
        import torch

        self.model, self.tokenizer, self.manifest = model, tokenizer, manifest
        self.codes = torch.tensor(manifest.codes)
        self.engine: Engine = "transformers"
        self._packed: PackedDecoder | None = None
        self._on_duty = False
        self._edges = self._common_edges()

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, *, engine: Engine | None = None) -> LabelScorer:
        """From a folder written by training, with the fastest engine that gives its answers, or with the one named.

        A named engine that cannot be had falls back to the next slower one; `engine` of the result says which it is.
        The packed engine keeps its own copy of the layers' weights; those of the model itself stay on disk, mapped.
        """
        model, tokenizer = load_causal(folder)
        scorer = cls(model, tokenizer, manifest)
        scorer._pack(engine or _checked(folder, manifest))
        scorer._on_duty = True
        return scorer

    @property
    def beginning(self) -> list[int]:
        """Tokens with which every prompt of the task begins: the start token and the operator's own words."""
        return self._edges[0]

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        """Label probabilities of each text, in order, at the machine's prefill speed."""
        return run_in_compute_thread(lambda: self._scored(texts)) if self._on_duty else self._scored(texts)

    def _scored(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        encoded = self._encode(texts)
        results: dict[int, LabelLogProbs] = {}
        for chosen in self._batches(encoded):
            began = time.perf_counter()
            rows = self._forward([encoded[i] for i in chosen])
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: LabelLogProbs(row, len(encoded[i]), busy_s) for i, row in zip(chosen, rows, strict=True)}
        return [results[i] for i in range(len(encoded))]

    def embed(self, texts: Sequence[str]) -> list[TextEmbedding]:
        """For each text, in order, the mean of the last hidden states of its own tokens, at length 1.

        The prompt's fixed beginning and its cue are read with it but not averaged.
        """
        return run_in_compute_thread(lambda: self._embedded(texts)) if self._on_duty else self._embedded(texts)

    def _embedded(self, texts: Sequence[str]) -> list[TextEmbedding]:
        encoded = self._encode(texts)
        results: dict[int, TextEmbedding] = {}
        for chosen in self._batches(encoded):
            began = time.perf_counter()
            vectors = [self._vector(encoded[i], s) for i, s in zip(chosen, self._states(encoded, chosen), strict=True)]
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: TextEmbedding(v, len(encoded[i]), busy_s) for i, v in zip(chosen, vectors, strict=True)}
        return [results[i] for i in range(len(encoded))]

    def _pack(self, engine: Engine) -> None:
        """Nothing back; read by this engine from now on, or by the next slower one that can be had."""
        from smallfirst.models.local.int8_matmul import Int8Linear, int8_supported
        from smallfirst.models.local.packed_decoder import PackedDecoder, unsupported_reason
        from smallfirst.models.local.smoothquant import MAX_PROMPTS, measure_input_ranges

        if engine == "transformers" or unsupported_reason(self.model):
            return
        if engine == "eight bits" and int8_supported():
            ranges = measure_input_ranges(self.model, self._encode(self.manifest.task.closed[:MAX_PROMPTS]))
            self._packed = PackedDecoder(self.model, Int8Linear, ranges=ranges)
        else:
            engine, self._packed = "packed", PackedDecoder(self.model)
        self.engine, self.batch_tokens = engine, PACKED_BATCH_TOKENS
        self._packed.share(self.beginning)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        task, most = self.manifest.task, self.manifest.max_tokens
        return [encode_prompt(self.tokenizer, task.prompt(text), most) for text in texts]

    def _batches(self, encoded: list[list[int]]) -> Iterator[list[int]]:
        """Numbers of the prompts of each batch, which are alike in length."""
        batch: list[int] = []
        for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
            full = (len(batch) + 1) * len(encoded[i]) > self.batch_tokens
            if batch and (full or len(batch) >= self.batch_rows):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _forward(self, batch: list[list[int]]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            last = self._last_states(batch)
            head = self.model.get_output_embeddings().weight[self.codes.to(last.device)].float()
            return torch.log_softmax(last @ head.T, dim=-1).tolist()  # (batch, labels)

    def _last_states(self, batch: list[list[int]]) -> torch.Tensor:
        """State after each prompt's last token (batch, hidden), fp32."""
        import torch

        if self._packed:
            return self._packed.last_states(batch)
        ends = torch.tensor([len(ids) for ids in batch]) - 1
        return self._padded(batch)[torch.arange(len(batch)), ends].float()

    def _padded(self, batch: list[list[int]]) -> torch.Tensor:
        """States of transformers' own forward (batch, longest, hidden)."""
        import torch

        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = torch.tensor(row)
        states: torch.Tensor = self.model.model(input_ids=ids.to(self.model.device), use_cache=False).last_hidden_state
        return states

    def _states(self, encoded: list[list[int]], chosen: list[int]) -> list[torch.Tensor]:
        """States after every token of the chosen prompts, each (its tokens, hidden), fp32."""
        import torch

        batch = [encoded[i] for i in chosen]
        if self._packed:
            return self._packed.all_states(batch)
        with torch.inference_mode():
            return [s[: len(ids)].float() for s, ids in zip(self._padded(batch), batch, strict=True)]

    def _vector(self, ids: list[int], states: torch.Tensor) -> list[float]:
        import torch

        before, after = map(len, self._edges)
        own = states[before : len(ids) - after] if len(ids) > before + after else states  # an empty text has none
        vector: list[float] = torch.nn.functional.normalize(own.double().mean(dim=0), dim=0).tolist()
        return vector

    def _common_edges(self) -> tuple[list[int], list[int]]:
        """What the prompts of two texts that have nothing in common begin and end with."""
        one, other = self._encode(["a", "Z 9"])
        begin, end = _common(one, other), _common(one[::-1], other[::-1])[::-1]
        room = min(len(one), len(other)) - 1
        return begin[:room], end[len(end) - max(0, min(len(end), room - len(begin))) :]


def _common(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]


def _checked(folder: Path, manifest: Manifest) -> Engine:
    from smallfirst.models.local.int8_check import int8_allowed

    return "eight bits" if int8_allowed(folder, manifest) else "packed"


def encode_prompt(tokenizer: Any, prompt: str, max_tokens: int) -> list[int]:
    """Start token, then the prompt; if too long, its middle is cut (the cue at the end always stays)."""
    start = tokenizer.bos_token_id
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False, **plain_text_options(tokenizer, prompt))
    if start is not None:
        ids = [start, *ids]
    if len(ids) > max_tokens:
        half = max_tokens // 2
        ids = ids[:half] + ids[len(ids) - (max_tokens - half) :]
    return ids


def plain_text_options(tokenizer: Any, text: str) -> dict[str, bool]:
    """How to encode a text in which somebody spells a control token: as the words it is, never as the token."""
    control = getattr(tokenizer, "all_special_tokens", ())
    return {"split_special_tokens": True} if any(token in text for token in control) else {}


def refuse_remote_code(folder: Path) -> None:
    """Nothing for a folder of plain weights. Raises ConfigError if it asks to run code of its own."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file() and "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            raise ConfigError(
                f"{path} names code to run (auto_map), and nothing that comes with weights is run here",
                hint="take a model of a family that transformers has itself",
            )


def load_causal(folder: Path) -> tuple[Any, Any]:
    """Model (bf16, evaluation mode) and tokenizer from a folder of safetensors. Raises MissingExtra."""
    transformers = quiet_transformers("Running a local model")
    import torch

    from smallfirst.models.local import attention

    keep_freed_memory()
    refuse_remote_code(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation=attention.register(),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def quiet_transformers(step: str) -> Any:
    """The transformers module, its chatter and bars off. Raises MissingExtra naming `step`."""
    disable_tqdm_in_pipes()
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
