"""A batch generates what each request would alone, ends where it must, and follows a schema to the last token."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest
import torch

from smallfirst.errors import ModelError
from smallfirst.models.generation.generator import Batch, Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.sequence import GeneratedSequence, GenerationRequest, GenerationResult

TEXTS = ("the card", "where is my refund please, it is late", "pin", "tell me more about your currency question")
SCHEMA = {
    "type": "object",
    "properties": {
        "item": {"type": "string"},
        "n": {"type": ["integer", "null"]},
        "who": {"enum": ["me", "you"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["item", "n", "who"],
    "additionalProperties": False,
}


@pytest.fixture
def generator(lively: tuple[Any, Any]) -> Generator:
    return Generator(*lively)


def requests_of(generator: Generator, **settings: Any) -> list[GenerationRequest]:
    return [GenerationRequest(generator.tokenizer.encode(text), **({"max_tokens": 12} | settings)) for text in TEXTS]


def one(generator: Generator, **settings: Any) -> GenerationResult:
    return generator.generate([requests_of(generator, **settings)[0]])[0]


def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


def greedy(model: Any, ids: list[int], n_tokens: int, end: int) -> tuple[list[int], list[float]]:
    """The reference: the whole text is read anew for every token."""
    written: list[int] = []
    values: list[float] = []
    for _ in range(n_tokens):
        row = log_probabilities(model, [*ids, *written])
        token = int(row.argmax())
        values.append(float(row[token]))
        if token == end:
            break
        written.append(token)
    return written, values


@pytest.mark.parametrize("batch_rows", [1, 2, 64])
def test_every_answer_is_that_of_the_reference_in_order(generator: Generator, batch_rows: int) -> None:
    generator.batch_rows = batch_rows
    requests = [
        request._replace(max_tokens=n) for request, n in zip(requests_of(generator), (1, 12, 2, 12), strict=True)
    ]
    for request, found in zip(requests, generator.generate(requests), strict=True):
        ids, values = greedy(generator.model, list(request.ids), request.max_tokens, generator.end)
        assert list(found.token_ids) == ids
        assert found.log_probabilities == pytest.approx(values, abs=1e-4)
        assert found.text == generator.tokenizer.decode(ids)
        assert found.n_prompt_tokens == len(request.ids)
        assert found.finish_reason == ("length" if len(ids) == request.max_tokens else "stop")
        assert found.busy_s > 0
    assert generator.generate([]) == []


def test_the_end_token_ends_the_answer_and_counts_in_its_probability(generator: Generator) -> None:
    ids = requests_of(generator)[0].ids
    first, second = greedy(generator.model, list(ids), 2, -1)[0]
    assert first != second  # else the next line shows nothing
    ended = Generator(generator.model, generator.tokenizer, end=second).generate([GenerationRequest(ids, 12)])[0]
    assert (ended.token_ids, ended.finish_reason) == ((first,), "stop")
    assert len(ended.log_probabilities) == 2


def test_a_stop_text_is_not_part_of_the_answer(generator: Generator) -> None:
    whole = generator.generate([requests_of(generator)[1]])[0].text
    cut = generator.generate([requests_of(generator, stop=(whole[3:6],))[1]])[0]
    assert cut.text == whole[: whole.find(whole[3:6])]
    assert cut.finish_reason == "stop"


def test_a_seed_draws_the_same_again_and_another_seed_something_else(generator: Generator) -> None:
    def draw(seed: int) -> list[str]:
        return [found.text for found in generator.generate(requests_of(generator, temperature=1.5, seed=seed))]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize("max_tokens", [3, 40, 400])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_under_a_schema_every_answer_is_valid_even_if_tokens_run_out(
    generator: Generator, max_tokens: int, temperature: float
) -> None:
    grammar = Grammar.compile(SCHEMA, generator.tokenizer)
    requests = requests_of(generator, max_tokens=max_tokens, temperature=temperature, seed=1, grammar=grammar)
    for found in generator.generate(requests):
        jsonschema.validate(json.loads(found.text), SCHEMA)
        assert len(found.log_probabilities) == len(found.token_ids)
        assert max(found.log_probabilities) <= 1e-6
        if max_tokens == 3:
            assert found.finish_reason == "length"


def test_forced_tokens_are_certain(generator: Generator) -> None:
    only = {"type": "object", "properties": {"kind": {"const": "fixed"}}, "required": ["kind"]}
    found = one(generator, grammar=Grammar.compile(only | {"additionalProperties": False}, generator.tokenizer))
    assert json.loads(found.text) == {"kind": "fixed"}
    # A tokenizer that can spell the text in several ways leaves choices, but no doubt about the text.
    assert sum(value == 0.0 for value in found.log_probabilities) >= 1


def test_the_likeliest_tokens_are_reported_beside_each_generated_one(generator: Generator) -> None:
    found = one(generator, top=3)
    ids = requests_of(generator)[0].ids
    assert len(found.top) == len(found.token_ids)
    for i, (token, top) in enumerate(zip(found.token_ids, found.top, strict=True)):
        best = log_probabilities(generator.model, [*ids, *found.token_ids[:i]]).topk(3)
        assert [other for other, _ in top] == best.indices.tolist()
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert top[0][0] == token
    assert one(generator, top=0).top == ((),) * len(found.token_ids)
    assert one(generator).top == ()


def test_under_a_grammar_only_allowed_tokens_are_reported(generator: Generator) -> None:
    grammar = Grammar.compile({"enum": ["a", "b"]}, generator.tokenizer)
    found = one(generator, top=20, grammar=grammar)
    state, n_chosen = grammar.start(), 0
    forced = state.begin()
    for token, value, top in zip(found.token_ids, found.log_probabilities, found.top, strict=True):
        if forced:
            assert (forced.pop(0), 0.0) == (token, value)
            assert top == ((token, 0.0),)
            continue
        assert {other for other, _ in top} == set(state.allowed().nonzero()[0].tolist())
        assert sum(math.exp(p) for _, p in top) == pytest.approx(1, abs=1e-5)
        forced, n_chosen = state.take(token), n_chosen + 1
    assert n_chosen


@pytest.mark.parametrize("error", ["left at token", "could not be followed"])
def test_a_sequence_that_fails_in_its_grammar_fails_alone(generator: Generator, error: str) -> None:
    requests = requests_of(generator)[:2]
    grammar = Grammar.compile(SCHEMA, generator.tokenizer)
    sequences = [
        GeneratedSequence(request._replace(grammar=own), generator.tokenizer)
        for request, own in zip(requests, (grammar, None), strict=True)
    ]
    batch = Batch(generator, sequences)
    batch.step(100)
    allowed = sequences[0].allowed()
    assert allowed is not None
    assert sequences[0].grammar is not None
    if error == "left at token":
        sequences[0]._follow(next(token for token, ok in enumerate(allowed) if not ok))
    else:
        sequences[0].grammar._matcher.consume_token(0)
    while batch.n_active:
        batch.step(8)
    with pytest.raises(ModelError, match=error):
        sequences[0].result()
    assert sequences[1].result().token_ids == generator.generate([requests[1]])[0].token_ids
