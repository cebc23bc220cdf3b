"""A GGUF file in a child process. Tests with a real file run if SMALLFIRST_TEST_GGUF names one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallfirst.errors import BadAnswer, ConfigError, Unavailable
from smallfirst.models.gguf import GgufConfig, GgufModel, grammar_of
from smallfirst.models.model import Chunk, Completion, Model, Request
from smallfirst.pricing import PriceBook

FILE = os.environ.get("SMALLFIRST_TEST_GGUF", "")
real = pytest.mark.skipif(not FILE, reason="SMALLFIRST_TEST_GGUF names no GGUF file")
LABELS = ("card", "card lost", 'été "x"\\')


def test_grammar_admits_exactly_the_answers() -> None:
    assert grammar_of(("card", 'a "b"\\')) == 'root ::= "card" | "a \\"b\\"\\\\"'


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="no such GGUF file"):
        GgufModel(GgufConfig(path=Path("none.gguf")), PriceBook())


def test_file_that_is_no_gguf_says_so(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"not a model")
    model = GgufModel(GgufConfig(path=path), PriceBook())
    with pytest.raises(Unavailable) as caught:
        asyncio.run(model.complete(Request.ask("Hi")))
    assert str(caught.value).startswith(f"large model down: {path} did not load: ")
    assert "no reason" not in str(caught.value)
    assert "next: check that the file is a whole GGUF file" in str(caught.value)
    asyncio.run(model.aclose())


def config() -> GgufConfig:
    return GgufConfig(path=Path(FILE), threads=1, context_tokens=1024)


@pytest.fixture
def model() -> Iterator[GgufModel]:
    model = GgufModel(config(), PriceBook(), answers=LABELS)
    yield model
    asyncio.run(model.aclose())


def ask(model: GgufModel, max_tokens: int = 16) -> Completion:
    return asyncio.run(model.complete(Request.ask("I lost my card", max_tokens=max_tokens)))


@real
def test_model_can_write_only_one_of_the_answers(model: GgufModel) -> None:
    completion = ask(model)
    assert isinstance(model, Model)
    assert completion.text in LABELS
    assert completion.answered_by == Path(FILE).stem
    assert completion.cost_usd > 0
    assert completion.prompt_tokens > completion.completion_tokens > 0


@real
def test_answer_that_was_cut_off_is_a_bad_answer() -> None:
    model = GgufModel(config(), PriceBook(), answers=("supercalifragilistic",))
    with pytest.raises(BadAnswer, match="next: raise max_tokens"):
        ask(model, max_tokens=1)
    asyncio.run(model.aclose())


@real
def test_dead_child_is_started_again(model: GgufModel) -> None:
    first = ask(model)
    os.kill(child_of(os.getpid()), signal.SIGKILL)
    time.sleep(0.2)
    assert ask(model).text == first.text


@real
def test_child_dies_with_its_parent() -> None:
    program = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from smallfirst.models.gguf import GgufConfig, GgufModel\n"
        "from smallfirst.models.model import Request\n"
        "from smallfirst.pricing import PriceBook\n"
        "config = GgufConfig(path=Path(sys.argv[1]), threads=1, context_tokens=1024)\n"
        "asyncio.run(GgufModel(config, PriceBook()).complete(Request.ask('Hi', max_tokens=1)))\n"
        "print('asked', flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen([sys.executable, "-c", program, FILE], stdout=subprocess.PIPE, cwd=root)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"asked\n"
        child = child_of(parent.pid)
        parent.kill()
    assert gone_within(child, seconds=5)


@real
def test_closing_ends_the_child_and_is_safe_twice(model: GgufModel) -> None:
    ask(model)
    child = child_of(os.getpid())
    asyncio.run(model.aclose())
    asyncio.run(model.aclose())
    assert gone_within(child, seconds=1)


@real
def test_free_text_is_streamed() -> None:
    async def collect() -> list[Chunk]:
        model = GgufModel(config(), PriceBook())
        pieces = [piece async for piece in model.stream(Request.ask("Hi", max_tokens=4))]
        await model.aclose()
        return pieces

    *pieces, last = asyncio.run(collect())
    assert len(pieces) > 1
    assert last.completion is not None
    assert last.completion.text == "".join(piece.text for piece in pieces)
    assert last.completion.finish_reason == "length"


def child_of(pid: int) -> int:
    """The newest process whose parent is `pid`."""
    stats = Path("/proc").glob("[0-9]*/stat")
    parents = {int(stat.parent.name): stat.read_text().rsplit(")", 1)[1].split()[1] for stat in stats}
    return max(child for child, parent in parents.items() if parent == str(pid))


def gone_within(pid: int, *, seconds: float) -> bool:
    """True if the process has ended (or waits to be reaped) in that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False
