"""Train a causal language model: loading, the forward pass, the loss and its gradient, saving.

The loss of a step is the mean over the target tokens of its whole batch, however the batch is cut. Rows are packed:
padding costs nothing, a prefix common to all rows of a batch is computed once, and the vocabulary is projected only at
target positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from smallfirst.errors import TrainingError
from smallfirst.models.base_size import BaseSize, read_base_size
from smallfirst.models.generation.adapters import merge_adapters, save_adapter
from smallfirst.models.local.token_batches import PackedRows, gather_rows, pack_rows
from smallfirst.models.local.weights import load_causal, weights_fingerprint
from smallfirst.training.batches import LOSS_TARGETS, TokenizedRow, epoch_batches, micro_batches
from smallfirst.training.config import TrainConfig
from smallfirst.training.device import checkpoint_layers, compile_layers, learn_in_fp32, use_fast_kernels
from smallfirst.training.distributed.group import loss_of, own_parts
from smallfirst.training.estimates.hardware import training_dtype
from smallfirst.training.estimates.memory import fits_in_fp32, needs_checkpointing
from smallfirst.training.loop import MasterAdamW

MIN_SHARED_PREFIX_TOKENS = 2
"""A shorter common prefix saves less than computing it apart costs."""
FROZEN_BATCH_TOKENS = 2048
"""Tokens put through the frozen layers at once, padding included."""

LossFunction = Callable[[Any, Sequence[TokenizedRow]], torch.Tensor]
"""From a model and rows to the sum of the losses of their target tokens, in nats."""


class CausalBackend:
    """The Backend of causal models: next-token loss on the answer's tokens; every weight, upper layers or adapters."""

    frozen: FrozenLayers | None = None
    keeps_adapters = False
    size: BaseSize | None = None

    def load(self, base: Path, config: TrainConfig) -> tuple[Any, Any]:
        self.size = read_base_size(base)
        self.keeps_adapters = config.adapters == "kept"
        model, tokenizer = load_causal(base, nf4=config.method == "qlora")
        use_fast_kernels(model)
        require_isolated_rows(model)
        if config.frozen_layers:
            self.frozen = FrozenLayers(model, config.frozen_layers)
        if config.method != "full":
            model = add_adapters(model, config)
        if config.compile:
            compile_layers(model)
        return model, tokenizer

    def begin(self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig) -> None:
        if needs_checkpointing(self.size, config, rows):
            checkpoint_layers(model)
        alone = model.device.type == "cpu" and not dist.is_initialized()
        if alone and training_dtype() == torch.float32 and fits_in_fp32(self.size, config, rows):
            learn_in_fp32(model)
        if self.frozen is not None:
            self.frozen.fill(model, rows)

    def batches(self, rows: Sequence[TokenizedRow], config: TrainConfig, seed: int) -> list[list[TokenizedRow]]:
        return epoch_batches(rows, batch_tokens=config.batch_tokens, seed=seed)

    def gradient(self, model: Any, rows: Sequence[TokenizedRow], config: TrainConfig, optimizer: MasterAdamW) -> float:
        return accumulate_gradient(model, rows, config, optimizer, self.loss)

    def loss(self, model: Any, rows: Sequence[TokenizedRow]) -> torch.Tensor:
        return target_loss(model, rows, self.frozen)

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
        layers_to_transform=list(range(config.frozen_layers, len(model.model.layers)))
        if config.frozen_layers
        else None,
        task_type=peft.TaskType.CAUSAL_LM,
    )
    wrapped = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
    return wrapped.base_model.model  # same object graph, without the wrapper's own forward


class FrozenLayers:
    """The lowest layers of a model and the hidden states they give for each row."""

    def __init__(self, model: Any, n_layers: int) -> None:
        """Freeze the embedding and `n_layers` layers. Raise TrainingError if the model cannot be cut there."""
        self.n_layers = n_layers
        self._states: dict[tuple[int, ...], torch.Tensor] = {}
        if not 0 < n_layers < len(model.model.layers):
            raise TrainingError(
                f"frozen_layers is {n_layers}, the model has {len(model.model.layers)} layers",
                hint="leave at least one layer to train",
            )
        self._check(model)
        for part in (model.get_input_embeddings(), *model.model.layers[:n_layers]):
            part.requires_grad_(False)

    @torch.no_grad()
    def fill(self, model: Any, rows: Sequence[TokenizedRow]) -> None:
        """Compute and keep the hidden states of each row after the frozen layers."""
        known = {row.ids[:-1]: row for row in rows}
        for part in micro_batches(sorted(known.values(), key=lambda row: len(row.ids)), FROZEN_BATCH_TOKENS):
            packed = pack_rows([row.ids[:-1] for row in part])
            states = torch.split(self._read_lower(model, packed), packed.lengths)
            for at, own in zip(packed.order, states, strict=True):
                self._states[part[at].ids[:-1]] = own.to("cpu", copy=True)

    def read_upper(self, model: Any, packed: PackedRows) -> torch.Tensor:
        """Return the hidden states after the last layer (tokens, hidden) of packed rows given to `fill` before."""
        states = [self._states[tuple(own.tolist())] for own in torch.split(packed.ids, packed.lengths)]
        return self._read_upper(model, packed, torch.cat(states).to(model.device))

    def _read_lower(self, model: Any, packed: PackedRows) -> torch.Tensor:
        with _only(model.model, slice(0, self.n_layers), torch.nn.Identity()):
            return read_packed(model, packed)

    def _read_upper(self, model: Any, packed: PackedRows, states: torch.Tensor) -> torch.Tensor:
        with _only(model.model, slice(self.n_layers, None), model.model.norm):
            return read_packed(model, packed, states)

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        # Some architectures scale their input or number their layers: those cannot be cut.
        packed = pack_rows([range(4, 12)])
        halves = self._read_upper(model, packed, self._read_lower(model, packed))
        if not torch.equal(halves, read_packed(model, packed)):
            raise TrainingError(
                f"{type(model).__name__} cannot be computed in two halves",
                hint="set frozen_layers to 0, or method to lora",
            )


def read_packed(model: Any, packed: PackedRows, states: torch.Tensor | None = None) -> torch.Tensor:
    """Return the hidden states after each token of packed rows (tokens, hidden); `states` stand for the embeddings."""
    packed = packed.to(model.device)
    known = {"input_ids": packed.ids[None]} if states is None else {"inputs_embeds": states[None]}
    read = model.model(**known, position_ids=packed.positions[None], use_cache=False, packed=packed)
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


@contextmanager
def _only(body: Any, layers: slice, norm: torch.nn.Module) -> Iterator[None]:
    """Inside the block the body consists of these layers and ends in `norm`."""
    whole = body.layers, body.norm, body.config.num_hidden_layers
    body.layers, body.norm = body.layers[layers], norm
    body.config.num_hidden_layers = len(body.layers)
    try:
        yield
    finally:
        body.layers, body.norm, body.config.num_hidden_layers = whole


class TargetStates(NamedTuple):
    """Hidden states before each target token of a batch (n, hidden), and those tokens (n,)."""

    states: torch.Tensor
    tokens: torch.Tensor


def target_loss(model: Any, rows: Sequence[TokenizedRow], frozen: FrozenLayers | None = None) -> torch.Tensor:
    """Return the sum of the cross-entropies over the target tokens, in nats."""
    states, tokens = forward(model, rows, frozen)
    if len(tokens) <= LOSS_TARGETS:
        return cross_entropy(model, states, tokens)
    parts = zip(torch.split(states, LOSS_TARGETS), torch.split(tokens, LOSS_TARGETS), strict=True)
    losses = [checkpoint(cross_entropy, model, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(losses).sum()


def cross_entropy(model: Any, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the sum of the cross-entropies of tokens (n,) after states (n, hidden), in nats."""
    logits = model.get_output_embeddings()(states)  # (n, vocabulary)
    return F.cross_entropy(logits.float(), tokens, reduction="sum")


def accumulate_gradient(
    model: Any,
    rows: Sequence[TokenizedRow],
    config: TrainConfig,
    optimizer: MasterAdamW,
    loss_function: LossFunction = target_loss,
) -> float:
    """Return the mean loss over the targets of `rows`, in nats; each distributed process computes its part."""
    n_targets = sum(len(row.ids) - row.n_prompt for row in rows)
    total = torch.zeros((), device=model.device)
    for part, weight in own_parts(rows, config.micro_tokens or config.batch_tokens):
        loss = loss_of(model, part, loss_function) * weight / n_targets
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.gather()
        total += loss.detach()
    if dist.is_initialized():
        dist.all_reduce(total)
        optimizer.reduce()
    return float(total)


def forward(model: Any, rows: Sequence[TokenizedRow], frozen: FrozenLayers | None = None) -> TargetStates:
    """Return the hidden states from which the rows' targets are predicted."""
    n_shared = shared_prefix_tokens(rows) if frozen is None else 0
    packed = pack_rows([row.ids[:-1] for row in rows], n_shared=n_shared)
    hidden = read_packed(model, packed) if frozen is None else frozen.read_upper(model, packed)
    targets = [
        (start - n_shared + at - 1, row.ids[at])
        for row, start in zip(rows, packed.starts, strict=True)
        for at in range(row.n_prompt, len(row.ids))
    ]
    places, tokens = torch.tensor(targets, device=hidden.device).unbind(1)
    return TargetStates(gather_rows(hidden, places), tokens)


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
