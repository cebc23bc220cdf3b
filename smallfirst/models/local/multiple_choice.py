"""Which of several given answers a causal model finds likeliest: ability measured without writing anything.

Answers are compared by their mean log-probability a token, so a longer one is no worse for its length; where an answer
ends is not asked. A prompt is read once and the answers go on from its keys and values, so a question costs little more
than its tokens. Even the smallest model chooses, where its written answer would often be in no form that can be scored.
For models whose logits are the last hidden state times the output matrix (Llama, Qwen, SmolLM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from smallfirst.data.dataset import Message
from smallfirst.models.local.chat_template import encode_chat
from smallfirst.models.local.kv_cache import KVCache
from smallfirst.models.local.tokenizer import encode_prompt

BATCH_ROWS = 16
"""Questions read together; each beginning of an answer has a copy of the question's keys and values."""
MAX_PROMPT_TOKENS = 4096
"""Longest question; of a longer one the middle is cut."""
VOCABULARY_CHUNK = 8192
"""Rows of the output matrix multiplied at a time."""


class Question(NamedTuple):
    """A question and its possible answers, in tokens; nothing is empty."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def encode_question(tokenizer: Any, prompt: str, answers: Sequence[str]) -> Question:
    """The question as a user's message in the model's chat template; without one, as plain text and a cue."""
    if tokenizer.chat_template:
        ids = encode_chat(tokenizer, [Message(role="user", content=prompt)], max_tokens=MAX_PROMPT_TOKENS)
    else:
        ids = encode_prompt(tokenizer, f"{prompt}\nAnswer:", MAX_PROMPT_TOKENS)
        answers = [f" {answer}" for answer in answers]
    return Question(tuple(ids), tuple(tuple(tokenizer.encode(text, add_special_tokens=False)) for text in answers))


def mean_log_probabilities(model: Any, choices: Sequence[Question]) -> list[list[float]]:
    """For each question, in order, the mean log-probability a token of each of its answers, in nats."""
    found: dict[int, list[float]] = {}
    order = sorted(range(len(choices)), key=lambda i: len(choices[i].prompt))
    for start in range(0, len(order), BATCH_ROWS):
        chosen = order[start : start + BATCH_ROWS]
        found |= dict(zip(chosen, _batch(model, [choices[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(choices))]


@torch.inference_mode()
def _batch(model: Any, choices: Sequence[Question]) -> list[list[float]]:
    """The same for questions that are read together; what answers of a question begin with alike is read once."""
    read = KVCache(model, len(choices))
    states = read.read([c.prompt for c in choices])  # (beginnings, hidden)
    begun: list[tuple[int, tuple[int, ...]]] = [(i, ()) for i in range(len(choices))]
    found: dict[tuple[int, tuple[int, ...]], float] = {}
    while begun:
        steps = [(at, i, longer) for at, (i, ids) in enumerate(begun) for longer in _longer(choices[i].answers, ids)]
        values = _log_probabilities(model, states, [at for at, _, _ in steps], [ids[-1] for _, _, ids in steps])
        found |= {(i, ids): value for (_, i, ids), value in zip(steps, values, strict=True)}
        going = [(at, i, ids) for at, i, ids in steps if _longer(choices[i].answers, ids)]
        begun = [(i, ids) for _, i, ids in going]
        if begun:
            read.select_rows([at for at, _, _ in going])
            states = read.read([[ids[-1]] for _, ids in begun])
    return [
        [sum(found[i, ids[:n]] for n in range(1, len(ids) + 1)) / len(ids) for ids in c.answers]
        for i, c in enumerate(choices)
    ]


def _longer(answers: Sequence[tuple[int, ...]], ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Beginnings of answers that are one token longer than `ids`, each once."""
    n = len(ids)
    return list(dict.fromkeys(answer[: n + 1] for answer in answers if len(answer) > n and answer[:n] == ids))


def _log_probabilities(model: Any, states: torch.Tensor, at: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probability of each token after the state at its place, in fp32: in bf16 neighbours are often equal."""
    head = model.get_output_embeddings().weight
    states = states.float()
    whole = torch.full(states.shape[:1], -torch.inf, dtype=torch.float32, device=states.device)
    for part in head.split(VOCABULARY_CHUNK):
        whole = torch.logaddexp(whole, torch.logsumexp(states @ part.float().T, dim=-1))
    places, wanted = torch.tensor(at, device=states.device), torch.tensor(tokens, device=states.device)
    values: list[float] = ((states[places] * head[wanted].float()).sum(dim=-1) - whole[places]).tolist()
    return values
