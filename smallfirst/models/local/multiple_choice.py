"""Which of several given answers a causal model finds likeliest, by mean log-probability a token.

The logits must be the last hidden state times the output matrix, as in Llama, Qwen and SmolLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from smallfirst.data.dataset import Message
from smallfirst.models.batching import length_batches
from smallfirst.models.local.chat_template import encode_chat
from smallfirst.models.local.kv_cache import KVCache
from smallfirst.models.local.label_trie import vocabulary_logsumexp
from smallfirst.models.local.tokenizer import encode_prompt

BATCH_ROWS = 16
"""Questions read together; each beginning of an answer has a copy of the question's keys and values."""
MAX_PROMPT_TOKENS = 4096
"""Longest question; of a longer one the middle is cut."""


class Question(NamedTuple):
    """A question and its possible answers, in tokens; none is empty."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def encode_question(tokenizer: Any, prompt: str, answers: Sequence[str]) -> Question:
    """Return the question as a user's message in the model's chat template; without one, as plain text and a cue."""
    if tokenizer.chat_template:
        ids = encode_chat(tokenizer, [Message(role="user", content=prompt)], max_tokens=MAX_PROMPT_TOKENS)
    else:
        ids = encode_prompt(tokenizer, f"{prompt}\nAnswer:", MAX_PROMPT_TOKENS)
        answers = [f" {answer}" for answer in answers]
    return Question(tuple(ids), tuple(tuple(tokenizer.encode(text, add_special_tokens=False)) for text in answers))


def mean_log_probabilities(model: Any, questions: Sequence[Question]) -> list[list[float]]:
    """Return for each question, in order, the mean log-probability a token of each of its answers, in nats."""
    found: dict[int, list[float]] = {}
    for chosen in length_batches([len(question.prompt) for question in questions], max_rows=BATCH_ROWS):
        found |= dict(zip(chosen, _batch(model, [questions[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(questions))]


@torch.inference_mode()
def _batch(model: Any, questions: Sequence[Question]) -> list[list[float]]:
    """Read the questions together; what the answers of a question have in common at the beginning is read once."""
    cache = KVCache(model, len(questions))
    states = cache.read([question.prompt for question in questions])  # (beginnings, hidden)
    begun: list[tuple[int, tuple[int, ...]]] = [(i, ()) for i in range(len(questions))]
    found: dict[tuple[int, tuple[int, ...]], float] = {}
    while begun:
        steps = [(at, i, longer) for at, (i, ids) in enumerate(begun) for longer in _longer(questions[i].answers, ids)]
        values = _log_probabilities(model, states, [at for at, _, _ in steps], [ids[-1] for _, _, ids in steps])
        found |= {(i, ids): value for (_, i, ids), value in zip(steps, values, strict=True)}
        unfinished = [(at, i, ids) for at, i, ids in steps if _longer(questions[i].answers, ids)]
        begun = [(i, ids) for _, i, ids in unfinished]
        if begun:
            cache.select_rows([at for at, _, _ in unfinished])
            states = cache.read([[ids[-1]] for _, ids in begun])
    return [
        [sum(found[i, ids[:n]] for n in range(1, len(ids) + 1)) / len(ids) for ids in question.answers]
        for i, question in enumerate(questions)
    ]


def _longer(answers: Sequence[tuple[int, ...]], ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    n = len(ids)
    return list(dict.fromkeys(answer[: n + 1] for answer in answers if len(answer) > n and answer[:n] == ids))


def _log_probabilities(model: Any, states: torch.Tensor, at: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Return the log-probability of each token after the state at its place, in fp32: in bf16 many are equal."""
    head, states = model.get_output_embeddings().weight, states.float()
    rows, columns = torch.tensor(at, device=states.device), torch.tensor(tokens, device=states.device)
    whole = vocabulary_logsumexp(states, head)
    values: list[float] = ((states[rows] * head[columns].float()).sum(dim=-1) - whole[rows]).tolist()
    return values
