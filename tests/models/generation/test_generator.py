"""A batch generates what each request would alone, ends where it must, and follows a schema to the last token."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import pytest
import torch
from fixtures.waiting import until_async
from hypothesis import example, given
from hypothesis import strategies as st

from smallfirst.base.errors import ModelError
from smallfirst.models.generation.generator import (
    REPLACEMENT,
    AnswerText,
    Batch,
    GeneratedSequence,
    GenerationRequest,
    GenerationResult,
    GenerationWorker,
    Generator,
)
from smallfirst.models.generation.grammar import Grammar

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


def test_a_seed_draws_the_same_again_and_another_seed_something_else(generator: Generator) -> None:
    def draw(seed: int) -> list[str]:
        return [found.text for found in generator.generate(requests_of(generator, temperature=1.5, seed=seed))]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_under_a_schema_every_answer_that_ends_is_valid(generator: Generator, temperature: float) -> None:
    schema = SCHEMA | {"properties": SCHEMA["properties"] | {"item": {"type": "string", "maxLength": 9}, "tags": {}}}
    schema["properties"]["tags"] = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}
    grammar = Grammar.compile(schema, generator.tokenizer)
    requests = requests_of(generator, max_tokens=200, temperature=temperature, seed=1, grammar=grammar)
    for found in generator.generate(requests):
        assert found.finish_reason == "stop"
        jsonschema.validate(json.loads(found.text), schema)
        assert len(found.log_probabilities) == len(found.token_ids)
        assert max(found.log_probabilities) <= 1e-6
    cut = one(generator, max_tokens=3, grammar=grammar)
    assert cut.finish_reason == "length"
    assert '{"item": "'.startswith(cut.text[:10])


def test_forced_tokens_are_certain(generator: Generator) -> None:
    only = {"type": "object", "properties": {"kind": {"const": "fixed"}}, "required": ["kind"]}
    found = one(generator, grammar=Grammar.compile(only | {"additionalProperties": False}, generator.tokenizer))
    assert json.loads(found.text) == {"kind": "fixed"}
    # A tokenizer that can spell the text in several ways leaves choices, but no doubt about the text.
    assert sum(value == 0.0 for value in found.log_probabilities) >= 1


@pytest.mark.parametrize("error", ["left at token", "could not be followed"])
def test_a_sequence_that_fails_in_its_grammar_fails_alone(generator: Generator, error: str) -> None:
    requests = requests_of(generator)[:2]
    grammar = Grammar.compile(SCHEMA, generator.tokenizer)
    sequences = [
        GeneratedSequence(request._replace(grammar=own), generator.tokenizer)
        for request, own in zip(requests, (grammar, None), strict=True)
    ]
    batch = Batch(generator, sequences)
    batch.step()
    allowed = sequences[0].allowed()
    assert allowed is not None
    assert sequences[0].grammar is not None
    if error == "left at token":
        sequences[0].append(next(token for token, ok in enumerate(allowed) if not ok), 0.0, -1)
    else:
        sequences[0].grammar._matcher.consume_token(0)
    while batch.n_active:
        batch.step()
    with pytest.raises(ModelError, match=error):
        sequences[0].result()
    assert sequences[1].result().token_ids == generator.generate([requests[1]])[0].token_ids


ENDLESS = GenerationRequest([5, 6, 7], 100_000)


@pytest.fixture
def endless(lively: tuple[Any, Any]) -> Generator:
    return Generator(*lively, end=-1)  # no answer ends before its tokens run out


@asynccontextmanager
async def work_of(generator: Generator) -> AsyncIterator[GenerationWorker]:
    worker = GenerationWorker(generator, name="tiny")
    try:
        async with asyncio.timeout(60):
            yield worker
    finally:
        worker._closed = True  # requests left by a failed test must not delay the end
        await worker.aclose()


def several(generator: Generator, n: int = 12, **settings: Any) -> list[GenerationRequest]:
    """Prompts and answers of many lengths."""
    return [
        GenerationRequest(generator.tokenizer.encode(TEXTS[i % 4] * (1 + i % 3)), 3 + 5 * (i % 5), **settings)
        for i in range(n)
    ]


@pytest.mark.parametrize("limits", [{}, {"batch_rows": 3, "batch_tokens": 150}])
async def test_answers_do_not_depend_on_what_waits_with_them(endless: Generator, limits: dict[str, int]) -> None:
    grammars = [
        None,
        *(Grammar.compile(one, endless.tokenizer) for one in ({"enum": ["a", "bc"]}, {"type": "integer"})),
    ]
    asked = [one._replace(grammar=grammars[i % 3]) for i, one in enumerate(several(endless, 6))]
    asked += [*several(endless), *several(endless, 6, temperature=1.3, seed=7)]
    wanted = [endless.generate([request])[0] for request in asked]
    vars(endless).update(limits)
    tasks = []
    async with work_of(endless) as worker:
        for i, request in enumerate(asked):
            tasks.append(asyncio.create_task(worker.generate(request)))
            if i % 3 == 2:  # the next ones arrive while these run
                await asyncio.sleep(0.01)
        answers = await asyncio.gather(*tasks)
    for found, expected in zip(answers, wanted, strict=True):
        assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
        assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-4)


@pytest.mark.parametrize("stops", [False, True])
async def test_deltas_come_early_and_add_up_without_a_stop_text(endless: Generator, stops: bool) -> None:
    request = several(endless)[1]._replace(max_tokens=30)
    whole = endless.generate([request])[0].text
    request = request._replace(stop=(whole[11:14],) if stops else ())
    async with work_of(endless) as worker:
        *deltas, result = [event async for event in worker.stream(request)]
    assert isinstance(result, GenerationResult)
    assert result.text == (whole[: whole.find(whole[11:14])] if stops else whole)
    assert "".join(map(str, deltas)) == result.text.strip()
    assert stops or len(deltas) > 5


@pytest.mark.parametrize("how", ["generate", "stream"])
async def test_a_cancelled_answer_ends_within_a_step_and_is_reported(endless: Generator, how: str) -> None:
    cut_off: list[GeneratedSequence] = []
    async with work_of(endless) as worker:
        await worker.generate(ENDLESS._replace(max_tokens=1), cut_off.append)  # is returned, so not reported
        answer = worker.stream(ENDLESS, cut_off.append)
        if how == "generate":
            task = asyncio.create_task(worker.generate(ENDLESS, cut_off.append))
            await until_async(lambda: worker.n_waiting == 1)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await anext(answer)
            await answer.aclose()
            assert [sequence.request for sequence in cut_off] == [ENDLESS]
        assert worker.n_waiting == 0
        assert len((await worker.generate(GenerationRequest([5], 3))).token_ids) == 3  # is not kept waiting


async def test_what_fails_fails_with_the_models_name_and_the_next_are_answered(endless: Generator) -> None:
    broken = Grammar.compile({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2}, endless.tokenizer)
    broken._matcher.consume_token(0)
    seeded = GenerationRequest([5], 3, temperature=1.0, seed=10**30)  # no random generator takes such a seed
    async with work_of(endless) as worker:
        with pytest.raises(ModelError, match="tiny could not answer"):
            await worker.generate(GenerationRequest([10**9], 3))  # no such token
        asked = [seeded, GenerationRequest([6], 9, grammar=broken), GenerationRequest([5], 9)]
        *failed, found = await asyncio.gather(*map(worker.generate, asked), return_exceptions=True)
    assert [type(one) for one in failed] == [ModelError, ModelError]
    assert isinstance(found, GenerationResult)
    assert found.token_ids == endless.generate([GenerationRequest([5], 9)])[0].token_ids


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Any) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(tiny_folder)


def deltas(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], AnswerText]:
    """What is shown after each token and at the end, and the answer's text."""
    answer, shown, ids = AnswerText(tokenizer, stop), [], tokenizer.encode(text, add_special_tokens=False)
    for n in range(len(ids)):
        answer.follow(ids[: n + 1])
        shown.append(answer.take())
    answer.finish()
    return [*shown, answer.take(last=True)], answer


@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=3), max_size=2))
@example("größe 🙂 日本", [])
@example("  in the  middle \n", [])
@example("my cab card!", ["card"])
def test_deltas_are_whole_characters_without_a_stop_text_and_add_up(tokenizer: Any, text: str, stop: list[str]) -> None:
    shown, answer = deltas(tokenizer, text, tuple(stop))
    places = [text.find(one) for one in stop if one in text]
    assert answer.stopped == bool(places)
    # A stop text may be complete before another one that began earlier: it ends the answer at once.
    assert text.startswith(answer.text)
    assert answer.text.startswith(text[: min(places)] if places else text)
    assert "".join(shown) == answer.text.strip()
    assert not any(one in answer.text for one in stop)
    assert REPLACEMENT in text or not any(REPLACEMENT in delta for delta in shown)


def test_bytes_that_are_not_a_character_are_shown_at_the_end_or_once_they_are_many(tokenizer: Any) -> None:
    for torn in (
        tokenizer.encode("日", add_special_tokens=False)[:-1],
        tokenizer.encode("日", add_special_tokens=False)[-1:] * 40,
    ):
        answer = AnswerText(tokenizer)
        for n in range(len(torn)):
            answer.follow(torn[: n + 1])
        shown = answer.take()
        assert shown == "" if len(torn) < 12 else len(shown) >= 40 - 12 - 1
        answer.finish()
        assert shown + answer.take(last=True) == answer.text == tokenizer.decode(torn)
