"""Exact label probabilities of a causal model that would write the label's text, however many tokens it has.

The labels' tokens, end of turn included, form a tree. A prompt is read once; then all inner nodes of the tree go
through the model in one packed pass, each seeing the prompt and its own ancestors only, and give the probability of
every next token that some label needs. A label's log-probability is the sum along its path, normalised over the labels;
a label that begins like another is told apart by the end of turn.

This is p(label | prompt, the answer is a label), as if all answers had been written and those that are no label thrown
away. A walk that renormalises at every node is cheaper (forced tokens need no pass) but answers another question: a
label with a likely first token keeps that token's whole mass even where the model would then have gone elsewhere.

The price is a pass over every inner node (three to four tokens a label) for each prompt, and the whole output matrix
at each, since a token's probability needs the sum over the vocabulary. What all prompts begin with is read once.
For models whose logits are the last hidden state times the output matrix (Llama, Qwen, SmolLM).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from smallfirst.data.dataset import Message
from smallfirst.errors import ConfigError
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.local.attention import NAME as CAUSAL
from smallfirst.models.local.chat_template import encode_chat, end_of_turn_token
from smallfirst.models.local.kv_cache import cache_argument
from smallfirst.models.local.token_tree import TokenTree, encode_answers
from smallfirst.models.local.tokenizer import encode_prompt
from smallfirst.models.local.weights import load_causal
from smallfirst.tasks.task import Shot, Task

VOCABULARY_CHUNK = 8192
"""Rows of the output matrix multiplied at a time."""
SHARED_FROM = 16
"""Tokens from which it pays to read only once what all prompts begin with."""
TAKES_A_MASK = ("sdpa", "eager", CAUSAL)
"""Kinds of attention that look where a mask lets them, and nowhere else."""

Prompt = Callable[[str], list[int]]
"""From the user's text to the tokens a model reads."""


class TrieScorer:
    """A causal model and the probabilities of a task's closed answers under it. Not thread-safe."""

    batch_tokens = 2048
    embed = None
    """The states read here belong to prompts with labels, not to texts."""

    def __init__(self, model: Any, tokenizer: Any, *, answers: Sequence[str], prompt: Prompt, end: int) -> None:
        """`answers` are written after `prompt(text)` and closed by the token `end`.

        The weights must stay as they are from then on. Raises ConfigError if answers cannot be told apart by their
        tokens, or if the model's attention takes no mask.
        """
        attention = model.config._attn_implementation
        if attention not in TAKES_A_MASK:
            raise ConfigError(
                f'the attention "{attention}" looks at every earlier token, but a label must not see other labels',
                hint=f"load the model with attn_implementation set to one of {', '.join(TAKES_A_MASK)}",
            )
        self.model, self.prompt = model, prompt
        self.tree = TokenTree.grow(encode_answers(tokenizer, answers, end))
        self._cache_name = cache_argument(model)
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt("a"), prompt("Z 9"), strict=False))
        self._shared = [token for token, _ in alike]
        self._shared_cache: _Cache | None = None

    @classmethod
    def of_folder(cls, folder: Path, task: Task, *, shots: Sequence[Shot] = ()) -> TrieScorer:
        """`untouched` on the model and tokenizer of a folder of safetensors."""
        model, tokenizer = load_causal(folder)
        return cls.untouched(model, tokenizer, task, shots=shots)

    @classmethod
    def fine_tuned(cls, model: Any, tokenizer: Any, task: Task, *, max_tokens: int = 512) -> TrieScorer:
        """A scorer that asks as in training: the task's prompt, its targets, the tokenizer's end token."""

        def prompt(text: str) -> list[int]:
            return encode_prompt(tokenizer, task.prompt(text), max_tokens)

        answers = [task.target(answer) for answer in _closed(task)]
        return cls(model, tokenizer, answers=answers, prompt=prompt, end=tokenizer.eos_token_id)

    @classmethod
    def untouched(
        cls, model: Any, tokenizer: Any, task: Task, *, shots: Sequence[Shot] = (), max_tokens: int = 4096
    ) -> TrieScorer:
        """A scorer that asks a model as it came: by its chat template, with the task's instructions and `shots`.

        The answers are the bare labels, as they stand in the solved examples. A model without a chat template is asked
        as a fine-tuned one.
        """
        if not tokenizer.chat_template:
            return cls.fine_tuned(model, tokenizer, task, max_tokens=max_tokens)
        instructions = task.instructions(shots)

        def prompt(text: str) -> list[int]:
            turns = (*instructions, Message(role="user", content=text))
            return encode_chat(tokenizer, turns, max_tokens=max_tokens)

        return cls(model, tokenizer, answers=_closed(task), prompt=prompt, end=end_of_turn_token(tokenizer))

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        """Answer probabilities of each text, in order."""
        encoded = [self.prompt(text) for text in texts]
        results: dict[int, LabelLogProbs] = {}
        for n_shared, chosen in self._batches(encoded):
            began = time.perf_counter()
            rows = self._score([encoded[i] for i in chosen], n_shared)
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: LabelLogProbs(row, len(encoded[i]), busy_s) for i, row in zip(chosen, rows, strict=True)}
        return [results[i] for i in range(len(encoded))]

    def _batches(self, encoded: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
        """Shared tokens and numbers of the prompts of each batch; its prompts are alike in length."""
        shared = [self._n_shared(ids) for ids in encoded]
        order = sorted(range(len(encoded)), key=lambda i: (shared[i], len(encoded[i])))
        for n_shared, group in itertools.groupby(order, key=lambda i: shared[i]):
            batch: list[int] = []
            for i in group:
                width = len(encoded[i]) - n_shared + len(self.tree.tokens)
                if batch and (len(batch) + 1) * width > self.batch_tokens:
                    yield n_shared, batch
                    batch = []
                batch.append(i)
            yield n_shared, batch

    def _n_shared(self, ids: list[int]) -> int:
        """Tokens of the shared beginning if the prompt has it and more, else 0."""
        n = len(self._shared)
        return n if SHARED_FROM <= n < len(ids) and ids[:n] == self._shared else 0

    @torch.inference_mode()
    def _score(self, prompts: list[list[int]], n_shared: int) -> list[list[float]]:
        """Log-probabilities (prompts, answers) of one batch."""
        last, cache = self._read(prompts, n_shared)
        states = torch.cat([last[:, None], self._follow(prompts, cache)], dim=1).float()  # (prompts, nodes, hidden)
        edges = self._edge_log_probabilities(states).double().cpu()
        sums = torch.zeros(len(prompts), len(self.tree.paths), dtype=torch.double)
        for answer, path in enumerate(self.tree.paths):
            sums[:, answer] = edges[:, path].sum(dim=1)
        rows: list[list[float]] = sums.log_softmax(dim=-1).tolist()
        return rows

    def _read(self, prompts: list[list[int]], n_shared: int) -> tuple[torch.Tensor, _Cache]:
        """State at the end of each prompt (prompts, hidden), and keys and values of all of it, padded on the right."""
        cache = self._shared_keys(n_shared, len(prompts))
        rest = torch.tensor([len(ids) - n_shared for ids in prompts])
        ids = torch.zeros(len(prompts), int(rest.max()), dtype=torch.long)
        for i, row in enumerate(prompts):
            ids[i, : rest[i]] = torch.tensor(row[n_shared:])
        mask = None
        if n_shared:  # without, plain causal attention does the same and is faster
            mask = torch.ones(*ids.shape, n_shared + ids.shape[1], dtype=torch.bool).tril(n_shared)
        hidden = self._pass(ids, n_shared + torch.arange(ids.shape[1])[None], mask=mask, cache=cache)
        return hidden[torch.arange(len(prompts)), rest - 1], cache

    def _follow(self, prompts: list[list[int]], cache: _Cache) -> torch.Tensor:
        """State at every node from node 1 on (prompts, nodes, hidden)."""
        ids = torch.tensor(self.tree.tokens).expand(len(prompts), -1)
        lengths = torch.tensor([len(row) for row in prompts])
        of_prompt = torch.arange(cache.get_seq_length()) < lengths[:, None]  # padding is not seen
        of_nodes = self.tree.sight().expand(len(prompts), -1, -1)
        mask = torch.cat([of_prompt[:, None].expand(-1, ids.shape[1], -1), of_nodes], dim=-1)
        positions = lengths[:, None] + torch.tensor(self.tree.depths) - 1
        return self._pass(ids, positions, mask=mask, cache=cache)

    def _pass(
        self, ids: torch.Tensor, positions: torch.Tensor, *, mask: torch.Tensor | None, cache: _Cache
    ) -> torch.Tensor:
        """Hidden states (rows, time, hidden); `mask` (rows, time, keys) is True where a token is seen."""
        device, dtype = self.model.device, self.model.dtype
        added = None
        if mask is not None:
            added = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)[:, None].to(device)
        states: torch.Tensor = self.model.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            attention_mask=added,
            use_cache=True,
            **{self._cache_name: cache},
        ).last_hidden_state
        return states

    def _shared_keys(self, n_shared: int, n_prompts: int) -> _Cache:
        """Keys and values of the shared beginning, read at the first call, once for every prompt of a batch."""
        from transformers import DynamicCache

        copy: _Cache = DynamicCache()
        if not n_shared:
            return copy
        if self._shared_cache is None:
            self._shared_cache = DynamicCache()
            positions = torch.arange(n_shared)[None]
            self._pass(torch.tensor([self._shared]), positions, mask=None, cache=self._shared_cache)
        for at, layer in enumerate(self._shared_cache.layers):
            copy.update(layer.keys.expand(n_prompts, -1, -1, -1), layer.values.expand(n_prompts, -1, -1, -1), at)
        return copy

    def _edge_log_probabilities(self, states: torch.Tensor) -> torch.Tensor:
        """Log-probability of each edge (prompts, edges) from the states at all nodes (prompts, nodes, hidden)."""
        head = self.model.get_output_embeddings().weight
        flat = states.flatten(0, 1)
        whole = torch.full(flat.shape[:1], -torch.inf, dtype=torch.float32, device=flat.device)
        for part in head.split(VOCABULARY_CHUNK):
            whole = torch.logaddexp(whole, torch.logsumexp(flat @ part.float().T, dim=-1))
        nodes, tokens = (torch.tensor(ends, device=flat.device) for ends in zip(*self.tree.edges, strict=True))
        logits = torch.einsum("peh,eh->pe", states[:, nodes], head[tokens].float())
        return logits - whole.view(states.shape[:2])[:, nodes]


_Cache = Any  # transformers' DynamicCache carries no types


def _closed(task: Task) -> tuple[str, ...]:
    if not task.closed:
        raise ConfigError(
            f"the answers of {task.name} are no closed set, so there are no probabilities to compare",
            hint="ask a model that writes its answers",
        )
    return task.closed
