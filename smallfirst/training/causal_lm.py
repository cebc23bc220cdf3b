"""Train a causal language model: loading, the forward pass, the loss and its gradient, saving, validation.

The loss of a step is the mean over the target tokens of its whole batch, however the batch is cut. Rows are packed:
padding costs nothing, a prefix common to all rows of a batch is computed once, and the vocabulary is projected only at
target positions. After it: what fits the model to its device (precision, checkpointed layers, faster kernels); and the
validation after each epoch: the score on selection rows, and the calibration fitted on them.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from smallfirst.base.errors import TrainingError
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.calibration import calibrate_answers, calibrate_labels
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.models.generation.generator import GenerationRequest, Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.model import chat_prompt, text_prompt
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.local.packed_rows import PackedRows, gather_rows, pack_rows
from smallfirst.models.local.tokenizer import encode_prompt, end_of_turn_token
from smallfirst.models.local.weights import load_causal, merge_adapters, save_adapter, weights_fingerprint
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Request
from smallfirst.training.config import Precision, TokenizedRow, TrainConfig, ValidationResult
from smallfirst.training.estimates import LOSS_TARGETS, fits_in_fp32, needs_checkpointing
from smallfirst.training.loop import Group, MasterAdamW, epoch_batches, measured_rows, micro_batches
from smallfirst.training.precision import ChosenPrecision, fastest_precision, in_precision, set_precision

MIN_SHARED_PREFIX_TOKENS = 2
"""A shorter common prefix saves less than computing it apart costs."""


class CausalBackend:
    """The Backend of causal models: next-token loss on the answer's tokens; every weight, or adapters."""

    keeps_adapters = False
    size: BaseSize | None = None

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        self.size = read_base_size(base)
        self.keeps_adapters = config.adapters == "kept"
        model, tokenizer = load_causal(base, nf4=config.method == "qlora")
        use_fast_kernels(model)
        require_isolated_rows(model)
        if config.method != "full":
            model = add_adapters(model, config)
        elif config.frozen_layers:
            freeze_below(model, config.frozen_layers)
        return model, tokenizer

    def begin(
        self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig, began_in: Precision | None = None
    ) -> ChosenPrecision:
        if needs_checkpointing(self.size, config, rows):
            checkpoint_layers(model)
        alone = model.device.type == "cpu" and not dist.is_initialized()
        if not (alone and fits_in_fp32(self.size, config, rows)):
            return ChosenPrecision("bf16", "bf16")
        sample = measured_rows(self.batches(rows, config, config.seed)[0])
        chosen = fastest_precision(model, lambda: target_loss(model, sample), began_in)
        if chosen.name == "fp32":
            learn_in_fp32(model)
        return chosen

    def batches(self, rows: Sequence[TokenizedRow], config: TrainConfig, seed: int) -> list[list[TokenizedRow]]:
        return epoch_batches(rows, batch_tokens=config.batch_tokens, seed=seed)

    def gradient(self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig, optimizer: MasterAdamW) -> float:
        return accumulate_gradient(model, rows, config, optimizer)

    def save(self, model: Any, tokenizer: Any, folder: Path) -> str:
        tokenizer.save_pretrained(folder)
        if self.keeps_adapters:
            return save_adapter(model, folder)
        whole = merge_adapters(model)
        whole.save_pretrained(folder)
        return weights_fingerprint(whole)


def add_adapters(model: Any, config: TrainConfig) -> Any:
    """Return the model with LoRA (Hu et al. 2021) on all linear layers of its blocks."""
    import peft

    layers = model.model.layers
    linear = {name.rpartition(".")[2] for name, part in layers.named_modules() if isinstance(part, torch.nn.Linear)}
    adapters = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=sorted(linear),
        task_type=peft.TaskType.CAUSAL_LM,
    )
    wrapped = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return wrapped.base_model.model  # same object graph, without the wrapper's own forward


def freeze_below(model: Any, n_layers: int) -> None:
    """Keep the embeddings and the lowest layers as they are; the last layer is trained in any case."""
    for part in (model.get_input_embeddings(), model.get_output_embeddings(), *model.model.layers[:-1][:n_layers]):
        part.requires_grad_(False)


def read_packed(model: Any, packed: PackedRows) -> torch.Tensor:
    """Return the hidden states after each token of packed rows (tokens, hidden)."""
    packed = packed.to(model.device)
    read = model.model(input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, packed=packed)
    hidden: torch.Tensor = read.last_hidden_state[0]
    return hidden


@torch.no_grad()
def require_isolated_rows(model: Any) -> None:
    """Raise TrainingError if packed rows could see one another in this model."""
    one, other = (read_packed(model, pack_rows([row, range(4, 12)]))[4:] for row in (range(4, 8), range(8, 12)))
    if not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        raise TrainingError(
            f"{type(model).__name__} cannot read rows packed behind one another",
            hint="take a base model whose attention follows transformers' attention interface",
        )


def target_loss(model: Any, rows: Sequence[TokenizedRow]) -> torch.Tensor:
    """Return the sum of the cross-entropies over the target tokens, in nats."""
    states, tokens = forward(model, rows)
    if len(tokens) <= LOSS_TARGETS:
        return cross_entropy(model, states, tokens)
    parts = zip(torch.split(states, LOSS_TARGETS), torch.split(tokens, LOSS_TARGETS), strict=True)
    losses = [checkpoint(cross_entropy, model, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(losses).sum()


def cross_entropy(model: Any, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross-entropies of tokens (n,) after states (n, hidden), in nats."""
    logits = model.get_output_embeddings()(states)  # (n, vocabulary)
    return F.cross_entropy(logits.float(), tokens, reduction="sum")


def accumulate_gradient(model: Any, rows: Sequence[TokenizedRow], config: TrainConfig, optimizer: MasterAdamW) -> float:
    """Return the mean loss over the targets of `rows`, in nats; each distributed process computes its part."""
    n_targets = sum(len(row.ids) - row.n_prompt for row in rows)
    total = torch.zeros((), device=model.device)
    for part in micro_batches(Group.joined().own(rows), config.micro_tokens or config.batch_tokens):
        loss = target_loss(model, part) / n_targets
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.gather()
        total += loss.detach()
    if dist.is_initialized():
        dist.all_reduce(total)
        optimizer.reduce()
    return float(total)


def forward(model: Any, rows: Sequence[TokenizedRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states before each target token of a batch (n, hidden), and those tokens (n,)."""
    n_shared = shared_prefix_tokens(rows)
    packed = pack_rows([row.ids[:-1] for row in rows], n_shared=n_shared)
    hidden = read_packed(model, packed)
    targets = [
        (start - n_shared + at - 1, row.ids[at])
        for row, start in zip(rows, packed.starts, strict=True)
        for at in range(row.n_prompt, len(row.ids))
    ]
    places, tokens = torch.tensor(targets, device=hidden.device).unbind(1)
    return gather_rows(hidden, places), tokens


def shared_prefix_tokens(rows: Sequence[TokenizedRow]) -> int:
    """Return how many tokens all rows begin with, before the first target is predicted; 0 if too few to pay off."""
    if len(rows) < 2:
        return 0
    limit = min(row.n_prompt for row in rows) - 1
    if limit < MIN_SHARED_PREFIX_TOKENS:
        return 0
    first, last = min(row.ids[:limit] for row in rows), max(row.ids[:limit] for row in rows)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=True)) if a != b), limit)
    return n if n >= MIN_SHARED_PREFIX_TOKENS else 0


def use_fast_kernels(model: Any) -> None:
    """Replace parts of a model on a GPU by Liger's kernels of equal value, where they are installed."""
    if model.device.type == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        # The loss is computed at target positions alone, by `causal_lm.target_loss`.
        _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


def learn_in_fp32(model: Any) -> None:
    """Compute in fp32 from now on, but for what is inside `as_kept`."""
    set_precision(model, torch.float32)
    model.learns_in_fp32 = True


def as_kept(model: Any) -> AbstractContextManager[None]:
    """Inside the block the weights are as they will be written and served; afterwards exactly what they were."""
    return in_precision(model, torch.bfloat16) if getattr(model, "learns_in_fp32", False) else nullcontext()


def checkpoint_layers(model: Any) -> None:
    """Keep a layer's input alone for the backward pass, which computes the layer again (Chen et al. 2016)."""
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


MAX_GENERATED_ROWS = 400
"""Selection rows whose answers are written after each epoch: the first ones, which a content hash has ordered."""
VALIDATION_BATCH_TOKENS = 2048
"""Tokens of evaluation rows in one forward pass, padding included."""
MAX_SAMPLE_TOKENS = 256
"""Most tokens of an answer that is written for a person to read."""


class Sample(NamedTuple):
    """A prompt and what the model wrote, for a person to read."""

    prompt: str
    answer: str


ValidationCallback = Callable[[Mapping[str, float], Sequence[Sample]], None]
"""Called after each epoch with figures by name, empty without evaluation rows, and samples in the prompts' order."""


def validate_labels(model: Any, tokenizer: Any, manifest: Manifest, selection: Dataset) -> ValidationResult:
    """Return the accuracy of a model that answers from label probabilities, and its temperature."""
    scored = LabelScorer(model, tokenizer, manifest).score([example.text for example in selection.examples])
    return ValidationResult(*calibrate_labels(scored, selection, manifest), len(selection))


def validate_generation(model: Any, tokenizer: Any, manifest: Manifest, selection: Dataset) -> ValidationResult:
    """Return the mean score of a model that writes its answers, and its calibration; under the task's grammar."""
    task, examples = manifest.task, selection.examples[:MAX_GENERATED_ROWS]
    schema = task.answer_schema()
    grammar = Grammar.compile(schema, tokenizer) if schema is not None else None
    prompts = [encode_prompt(tokenizer, task.prompt(e.text), manifest.max_tokens) for e in examples]
    requests = [GenerationRequest(ids, task.max_answer_tokens, grammar=grammar) for ids in prompts]
    written = Generator(model, tokenizer).generate(requests)
    answers = [(one.text, one.log_probabilities) for one in written]
    return ValidationResult(*calibrate_answers(manifest, examples, answers), len(examples))


@torch.inference_mode()
def mean_loss(model: Any, rows: Sequence[TokenizedRow]) -> float:
    """Return the mean cross-entropy over all target tokens of the rows, in nats."""
    parts = micro_batches(sorted(rows, key=lambda row: len(row.ids)), VALIDATION_BATCH_TOKENS)
    total = math.fsum(float(target_loss(model, part)) for part in parts)
    return total / sum(len(row.ids) - row.n_prompt for row in rows)


def generate_samples(model: Any, tokenizer: Any, prompts: Sequence[str], manifest: Manifest) -> list[Sample]:
    """Return the most probable answer to each prompt, or its continuation, as the model will be asked."""
    if not prompts:
        return []
    if manifest.kind == "chat":
        end: int | None = end_of_turn_token(tokenizer)
        form = chat_prompt(tokenizer, manifest.system, max_tokens=manifest.max_tokens)
    else:
        end, form = None, text_prompt(tokenizer, manifest.max_tokens)
    requests = [GenerationRequest(form.encode(Request.ask(prompt)), MAX_SAMPLE_TOKENS) for prompt in prompts]
    written = Generator(model, tokenizer, end=end).generate(requests)
    return [Sample(prompt, answer.text.strip()) for prompt, answer in zip(prompts, written, strict=True)]
