"""Writing in batches says what writing alone says, ends where it must, and follows a schema to the last token."""

from __future__ import annotations

import json
import math
import time
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


def asks(generator: Generator, **settings: Any) -> list[GenerationRequest]:
    return [GenerationRequest(generator.tokenizer.encode(text), **({"max_tokens": 12} | settings)) for text in TEXTS]


def greedy(model: Any, ids: list[int], n_tokens: int, end: int) -> tuple[list[int], list[float]]:
    """The slow way: the whole text read anew for every token."""
    written: list[int] = []
    said: list[float] = []
    for _ in range(n_tokens):
        with torch.inference_mode():
            row = model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1].float().log_softmax(-1)
        token = int(row.argmax())
        said.append(float(row[token]))
        if token == end:
            break
        written.append(token)
    return written, said


def test_a_batch_writes_what_the_slow_way_writes(generator: Generator) -> None:
    for ask, written in zip(asks(generator), generator.generate(asks(generator)), strict=True):
        ids, said = greedy(generator.model, list(ask.ids), 12, generator.end)
        assert list(written.token_ids) == ids
        assert written.log_probabilities == pytest.approx(said, abs=1e-4)
        assert written.text == generator.tokenizer.decode(ids)
        assert written.n_prompt_tokens == len(ask.ids)


def test_a_row_says_the_same_whoever_stands_beside_it(generator: Generator) -> None:
    together = generator.generate(asks(generator))
    alone = [generator.generate([ask])[0] for ask in asks(generator)]
    assert [w.token_ids for w in together] == [w.token_ids for w in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_rows_with_little_room_leave_the_others_alone(generator: Generator) -> None:
    rooms = (1, 9, 2, 3)
    mixed = [ask._replace(max_tokens=n) for ask, n in zip(asks(generator), rooms, strict=True)]
    for ask, n, written in zip(mixed, rooms, generator.generate(mixed), strict=True):
        assert list(written.token_ids) == greedy(generator.model, list(ask.ids), n, generator.end)[0]
        assert written.finish_reason == ("length" if len(written.token_ids) == n else "stop")


def test_the_end_token_ends_the_answer_and_is_counted_in_its_probability(generator: Generator) -> None:
    ids = asks(generator)[0].ids
    first, second = greedy(generator.model, list(ids), 2, -1)[0]
    assert first != second  # else the next line shows nothing
    ended = Generator(generator.model, generator.tokenizer, end=second).generate([GenerationRequest(ids, 12)])[0]
    assert ended.token_ids == (first,)
    assert ended.finish_reason == "stop"
    assert len(ended.log_probabilities) == 2


def test_a_stop_text_is_not_part_of_the_answer(generator: Generator) -> None:
    whole = generator.generate([asks(generator)[1]])[0].text
    cut = generator.generate([asks(generator, stop=(whole[3:6],))[1]])[0]
    assert cut.text == whole[: whole.find(whole[3:6])]
    assert cut.finish_reason == "stop"


def test_a_seed_draws_the_same_again_and_another_seed_something_else(generator: Generator) -> None:
    def draw(seed: int) -> list[str]:
        return [w.text for w in generator.generate(asks(generator, temperature=1.5, seed=seed))]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize("max_tokens", [3, 40, 400])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_under_a_schema_every_answer_is_valid_however_little_room(
    generator: Generator, max_tokens: int, temperature: float
) -> None:
    grammar = Grammar.compile(SCHEMA, generator.tokenizer)
    wanted = asks(generator, max_tokens=max_tokens, temperature=temperature, seed=1, grammar=grammar)
    for written in generator.generate(wanted):
        jsonschema.validate(json.loads(written.text), SCHEMA)
        assert len(written.log_probabilities) == len(written.token_ids)
        assert max(written.log_probabilities) <= 1e-6
        if max_tokens == 3:
            assert written.finish_reason == "length"


def test_forced_tokens_are_certain_and_cost_no_choice(generator: Generator) -> None:
    only = {"type": "object", "properties": {"kind": {"const": "fixed"}}, "required": ["kind"]}
    grammar = Grammar.compile(only | {"additionalProperties": False}, generator.tokenizer)
    written = generator.generate([asks(generator, grammar=grammar)[0]])[0]
    assert json.loads(written.text) == {"kind": "fixed"}
    # A tokenizer that can spell the text in several ways leaves choices, but no doubt about the text.
    assert sum(value == 0.0 for value in written.log_probabilities) >= 1


def test_answers_come_back_in_the_order_of_the_asks(generator: Generator) -> None:
    generator.batch_rows = 2
    found: list[GenerationResult] = generator.generate(asks(generator))
    assert [w.n_prompt_tokens for w in found] == [len(ask.ids) for ask in asks(generator)]


def test_nothing_asked_is_nothing_written(generator: Generator) -> None:
    assert generator.generate([]) == []


def test_the_likeliest_tokens_stand_beside_each_written_one(generator: Generator) -> None:
    ask = asks(generator, top=3)[0]
    written = generator.generate([ask])[0]
    assert len(written.top) == len(written.token_ids)
    for i, (token, top) in enumerate(zip(written.token_ids, written.top, strict=True)):
        read = [*ask.ids, *written.token_ids[:i]]
        with torch.inference_mode():
            row = generator.model(input_ids=torch.tensor([read])).logits[0, -1].float().log_softmax(-1)
        best = row.topk(3)
        assert [one for one, _ in top] == best.indices.tolist()
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert top[0][0] == token


def test_under_a_grammar_only_allowed_tokens_are_told_and_forced_ones_are_certain(generator: Generator) -> None:
    grammar = Grammar.compile({"enum": ["a", "b"]}, generator.tokenizer)
    written = generator.generate([asks(generator, top=20, grammar=grammar)[0]])[0]
    follower, chosen = grammar.start(), 0
    forced = follower.begin()
    for token, value, top in zip(written.token_ids, written.log_probabilities, written.top, strict=True):
        if forced:
            assert (forced.pop(0), 0.0) == (token, value)
            assert top == ((token, 0.0),)
            continue
        allowed = follower.allowed()
        assert {one for one, _ in top} == set(allowed.nonzero()[0].tolist())
        assert sum(math.exp(p) for _, p in top) == pytest.approx(1, abs=1e-5)
        forced, chosen = follower.take(token), chosen + 1
    assert chosen


def test_who_asks_for_no_alternatives_gets_the_tokens_alone(generator: Generator) -> None:
    written = generator.generate([asks(generator, top=0)[0]])[0]
    assert written.top == ((),) * len(written.token_ids)
    assert generator.generate([asks(generator)[0]])[0].top == ()


def test_a_line_that_leaves_its_grammar_fails_alone(generator: Generator) -> None:
    lines = [
        GeneratedSequence(ask._replace(grammar=grammar), generator.tokenizer)
        for ask, grammar in zip(asks(generator), [Grammar.compile(SCHEMA, generator.tokenizer), None], strict=False)
    ]
    batch = Batch(generator, lines)
    batch.step(100)
    lines[0]._follow(next(t for t, ok in enumerate(lines[0].allowed()) if not ok))
    while batch.n_active:
        batch.step(8)
    with pytest.raises(ModelError, match="left at token"):
        lines[0].result()
    assert lines[1].result().token_ids == generator.generate([asks(generator)[1]])[0].token_ids


def test_time_is_shared_out_over_the_rows(generator: Generator) -> None:
    began = time.perf_counter()
    written = generator.generate(asks(generator))
    assert 0 < sum(one.busy_s for one in written) <= time.perf_counter() - began
