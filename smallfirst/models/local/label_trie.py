"""Exact label probabilities of a causal model that would generate the label's text, however many tokens it has.

The labels' tokens, end of turn included, form a tree. A prompt is read once, then all inner nodes in one packed pass,
each seeing the prompt and its ancestors. A label's log-probability is the sum along its path, normalised over labels:
p(label | prompt, the answer is a label). Renormalising at every node would answer another question. Answers of a
multiple choice are compared by the mean along their paths instead. The logits must be the last hidden state times the
output matrix, as in Llama, Qwen and SmolLM.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from smallfirst.data.dataset import Message
from smallfirst.errors import ConfigError
from smallfirst.models.batching import length_batches
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.local.attention import NAME as CAUSAL
from smallfirst.models.local.kv_cache import KVCache
from smallfirst.models.local.tokenizer import common_prefix, encode_chat, encode_prompt, end_of_turn_token
from smallfirst.tasks.task import Shot, Task

VOCABULARY_CHUNK = 8192
"""Rows of the output matrix multiplied at a time."""
MIN_PREFIX_TOKENS = 16
"""A shorter common prefix is read again for every prompt."""
MASKED_ATTENTION = ("sdpa", "eager", CAUSAL)
"""Kinds of attention that honour a mask."""


class TokenTree(NamedTuple):
    """Token sequences as paths. Node 0 is the end of the prompt; a parent's number is below its children's."""

    tokens: tuple[int, ...]
    """Token of each node from node 1 on. The last token of an answer has no node: nothing follows it."""
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    """Tokens from the prompt's end to each node from node 1 on, at least 1."""
    edges: tuple[tuple[int, int], ...]
    """(node, next token) for each probability that is needed, once."""
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def grow(cls, answers: Sequence[Sequence[int]]) -> TokenTree:
        """Return the tree of token sequences, none of them empty."""
        nodes: dict[tuple[int, ...], int] = {(): 0}
        edges: dict[tuple[int, int], int] = {}
        paths = []
        for answer in answers:
            path = []
            for at, token in enumerate(answer):
                node = nodes.setdefault(tuple(answer[:at]), len(nodes))
                path.append(edges.setdefault((node, token), len(edges)))
            paths.append(tuple(path))
        inner = [node for node in nodes if node]
        return cls(
            tokens=tuple(node[-1] for node in inner),
            parents=tuple(nodes[node[:-1]] for node in inner),
            depths=tuple(len(node) for node in inner),
            edges=tuple(edges),
            paths=tuple(paths),
        )

    def visibility(self) -> torch.Tensor:
        """Return which nodes a node sees, itself and its ancestors (nodes, nodes), both from node 1 on."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                seen[node] |= seen[parent - 1]
        return seen


class TrieScorer:
    """A causal model and the probabilities of a task's closed answers under it. Not thread-safe."""

    batch_tokens = 2048
    embed = None

    def __init__(
        self, model: Any, tokenizer: Any, *, answers: Sequence[str], prompt: Callable[[str], list[int]], end: int
    ) -> None:
        """Score `answers` after `prompt(text)`, each ended by `end`; the weights must not change.

        Raise ConfigError if two answers have the same tokens, or if the model's attention ignores masks.
        """
        attention = model.config._attn_implementation
        if attention not in MASKED_ATTENTION:
            raise ConfigError(
                f'the attention "{attention}" sees every earlier token, but a label must not see other labels',
                hint=f"load the model with attn_implementation set to one of {', '.join(MASKED_ATTENTION)}",
            )
        self.model, self.prompt = model, prompt
        self.tree = TokenTree.grow(encode_answers(tokenizer, answers, end))
        self._prefix = common_prefix(prompt("a"), prompt("Z 9"))
        self._prefix_cache: KVCache | None = None

    @classmethod
    def fine_tuned(cls, model: Any, tokenizer: Any, task: Task, *, max_tokens: int = 512) -> TrieScorer:
        """Return a scorer that prompts as in training: the task's prompt and targets, the tokenizer's end token."""

        def prompt(text: str) -> list[int]:
            return encode_prompt(tokenizer, task.prompt(text), max_tokens)

        answers = [task.target(answer) for answer in _closed(task)]
        return cls(model, tokenizer, answers=answers, prompt=prompt, end=tokenizer.eos_token_id)

    @classmethod
    def prompted(
        cls, model: Any, tokenizer: Any, task: Task, *, shots: Sequence[Shot] = (), max_tokens: int = 4096
    ) -> TrieScorer:
        """Return a scorer with the chat template, if any, the task's instructions and `shots`; answers are labels."""
        if not tokenizer.chat_template:
            return cls.fine_tuned(model, tokenizer, task, max_tokens=max_tokens)
        instructions = task.instructions(shots)

        def prompt(text: str) -> list[int]:
            turns = (*instructions, Message(role="user", content=text))
            return encode_chat(tokenizer, turns, max_tokens=max_tokens)

        return cls(model, tokenizer, answers=_closed(task), prompt=prompt, end=end_of_turn_token(tokenizer))

    def score(self, texts: Sequence[str]) -> list[LabelLogProbs]:
        encoded = [self.prompt(text) for text in texts]
        results: dict[int, LabelLogProbs] = {}
        for n_prefix, chosen in self._batches(encoded):
            began = time.perf_counter()
            rows = self._score([encoded[i] for i in chosen], n_prefix)
            busy_s = (time.perf_counter() - began) / len(chosen)
            results |= {i: LabelLogProbs(row, len(encoded[i]), busy_s) for i, row in zip(chosen, rows, strict=True)}
        return [results[i] for i in range(len(encoded))]

    def _batches(self, encoded: list[list[int]]) -> Iterator[tuple[int, list[int]]]:
        prefixes = [self._n_prefix(ids) for ids in encoded]
        order = sorted(range(len(encoded)), key=prefixes.__getitem__)
        for n_prefix, grouped in itertools.groupby(order, key=prefixes.__getitem__):
            group = list(grouped)
            widths = [len(encoded[i]) - n_prefix + len(self.tree.tokens) for i in group]
            for chosen in length_batches(widths, max_tokens=self.batch_tokens):
                yield n_prefix, [group[i] for i in chosen]

    def _n_prefix(self, ids: list[int]) -> int:
        n = len(self._prefix)
        return n if MIN_PREFIX_TOKENS <= n < len(ids) and ids[:n] == self._prefix else 0

    @torch.inference_mode()
    def _score(self, prompts: list[list[int]], n_prefix: int) -> list[list[float]]:
        cache = KVCache(self.model, len(prompts))
        if n_prefix:
            if self._prefix_cache is None:
                self._prefix_cache = KVCache(self.model, 1)
                self._prefix_cache.read([self._prefix])
            cache = self._prefix_cache.repeat(len(prompts))
        edges = edge_log_probabilities(cache, cache.read([ids[n_prefix:] for ids in prompts]), self.tree)
        sums = torch.zeros(len(prompts), len(self.tree.paths), dtype=torch.double)
        for answer, path in enumerate(self.tree.paths):
            sums[:, answer] = edges[:, path].sum(dim=1)
        rows: list[list[float]] = sums.log_softmax(dim=-1).tolist()
        return rows


def edge_log_probabilities(cache: KVCache, last: torch.Tensor, tree: TokenTree) -> torch.Tensor:
    """Return the log-probability of each edge of a tree after every row of the cache (rows, edges), float64.

    `last` (rows, hidden) are the states after what the cache has read.
    """
    states = last[:, None]
    if tree.tokens:
        states = torch.cat([states, cache.read_tree(tree.tokens, tree.depths, tree.visibility())], dim=1)
    states, head = states.float(), cache.model.get_output_embeddings().weight  # (rows, nodes, hidden)
    whole = vocabulary_logsumexp(states.flatten(0, 1), head)
    nodes, tokens = (torch.tensor(ends, device=states.device) for ends in zip(*tree.edges, strict=True))
    logits = torch.einsum("peh,eh->pe", states[:, nodes], head[tokens].float())
    return (logits - whole.view(states.shape[:2])[:, nodes]).double().cpu()


def vocabulary_logsumexp(states: torch.Tensor, head: Any) -> torch.Tensor:
    """Return the logsumexp of all logits (rows,), from fp32 states (rows, hidden) and the output matrix."""
    whole = torch.full(states.shape[:1], -torch.inf, dtype=torch.float32, device=states.device)
    for part in head.split(VOCABULARY_CHUNK):
        whole = torch.logaddexp(whole, torch.logsumexp(states @ part.float().T, dim=-1))
    return whole


def encode_answers(tokenizer: Any, answers: Sequence[str], end: int) -> list[tuple[int, ...]]:
    """Return each answer's tokens and `end`. Raise ConfigError if one contains `end` or has another's tokens."""
    paths: dict[tuple[int, ...], str] = {}
    problems = []
    for answer in answers:
        path = (*tokenizer.encode(answer, add_special_tokens=False), end)
        if end in path[:-1]:
            problems.append(f'"{answer.strip()}" contains the token that ends an answer')
        if path in paths:
            problems.append(f'"{paths[path].strip()}" and "{answer.strip()}" have the same tokens')
        paths[path] = answer
    if problems:
        raise ConfigError(f"labels cannot be distinguished: {'; '.join(problems)}", hint="rename them in task.yaml")
    return list(paths)


def _closed(task: Task) -> tuple[str, ...]:
    if not task.closed:
        raise ConfigError(
            f"the answers of {task.name} are not a closed set, so there are no label probabilities",
            hint="use a model that generates its answers",
        )
    return task.closed
