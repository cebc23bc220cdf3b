"""Requests that come and go while others are written: the same answers, pieces on the way, rows freed at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
import torch

from smallfirst.errors import ModelError
from smallfirst.models.generation.generator import Generator
from smallfirst.models.generation.grammar import Grammar
from smallfirst.models.generation.scheduler import ContinuousBatchScheduler, SchedulerLimits
from smallfirst.models.generation.sequence import GenerationRequest, GenerationResult, TextDelta

R = TypeVar("R")
TEXTS = ("the card", "where is my refund please, it is late", "pin", "tell me more about your currency question")
FOREVER = GenerationRequest([5, 6, 7], 100_000)


@pytest.fixture
def writer(lively: tuple[Any, Any]) -> Generator:
    return Generator(*lively, end=-1)  # no answer ends before its room does


def use(writer: Generator, play: Callable[[ContinuousBatchScheduler], Awaitable[R]], **limits: int) -> R:
    """What `play` gives, the thread ended behind it."""

    async def run() -> R:
        live = ContinuousBatchScheduler(writer, name="tiny", limits=SchedulerLimits(**limits))
        try:
            return await asyncio.wait_for(play(live), 60)
        finally:
            live._given_up = True  # what a failed test has left must not hold it up
            await live.aclose()
            assert not live._thread.is_alive()

    return asyncio.run(run())


def asks(writer: Generator, n: int = 12, **settings: Any) -> list[GenerationRequest]:
    """Prompts and rooms of many lengths."""
    return [
        GenerationRequest(writer.tokenizer.encode(TEXTS[i % 4] * (1 + i % 3)), 3 + 5 * (i % 5), **settings)
        for i in range(n)
    ]


async def until(true: Callable[[], bool]) -> None:
    """Waits for what another thread does; fails after 20 seconds."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


async def pieces_of(live: ContinuousBatchScheduler, ask: GenerationRequest) -> tuple[list[TextDelta], GenerationResult]:
    *pieces, written = [event async for event in live.stream(ask)]
    assert isinstance(written, GenerationResult)
    return [piece for piece in pieces if isinstance(piece, TextDelta)], written


@pytest.mark.parametrize("limits", [{}, {"rows": 3}, {"memory_tokens": 150}, {"read_tokens": 6}])
def test_answers_are_those_written_alone_whoever_comes_and_goes(writer: Generator, limits: dict[str, int]) -> None:
    wanted = [writer.write([ask])[0] for ask in asks(writer)]

    async def play(live: ContinuousBatchScheduler) -> list[GenerationResult]:
        tasks = []
        for i, ask in enumerate(asks(writer)):
            tasks.append(asyncio.create_task(live.write(ask)))
            if i % 3 == 2:  # the next ones come while these are written
                await asyncio.sleep(0.01)
        return await asyncio.gather(*tasks)

    for found, alone in zip(use(writer, play, **limits), wanted, strict=True):
        assert found.token_ids == alone.token_ids
        assert found.text == alone.text
        assert found.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-4)


def test_free_text_and_several_forms_share_a_batch(writer: Generator) -> None:
    forms = [Grammar.compile(schema, writer.tokenizer) for schema in ({"enum": ["a", "bc"]}, {"type": "integer"})]
    mixed = [ask._replace(grammar=[None, *forms][i % 3]) for i, ask in enumerate(asks(writer, 6))]
    wanted = [writer.write([ask])[0].token_ids for ask in mixed]

    async def play(live: ContinuousBatchScheduler) -> list[GenerationResult]:
        return await asyncio.gather(*map(live.write, mixed))

    assert [found.token_ids for found in use(writer, play)] == wanted


def test_a_newcomer_joins_an_answer_under_way_and_ends_before_it(writer: Generator) -> None:
    async def play(live: ContinuousBatchScheduler) -> None:
        async with aclosing(live.stream(FOREVER)) as long:
            await anext(long)
            written = await live.write(GenerationRequest([9, 8], 4))
            assert len(written.token_ids) == 4
            assert live.under_way == 1

    use(writer, play, memory_tokens=10**6)


def test_a_long_prompt_is_read_in_parts_between_the_steps_of_the_others(writer: Generator) -> None:
    read: list[tuple[int, int]] = []
    forward = writer.model.model.forward

    def watched(**inputs: Any) -> Any:
        read.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    writer.model.model.forward = watched
    long = list(range(10, 310))

    async def play(live: ContinuousBatchScheduler) -> GenerationResult:
        async with aclosing(live.stream(FOREVER)) as other:
            await anext(other)
            return await live.write(GenerationRequest(long, 2))

    found = use(writer, play, memory_tokens=10**6, read_tokens=50)
    del writer.model.model.forward
    parts = [i for i, (_, width) in enumerate(read) if width == 50]
    assert len(parts) == 6
    assert all(read[i + 1] == (1, 1) for i in parts[:-1])  # the other one's step
    assert found.token_ids == writer.write([GenerationRequest(long, 2)])[0].token_ids


def test_pieces_come_while_it_writes_and_add_up(writer: Generator) -> None:
    ask = asks(writer)[1]._replace(max_tokens=30, top=2)

    async def play(live: ContinuousBatchScheduler) -> tuple[list[TextDelta], GenerationResult]:
        return await pieces_of(live, ask)

    pieces, written = use(writer, play)
    assert len(pieces) > 5
    assert "".join(piece.text for piece in pieces) == written.text.strip()
    assert sum((piece.token_ids for piece in pieces), ()) == written.token_ids
    assert sum((piece.log_probabilities for piece in pieces), ()) == written.log_probabilities
    assert sum((piece.top for piece in pieces), ()) == written.top
    assert written.token_ids == writer.write([ask])[0].token_ids


def test_a_stop_text_is_in_no_piece_and_its_tokens_in_none(writer: Generator) -> None:
    whole = writer.write([asks(writer)[1]._replace(max_tokens=30)])[0].text
    stop = whole[11:14]
    ask = asks(writer)[1]._replace(max_tokens=30, stop=(stop,), top=0)

    async def play(live: ContinuousBatchScheduler) -> tuple[list[TextDelta], GenerationResult]:
        return await pieces_of(live, ask)

    pieces, written = use(writer, play)
    assert written.text == whole[: whole.find(stop)]
    assert "".join(piece.text for piece in pieces) == written.text.strip()
    told = sum((piece.token_ids for piece in pieces), ())
    assert len(told) == written.n_in_text < len(written.token_ids)
    assert written.text.startswith(writer.tokenizer.decode(told))


@pytest.mark.parametrize("how", ["write", "stream"])
def test_an_answer_nobody_waits_for_frees_its_row_within_a_step(writer: Generator, how: str) -> None:
    async def play(live: ContinuousBatchScheduler) -> None:
        other = live.stream(GenerationRequest([9, 8], 100_000))
        await anext(other)
        if how == "write":
            task = asyncio.create_task(live.write(FOREVER))
            await until(lambda: live.under_way == 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            stream = live.stream(FOREVER)
            await anext(stream)
            assert live.under_way == 2
            await stream.aclose()
        lane = live._lanes[""]
        await until(lambda: live.under_way == 1 and lane.running is not None and len(lane.running.memory.seen) == 1)
        await anext(other)  # goes on undisturbed
        await other.aclose()
        await until(lambda: live.under_way == 0 and not live._lanes)

    use(writer, play, memory_tokens=10**6)


def test_who_gives_up_while_waiting_never_begins(writer: Generator) -> None:
    async def play(live: ContinuousBatchScheduler) -> None:
        async with aclosing(live.stream(FOREVER)) as first:
            await anext(first)
            task = asyncio.create_task(live.write(GenerationRequest([1], 3)))
            await until(lambda: live.waiting == 1)
            task.cancel()
            await until(lambda: live.waiting == 0)
            assert live.under_way == 1

    use(writer, play, rows=1)


@pytest.mark.parametrize(("limits", "most"), [({"rows": 3}, 3), ({"memory_tokens": 64}, 2)])
def test_no_more_is_under_way_than_the_limits_allow(writer: Generator, limits: dict[str, int], most: int) -> None:
    seen: list[int] = []

    async def play(live: ContinuousBatchScheduler) -> None:
        tasks = [
            asyncio.create_task(live.write(GenerationRequest([5 + i] * 20, 12))) for i in range(9)
        ]  # 32 tokens each
        while not all(task.done() for task in tasks):
            seen.append(live.under_way)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    use(writer, play, **limits)
    assert max(seen) == most


def test_one_that_is_larger_than_all_room_is_written_alone(writer: Generator) -> None:
    async def play(live: ContinuousBatchScheduler) -> list[GenerationResult]:
        return await asyncio.gather(
            live.write(GenerationRequest([5] * 30, 10)), live.write(GenerationRequest([6] * 3, 2))
        )

    assert [len(w.token_ids) for w in use(writer, play, memory_tokens=20)] == [10, 2]


def test_a_remembered_beginning_changes_nothing_and_is_read_once(writer: Generator) -> None:
    beginning = tuple(range(20, 60))
    wanted = [writer.write([GenerationRequest([*beginning, i, i + 1], 6)])[0].token_ids for i in range(5)]
    read: list[int] = []
    forward = writer.model.model.forward

    def watched(**inputs: Any) -> Any:
        read.append(inputs["input_ids"].shape[1])
        return forward(**inputs)

    writer.model.model.forward = watched

    async def play(live: ContinuousBatchScheduler) -> list[GenerationResult]:
        found = []
        for i in range(5):
            found.append(await live.write(GenerationRequest([*beginning, i, i + 1], 6, prefix=beginning)))
        return found

    assert [w.token_ids for w in use(writer, play)] == wanted
    assert sorted(read, reverse=True)[:2] == [40, 2]
    assert len(writer._prefixes) == 1


def test_nothing_is_remembered_of_what_is_not_declared(writer: Generator) -> None:
    async def play(live: ContinuousBatchScheduler) -> None:
        for ask in asks(writer):
            await live.write(ask)

    use(writer, play)
    assert not writer._prefixes


def test_work_runs_between_steps_and_its_errors_are_the_askers(writer: Generator) -> None:
    def broken() -> None:
        raise ValueError("no such thing")

    async def play(live: ContinuousBatchScheduler) -> None:
        async with aclosing(live.stream(FOREVER)) as other:
            await anext(other)
            assert await live.run(lambda: threading.current_thread().name) == "answers of tiny"
            with pytest.raises(ModelError, match="tiny could not answer: no such thing"):
                await live.run(broken)
            await anext(other)

    use(writer, play, memory_tokens=10**6)


def test_a_step_that_fails_is_told_to_all_of_it_and_the_next_ones_are_answered(writer: Generator) -> None:
    async def play(live: ContinuousBatchScheduler) -> GenerationResult:
        with pytest.raises(ModelError, match="tiny could not answer"):
            await live.write(GenerationRequest([10**9], 3))  # no such token
        return await live.write(GenerationRequest([5], 3))

    assert len(use(writer, play).token_ids) == 3


def test_closing_answers_what_waits_and_takes_nothing_more(writer: Generator) -> None:
    async def play() -> list[GenerationResult]:
        live = ContinuousBatchScheduler(writer, name="tiny", limits=SchedulerLimits(rows=2))
        tasks = [asyncio.create_task(live.write(ask)) for ask in asks(writer, 6)]
        await asyncio.sleep(0)  # all have asked
        await live.aclose()
        with pytest.raises(ModelError, match="tiny is closed"):
            await live.write(GenerationRequest([5], 3))
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(play())) == 6


def test_a_shared_one_ends_with_its_last_user(writer: Generator) -> None:
    async def play() -> None:
        live = ContinuousBatchScheduler(writer, name="tiny")
        other = live.share()
        await live.aclose()
        assert len((await other.write(GenerationRequest([5], 3))).token_ids) == 3
        await other.aclose()
        assert live.closed

    asyncio.run(play())


def test_seeds_draw_the_same_whoever_stands_beside(writer: Generator) -> None:
    drawn = asks(writer, 6, temperature=1.3, seed=7)
    wanted = [writer.write([ask])[0].token_ids for ask in drawn]

    async def play(live: ContinuousBatchScheduler) -> list[GenerationResult]:
        return await asyncio.gather(*map(live.write, drawn))

    assert [w.token_ids for w in use(writer, play)] == wanted


def test_the_first_piece_comes_long_before_the_last(writer: Generator) -> None:
    async def play(live: ContinuousBatchScheduler) -> tuple[float, float]:
        began = time.perf_counter()
        stream = live.stream(GenerationRequest([5, 6], 400))
        await anext(stream)
        first_token_s = time.perf_counter() - began
        async for _ in stream:
            pass
        return first_token_s, time.perf_counter() - began

    first_token_s, whole_s = use(writer, play)
    assert first_token_s < whole_s / 3


def test_prefix_states_are_those_of_the_model(writer: Generator) -> None:
    found = writer.prefix((5, 6, 7), "").copies(1)
    with torch.inference_mode():
        state = found.read([[8]])[0]
        wanted = writer.model.model(input_ids=torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0, -1]
    torch.testing.assert_close(state, wanted, atol=1e-5, rtol=0)


def test_a_request_that_cannot_begin_fails_alone(writer: Generator) -> None:
    async def play(live: ContinuousBatchScheduler) -> None:
        async with aclosing(live.stream(FOREVER)) as other:
            await anext(other)
            bad = live.write(GenerationRequest([5], 3, temperature=1.0, seed=10**30))  # no generator takes such a seed
            found = await asyncio.gather(bad, live.write(GenerationRequest([5], 3)), return_exceptions=True)
            assert isinstance(found[0], ModelError)
            assert isinstance(found[1], GenerationResult)
            await anext(other)

    use(writer, play, memory_tokens=10**6)


def test_a_grammar_that_gives_up_takes_nobody_along(writer: Generator) -> None:
    broken = Grammar.compile({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2}, writer.tokenizer)
    plain = broken._matcher
    wanted = writer.write([GenerationRequest([5], 9)])[0].token_ids

    async def play(live: ContinuousBatchScheduler) -> None:
        broken._matcher = plain.deep_copy()
        broken._matcher.consume_token(0)
        found = await asyncio.gather(
            live.write(GenerationRequest([6], 9, grammar=broken)),
            live.write(GenerationRequest([5], 9)),
            return_exceptions=True,
        )
        assert isinstance(found[0], ModelError)
        assert isinstance(found[1], GenerationResult)
        assert found[1].token_ids == wanted

    use(writer, play)
