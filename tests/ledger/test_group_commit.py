"""A thread that writes what waits together: order, crowds, and who is told of a failure."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from smallfirst.ledger.group_commit import GroupCommitWriter


class Book:
    """Keeps what is written, batch by batch; refuses a batch with something negative in it; may be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Event()
        self.writer: GroupCommitWriter[int] = GroupCommitWriter(self.write, name="book")

    def write(self, items: Sequence[int]) -> None:
        self.begun.set()
        assert self.open.wait(60)
        if any(item < 0 for item in items):
            raise ValueError(f"{min(items)} is negative")
        self.batches.append(list(items))


async def test_what_waits_together_is_written_together_in_order() -> None:
    book = Book()
    book.open.clear()
    first = asyncio.create_task(book.writer.put_async(0))
    await asyncio.to_thread(book.begun.wait, 60)
    rest = [asyncio.create_task(book.writer.put_async(n)) for n in range(1, 5)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in (first, *rest))
    book.open.set()
    await asyncio.gather(first, *rest)
    assert book.batches == [[0], [1, 2, 3, 4]]
    book.writer.put(5)
    assert book.batches[-1] == [5]


async def test_of_a_crowd_only_those_at_fault_fail() -> None:
    book = Book()
    book.open.clear()
    first = asyncio.create_task(book.writer.put_async(0))
    await asyncio.to_thread(book.begun.wait, 60)
    rest = [asyncio.create_task(book.writer.put_async(n)) for n in (1, -2, 3)]
    await asyncio.sleep(0)
    book.open.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)
    assert [str(result) for result in results] == ["None", "None", "-2 is negative", "None"]
    assert book.batches == [[0], [1], [3]]


def test_closing_waits_for_what_was_handed_in_and_refuses_the_rest() -> None:
    book = Book()
    book.open.clear()
    handing_in = threading.Thread(target=book.writer.put, args=(1,))
    handing_in.start()
    assert book.begun.wait(60)
    threading.Timer(0.05, book.open.set).start()
    book.writer.close()
    book.writer.close()
    assert book.batches == [[1]]
    handing_in.join()
    with pytest.raises(RuntimeError):
        book.writer.put(2)
    assert book.batches == [[1]]
