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
from smallfirst.models.generation.generator import Batch, GenerationRequest, GenerationResult, Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.sequence import GeneratedSequence

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
def writer(lively: tuple[Any, Any]) -> Generator:
    return Generator(*lively)


def asks(writer: Generator, **settings: Any) -> list[GenerationRequest]:
    return [GenerationRequest(writer.tokenizer.encode(text), **({"max_tokens": 12} | settings)) for text in TEXTS]


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


def test_a_batch_writes_what_the_slow_way_writes(writer: Generator) -> None:
    for ask, written in zip(asks(writer), writer.write(asks(writer)), strict=True):
        ids, said = greedy(writer.model, list(ask.ids), 12, writer.end)
        assert list(written.token_ids) == ids
        assert written.log_probabilities == pytest.approx(said, abs=1e-4)
        assert written.text == writer.tokenizer.decode(ids)
        assert written.n_prompt_tokens == len(ask.ids)


def test_a_row_says_the_same_whoever_stands_beside_it(writer: Generator) -> None:
    together = writer.write(asks(writer))
    alone = [writer.write([ask])[0] for ask in asks(writer)]
    assert [w.token_ids for w in together] == [w.token_ids for w in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


def test_rows_with_little_room_leave_the_others_alone(writer: Generator) -> None:
    rooms = (1, 9, 2, 3)
    mixed = [ask._replace(max_tokens=n) for ask, n in zip(asks(writer), rooms, strict=True)]
    for ask, n, written in zip(mixed, rooms, writer.write(mixed), strict=True):
        assert list(written.token_ids) == greedy(writer.model, list(ask.ids), n, writer.end)[0]
        assert written.finish_reason == ("length" if len(written.token_ids) == n else "stop")


def test_the_end_token_ends_the_answer_and_is_counted_in_its_probability(writer: Generator) -> None:
    ids = asks(writer)[0].ids
    first, second = greedy(writer.model, list(ids), 2, -1)[0]
    assert first != second  # else the next line shows nothing
    ended = Generator(writer.model, writer.tokenizer, end=second).write([GenerationRequest(ids, 12)])[0]
    assert ended.token_ids == (first,)
    assert ended.finish_reason == "stop"
    assert len(ended.log_probabilities) == 2


def test_a_stop_text_is_not_part_of_the_answer(writer: Generator) -> None:
    whole = writer.write([asks(writer)[1]])[0].text
    cut = writer.write([asks(writer, stop=(whole[3:6],))[1]])[0]
    assert cut.text == whole[: whole.find(whole[3:6])]
    assert cut.finish_reason == "stop"


def test_a_seed_draws_the_same_again_and_another_seed_something_else(writer: Generator) -> None:
    def draw(seed: int) -> list[str]:
        return [w.text for w in writer.write(asks(writer, temperature=1.5, seed=seed))]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize("max_tokens", [3, 40, 400])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_under_a_schema_every_answer_is_valid_however_little_room(
    writer: Generator, max_tokens: int, temperature: float
) -> None:
    grammar = Grammar.compile(SCHEMA, writer.tokenizer)
    wanted = asks(writer, max_tokens=max_tokens, temperature=temperature, seed=1)
    for written in writer.write(wanted, grammar):
        jsonschema.validate(json.loads(written.text), SCHEMA)
        assert len(written.log_probabilities) == len(written.token_ids)
        assert max(written.log_probabilities) <= 1e-6
        if max_tokens == 3:
            assert written.finish_reason == "length"


def test_forced_tokens_are_certain_and_cost_no_choice(writer: Generator) -> None:
    only = {"type": "object", "properties": {"kind": {"const": "fixed"}}, "required": ["kind"]}
    grammar = Grammar.compile(only | {"additionalProperties": False}, writer.tokenizer)
    written = writer.write([asks(writer)[0]], grammar)[0]
    assert json.loads(written.text) == {"kind": "fixed"}
    # A tokenizer that can spell the text in several ways leaves choices, but no doubt about the text.
    assert sum(value == 0.0 for value in written.log_probabilities) >= 1


def test_answers_come_back_in_the_order_of_the_asks(writer: Generator) -> None:
    writer.batch_rows = 2
    found: list[GenerationResult] = writer.write(asks(writer))
    assert [w.n_prompt_tokens for w in found] == [len(ask.ids) for ask in asks(writer)]


def test_nothing_asked_is_nothing_written(writer: Generator) -> None:
    assert writer.write([]) == []


def test_the_likeliest_tokens_stand_beside_each_written_one(writer: Generator) -> None:
    ask = asks(writer, top=3)[0]
    written = writer.write([ask])[0]
    assert len(written.top) == len(written.token_ids)
    for i, (token, top) in enumerate(zip(written.token_ids, written.top, strict=True)):
        read = [*ask.ids, *written.token_ids[:i]]
        with torch.inference_mode():
            row = writer.model(input_ids=torch.tensor([read])).logits[0, -1].float().log_softmax(-1)
        best = row.topk(3)
        assert [one for one, _ in top] == best.indices.tolist()
        assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert top[0][0] == token


def test_under_a_grammar_only_allowed_tokens_are_told_and_forced_ones_are_certain(writer: Generator) -> None:
    grammar = Grammar.compile({"enum": ["a", "b"]}, writer.tokenizer)
    written = writer.write([asks(writer, top=20)[0]], grammar)[0]
    follower, chosen = grammar.follow(), 0
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


def test_who_asks_for_no_alternatives_gets_the_tokens_alone(writer: Generator) -> None:
    written = writer.write([asks(writer, top=0)[0]])[0]
    assert written.top == ((),) * len(written.token_ids)
    assert writer.write([asks(writer)[0]])[0].top == ()


def test_a_line_that_leaves_its_grammar_fails_alone(writer: Generator) -> None:
    lines = [
        GeneratedSequence(ask._replace(grammar=grammar), writer.tokenizer)
        for ask, grammar in zip(asks(writer), [Grammar.compile(SCHEMA, writer.tokenizer), None], strict=False)
    ]
    batch = Batch(writer, lines)
    batch.step(100)
    lines[0]._follow(lines[0].follower, next(t for t, ok in enumerate(lines[0].allowed()) if not ok))
    while batch.alive:
        batch.step(8)
    with pytest.raises(ModelError, match="left at token"):
        lines[0].written()
    assert lines[1].written().token_ids == writer.write([asks(writer)[1]])[0].token_ids


def test_time_is_shared_out_over_the_rows(writer: Generator) -> None:
    began = time.perf_counter()
    written = writer.write(asks(writer))
    assert 0 < sum(one.busy_s for one in written) <= time.perf_counter() - began
