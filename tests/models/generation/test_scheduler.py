"""Requests come and go while others run: the answers stay the same, deltas come early, rows are freed at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import pytest
import torch

from smallfirst.errors import ModelError
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler
from smallfirst.models.generation.sequence import GeneratedSequence, GenerationRequest, GenerationResult, TextDelta

R = TypeVar("R")
TEXTS = ("the card", "where is my refund please, it is late", "pin", "tell me more about your currency question")
ENDLESS = GenerationRequest([5, 6, 7], 100_000)


@pytest.fixture
def generator(lively: tuple[Any, Any]) -> Generator:
    return Generator(*lively, end=-1)  # no answer ends before its tokens run out


def use(generator: Generator, play: Callable[[ContinuousBatchScheduler], Awaitable[R]], **limits: int) -> R:
    """Return the result of `play`; the scheduler's thread ends after it."""

    async def run() -> R:
        scheduler = ContinuousBatchScheduler(generator, name="tiny")
        vars(scheduler).update(limits)
        try:
            return await asyncio.wait_for(play(scheduler), 60)
        finally:
            scheduler._aborted = True  # requests left by a failed test must not delay the end
            await scheduler.aclose()
            assert not scheduler._thread.is_alive()

    return asyncio.run(run())


def use_beside_another(
    generator: Generator, play: Callable[[ContinuousBatchScheduler], Awaitable[R]], **limits: int
) -> R:
    """Return the result of `play` while an endless answer runs, which goes on undisturbed."""

    async def run(scheduler: ContinuousBatchScheduler) -> R:
        async with aclosing(scheduler.stream(ENDLESS)) as other:
            await anext(other)
            found = await play(scheduler)
            await anext(other)
            return found

    return use(generator, run, **({"memory_tokens": 10**6} | limits))


def generate_all(
    generator: Generator, requests: Sequence[GenerationRequest], **limits: int
) -> list[GenerationResult | BaseException]:
    async def play(scheduler: ContinuousBatchScheduler) -> list[GenerationResult | BaseException]:
        return await asyncio.gather(*map(scheduler.generate, requests), return_exceptions=True)

    return use(generator, play, **limits)


def alone(generator: Generator, request: GenerationRequest) -> GenerationResult:
    return generator.generate([request])[0]


def requests_of(generator: Generator, n: int = 12, **settings: Any) -> list[GenerationRequest]:
    """Prompts and answers of many lengths."""
    return [
        GenerationRequest(generator.tokenizer.encode(TEXTS[i % 4] * (1 + i % 3)), 3 + 5 * (i % 5), **settings)
        for i in range(n)
    ]


async def until(true: Callable[[], bool]) -> None:
    """Wait for another thread; fail after 20 seconds."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


def stream(generator: Generator, request: GenerationRequest) -> tuple[list[TextDelta], GenerationResult]:
    async def play(scheduler: ContinuousBatchScheduler) -> list[TextDelta | GenerationResult]:
        return [event async for event in scheduler.stream(request)]

    *deltas, result = use(generator, play)
    assert isinstance(result, GenerationResult)
    return [delta for delta in deltas if isinstance(delta, TextDelta)], result


@contextmanager
def watched_shapes(generator: Generator) -> Iterator[list[tuple[int, int]]]:
    """Yield the (rows, width) of every forward pass."""
    shapes: list[tuple[int, int]] = []
    hook = generator.model.model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    hook.remove()


@pytest.mark.parametrize("limits", [{}, {"max_rows": 3}, {"memory_tokens": 150}, {"read_tokens": 6}])
def test_answers_do_not_depend_on_what_comes_and_goes(generator: Generator, limits: dict[str, int]) -> None:
    wanted = [alone(generator, request) for request in requests_of(generator)]

    async def play(scheduler: ContinuousBatchScheduler) -> list[GenerationResult]:
        tasks = []
        for i, request in enumerate(requests_of(generator)):
            tasks.append(asyncio.create_task(scheduler.generate(request)))
            if i % 3 == 2:  # the next ones arrive while these run
                await asyncio.sleep(0.01)
        return await asyncio.gather(*tasks)

    for found, expected in zip(use(generator, play, **limits), wanted, strict=True):
        assert (found.token_ids, found.text) == (expected.token_ids, expected.text)
        assert found.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-4)


def test_formats_and_seeds_of_one_batch_do_not_mix(generator: Generator) -> None:
    grammars = [
        None,
        *(Grammar.compile(one, generator.tokenizer) for one in ({"enum": ["a", "bc"]}, {"type": "integer"})),
    ]
    mixed = [request._replace(grammar=grammars[i % 3]) for i, request in enumerate(requests_of(generator, 6))]
    mixed += requests_of(generator, 6, temperature=1.3, seed=7)
    wanted = [alone(generator, request).token_ids for request in mixed]
    assert [found.token_ids for found in generate_all(generator, mixed)] == wanted  # type: ignore[union-attr]


def test_a_new_request_joins_a_running_answer_and_ends_before_it(generator: Generator) -> None:
    async def play(scheduler: ContinuousBatchScheduler) -> int:
        assert len((await scheduler.generate(GenerationRequest([9, 8], 4))).token_ids) == 4
        return scheduler.n_running

    assert use_beside_another(generator, play) == 1


def test_a_long_prompt_is_read_in_parts_between_the_steps_of_the_others(generator: Generator) -> None:
    long = GenerationRequest(list(range(10, 310)), 2)
    with watched_shapes(generator) as shapes:
        found = use_beside_another(generator, lambda scheduler: scheduler.generate(long), read_tokens=50)
    parts = [i for i, (_, width) in enumerate(shapes) if width == 56]  # 50, rounded
    assert len(parts) == 6
    assert all(shapes[i + 1] == (1, 1) for i in parts[:-1])  # the other answer's step
    assert found.token_ids == alone(generator, long).token_ids


def test_deltas_come_early_and_add_up(generator: Generator) -> None:
    request = requests_of(generator)[1]._replace(max_tokens=30, top=2)
    deltas, result = stream(generator, request)
    assert len(deltas) > 5
    assert "".join(delta.text for delta in deltas) == result.text.strip()
    assert sum((delta.token_ids for delta in deltas), ()) == result.token_ids
    assert sum((delta.log_probabilities for delta in deltas), ()) == result.log_probabilities
    assert sum((delta.top for delta in deltas), ()) == result.top
    assert result.token_ids == alone(generator, request).token_ids


def test_a_stop_text_and_its_tokens_are_in_no_delta(generator: Generator) -> None:
    request = requests_of(generator)[1]._replace(max_tokens=30)
    whole = alone(generator, request).text
    stop = whole[11:14]
    deltas, result = stream(generator, request._replace(stop=(stop,), top=0))
    assert result.text == whole[: whole.find(stop)]
    assert "".join(delta.text for delta in deltas) == result.text.strip()
    emitted = sum((delta.token_ids for delta in deltas), ())
    assert len(emitted) == result.n_in_text < len(result.token_ids)
    assert result.text.startswith(generator.tokenizer.decode(emitted))


@pytest.mark.parametrize("how", ["generate", "stream"])
def test_a_cancelled_answer_frees_its_row_within_a_step(generator: Generator, how: str) -> None:
    cut_off: list[GeneratedSequence] = []

    async def play(scheduler: ContinuousBatchScheduler) -> None:
        await scheduler.generate(ENDLESS._replace(max_tokens=1), cut_off.append)  # is returned, so not reported
        if how == "generate":
            task = asyncio.create_task(scheduler.generate(ENDLESS, cut_off.append))
            await until(lambda: scheduler.n_running == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            answer = scheduler.stream(ENDLESS, cut_off.append)
            await anext(answer)
            assert scheduler.n_running == 2
            await answer.aclose()
        assert [sequence.request for sequence in cut_off] == [ENDLESS]
        assert cut_off[0].ids or how == "generate"
        batch = scheduler._batch
        await until(
            lambda: scheduler.n_running == 1 and batch.running is not None and len(batch.running.sequences) == 1
        )

    use_beside_another(generator, play)


def test_a_request_cancelled_while_it_waits_never_starts(generator: Generator) -> None:
    async def play(scheduler: ContinuousBatchScheduler) -> int:
        task = asyncio.create_task(scheduler.generate(GenerationRequest([1], 3)))
        await until(lambda: len(scheduler._waiting) == 1)
        task.cancel()
        await until(lambda: len(scheduler._waiting) == 0)
        return scheduler.n_running

    assert use_beside_another(generator, play, max_rows=1) == 1


@pytest.mark.parametrize(("limits", "most"), [({"max_rows": 3}, 3), ({"memory_tokens": 64}, 2)])
def test_no_more_runs_than_the_limits_allow(generator: Generator, limits: dict[str, int], most: int) -> None:
    seen: list[int] = []

    async def play(scheduler: ContinuousBatchScheduler) -> None:
        requests = [GenerationRequest([5 + i] * 20, 12) for i in range(9)]  # 32 tokens each
        tasks = [asyncio.create_task(scheduler.generate(request)) for request in requests]
        while not all(task.done() for task in tasks):
            seen.append(scheduler.n_running)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    use(generator, play, **limits)
    assert max(seen) == most


def test_a_request_larger_than_all_room_runs_alone(generator: Generator) -> None:
    found = generate_all(generator, [GenerationRequest([5] * 30, 10), GenerationRequest([6] * 3, 2)], memory_tokens=20)
    assert [len(result.token_ids) for result in found] == [10, 2]  # type: ignore[union-attr]


def test_a_cached_prefix_changes_nothing_and_is_read_once(generator: Generator) -> None:
    prefix = tuple(range(20, 60))
    requests = [GenerationRequest([*prefix, i, i + 1], 6, prefix=prefix) for i in range(5)]
    wanted = [alone(generator, request).token_ids for request in requests]

    async def play(scheduler: ContinuousBatchScheduler) -> list[tuple[int, ...]]:
        return [(await scheduler.generate(request)).token_ids for request in requests]

    with watched_shapes(generator) as shapes:
        assert use(generator, play) == wanted
    assert sorted((width for _, width in shapes), reverse=True)[:2] == [40, 2]
    assert len(generator._prefixes) == 1


def test_only_declared_prefixes_are_cached(generator: Generator) -> None:
    generate_all(generator, requests_of(generator))
    assert not generator._prefixes
    cache = generator.prefix((5, 6, 7)).repeat(1)
    with torch.inference_mode():
        state = cache.read([[8]])[0]
        wanted = generator.model.model(input_ids=torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0, -1]
    torch.testing.assert_close(state, wanted, atol=1e-5, rtol=0)


def test_calls_run_between_steps_and_their_errors_reach_the_caller(generator: Generator) -> None:
    def broken() -> None:
        raise ValueError("no such thing")

    async def play(scheduler: ContinuousBatchScheduler) -> None:
        assert await scheduler.run(lambda: threading.current_thread().name) == "answers of tiny"
        with pytest.raises(ModelError, match="tiny could not answer: no such thing"):
            await scheduler.run(broken)

    use_beside_another(generator, play)


def test_a_failed_step_fails_its_requests_and_the_next_are_answered(generator: Generator) -> None:
    async def play(scheduler: ContinuousBatchScheduler) -> GenerationResult:
        with pytest.raises(ModelError, match="tiny could not answer"):
            await scheduler.generate(GenerationRequest([10**9], 3))  # no such token
        return await scheduler.generate(GenerationRequest([5], 3))

    assert len(use(generator, play).token_ids) == 3


def test_closing_answers_what_waits_and_takes_nothing_more(generator: Generator) -> None:
    async def play() -> list[GenerationResult]:
        scheduler = ContinuousBatchScheduler(generator, name="tiny")
        scheduler.max_rows = 2
        tasks = [asyncio.create_task(scheduler.generate(request)) for request in requests_of(generator, 6)]
        await asyncio.sleep(0)  # all have asked
        await scheduler.aclose()
        with pytest.raises(ModelError, match="tiny is closed"):
            await scheduler.generate(GenerationRequest([5], 3))
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(play())) == 6


def test_a_request_that_cannot_start_fails_alone(generator: Generator) -> None:
    async def play(scheduler: ContinuousBatchScheduler) -> list[GenerationResult | BaseException]:
        bad = GenerationRequest([5], 3, temperature=1.0, seed=10**30)  # no random generator takes such a seed
        both = map(scheduler.generate, (bad, GenerationRequest([5], 3)))
        return await asyncio.gather(*both, return_exceptions=True)

    assert [type(found) for found in use_beside_another(generator, play)] == [ModelError, GenerationResult]


def test_a_grammar_that_gives_up_fails_alone(generator: Generator) -> None:
    broken = Grammar.compile({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2}, generator.tokenizer)
    broken._matcher.consume_token(0)
    requests = [GenerationRequest([6], 9, grammar=broken), GenerationRequest([5], 9)]
    failed, found = generate_all(generator, requests)
    assert isinstance(failed, ModelError)
    assert isinstance(found, GenerationResult)
    assert found.token_ids == alone(generator, requests[1]).token_ids
