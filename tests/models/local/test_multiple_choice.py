"""Given answers have the log-probabilities of plain forward passes, whatever else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from smallfirst.models.local import label_trie
from smallfirst.models.local import multiple_choice as module
from smallfirst.models.local.multiple_choice import Question, encode_question, mean_log_probabilities
from smallfirst.models.local.weights import load_causal

TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}=>{% endif %}"
CHOICES = [
    Question((0, 5, 9, 300), ((301,), (302, 303), (301, 7, 8))),  # the third begins like the first, which ends there
    Question((0, 4), ((11, 12, 13, 14), (11, 12, 13, 15))),
    Question((0, 21, 22, 23, 24, 25, 26), ((40,), (40, 41))),
]


def reference(folder: Path, asked: Question) -> list[float]:
    """Mean log-probability of each answer from transformers' own model, prompt and answer in one pass."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    means = []
    for answer in asked.answers:
        with torch.inference_mode():
            logs = model.eval()(input_ids=torch.tensor([[*asked.prompt, *answer]])).logits[0].log_softmax(-1)
        first = len(asked.prompt) - 1
        means.append(sum(logs[first + i, token].item() for i, token in enumerate(answer)) / len(answer))
    return means


def test_answers_get_their_mean_log_probability_a_token(tiny_fp32: tuple[Any, Any], tiny_folder: Path) -> None:
    found = mean_log_probabilities(tiny_fp32[0], CHOICES)
    for values, asked in zip(found, CHOICES, strict=True):
        assert values == pytest.approx(reference(tiny_folder, asked), abs=1e-4)


@pytest.mark.parametrize(("part", "name", "value"), [(module, "BATCH_ROWS", 1), (label_trie, "VOCABULARY_CHUNK", 37)])
def test_batches_and_parts_of_the_output_matrix_change_nothing(
    tiny_fp32: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, part: Any, name: str, value: int
) -> None:
    whole = mean_log_probabilities(tiny_fp32[0], CHOICES)
    monkeypatch.setattr(part, name, value)
    for one, other in zip(mean_log_probabilities(tiny_fp32[0], CHOICES), whole, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_question_is_asked_through_the_chat_template_if_there_is_one(tiny_folder: Path) -> None:
    _, tokenizer = load_causal(tiny_folder)

    def encoded(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    plain = encode_question(tokenizer, "card", ["A", "lost"])
    assert plain.prompt == (tokenizer.bos_token_id, *encoded("card\nAnswer:"))
    assert plain.answers == (encoded(" A"), encoded(" lost"))
    tokenizer.chat_template = TEMPLATE
    asked = encode_question(tokenizer, "card", ["A", "lost"])
    assert asked.prompt == encoded("<s>card</s>=>")
    assert asked.answers == (encoded("A"), encoded("lost"))
