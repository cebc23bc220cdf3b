"""Answers as paths of one tree of tokens, so that what they share is read once and all of them in one pass.

The end of an answer is a token like any other: of two answers of which one begins like the other, it tells which is
meant. The price of a tree is that answers must be known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from smallfirst.errors import ConfigError


class TokenTree(NamedTuple):
    """Token sequences as paths. Node 0 is the end of the prompt; a parent's number is below its children's."""

    tokens: tuple[int, ...]
    """Token of each node from node 1 on. Ends of answers are no nodes: nothing is asked after them."""
    parents: tuple[int, ...]
    """Parent of each node from node 1 on."""
    depths: tuple[int, ...]
    """Tokens from the prompt's end to each node from node 1 on, at least 1."""
    edges: tuple[tuple[int, int], ...]
    """(node, next token) for each probability that is needed, once."""
    paths: tuple[tuple[int, ...], ...]
    """Of each answer, the edges to multiply."""

    @classmethod
    def grow(cls, answers: Sequence[Sequence[int]]) -> TokenTree:
        """The tree of token sequences of which none begins another."""
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

    def sight(self) -> torch.Tensor:
        """Which nodes a node sees, itself and its ancestors (nodes, nodes), both from node 1 on."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent:
                seen[node] |= seen[parent - 1]
        return seen


def encode_answers(tokenizer: Any, answers: Sequence[str], end: int) -> list[tuple[int, ...]]:
    """Tokens of each answer, `end` behind them.

    Raises ConfigError naming every answer that holds `end` or has the tokens of another.
    """
    paths: dict[tuple[int, ...], str] = {}
    problems = []
    for answer in answers:
        path = (*tokenizer.encode(answer, add_special_tokens=False), end)
        if end in path[:-1]:
            problems.append(f'"{answer.strip()}" contains the token that ends an answer')
        if path in paths:
            problems.append(f'"{paths[path].strip()}" and "{answer.strip()}" are the same to this tokenizer')
        paths[path] = answer
    if problems:
        raise ConfigError(f"labels cannot be told apart: {'; '.join(problems)}", hint="rename them in task.yaml")
    return list(paths)
