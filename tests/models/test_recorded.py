"""Recording a model: no answer is lost, none is paid for twice; replayed answers are exact, dated, and no others."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.server import WholeModel

from smallfirst.base.errors import BadAnswer, DataError, SpendingLimitReached, Unavailable
from smallfirst.base.progress import ProgressCallback, no_progress
from smallfirst.models.pricing import TokenUsage, stated
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.models.recorded import ReplayModel, Spending, SpendingCap, record, request_key

HEADER: dict[str, Any] = {"made_at": "2026-11-25", "smallfirst": "0.1.0", "prompt": "Classify."}
TEXTS = ("one", "two", "three", "four")


class Shout(WholeModel):
    """Answers in capitals; cannot answer the texts in `bad`, and is down for those in `down`."""

    def __init__(self, *, bad: str = "", down: str = "", name: str = "shout") -> None:
        self.name = name
        self.bad, self.down = bad.split(), down.split()
        self.asked: list[str] = []

    async def complete(self, request: Request) -> Completion:
        self.asked.append(request.text)
        await asyncio.sleep(0)
        if request.text in self.bad:
            raise BadAnswer(f"nothing to say to {request.text}")
        if request.text in self.down:
            raise Unavailable("large model down")
        return Completion(text=request.text.upper(), answered_by=self.name, latency_ms=1.26, cost_usd=0.1)


def run(
    model: Shout,
    path: Path,
    texts: tuple[str, ...] = TEXTS,
    *,
    header: dict[str, Any] = HEADER,
    concurrency: int = 1,
    progress: ProgressCallback = no_progress,
) -> int:
    requests = [Request.ask(text) for text in texts]
    return asyncio.run(record(model, requests, path, header=header, concurrency=concurrency, progress=progress))


def answers(path: Path) -> list[str]:
    return [json.loads(line)["answer"] for line in path.read_text().splitlines()[1:]]


def test_killed_run_goes_on_without_asking_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(Shout(), path, ("one", "two"))
    whole = path.read_text()
    path.write_text(whole[:-20])  # the second row is half written
    model, told = Shout(), []
    twice = (*TEXTS, "two")  # equal requests are asked once
    assert run(model, path, twice, progress=lambda there, wanted: told.append((there, wanted))) == 3
    assert model.asked == ["two", "three", "four"]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert answers(path) == ["ONE", "TWO", "THREE", "FOUR"]
    assert ReplayModel.load(path).note == "recorded 2026-11-25 from shout (n=4)"


def test_bad_answers_are_skipped_and_told_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(BadAnswer) as caught:
        run(Shout(bad="one three"), path)
    assert str(caught.value) == (
        f"2 of 4 requests got no answer; the others are in {path}. "
        "The first: nothing to say to one\n"
        "  next: run the same command again to send only those"
    )
    assert answers(path) == ["TWO", "FOUR"]


def test_another_model_or_prompt_may_not_go_on_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(Shout(), path)
    before = path.read_text()
    model = Shout(name="whisper")
    with pytest.raises(DataError, match="recorded with another model; one file must not mix the answers of both"):
        run(model, path)
    assert (model.asked, path.read_text()) == ([], before)
    with pytest.raises(DataError, match="with another prompt"):
        run(Shout(), path, header=HEADER | {"prompt": "Think."})


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_request_is_sent_that_might_cost_more_than_allowed(tmp_path: Path, concurrency: int) -> None:
    path, model = tmp_path / "answers.jsonl", Shout()
    requests = [Request.ask(text) for text in TEXTS]

    def ask(max_usd: float, spent_usd: float = 0.0) -> int:
        spending = Spending(SpendingCap(max_usd, spent_usd), lambda text: 0.15)
        recording = record(model, requests, path, header=HEADER, concurrency=concurrency, spending=spending)
        return asyncio.run(recording)

    with pytest.raises(
        SpendingLimitReached, match=r"\$0.20 is spent and the next answer may cost up to \$0.15: .* \$0.34"
    ):
        ask(0.34)  # answers cost 0.1, but each may cost 0.15
    assert model.asked == ["one", "two"]
    assert len(ReplayModel.load(path)._answers) == 2
    assert ask(0.46, spent_usd=0.2) == 2
    assert model.asked == [*TEXTS]


# --- replayed


BIG = {
    "model": "big-70b", "made_at": "2026-11-25", "smallfirst": "0.1.0", "command": "smallfirst record",
    "settings": {"temperature": 0}, "prompt": [{"role": "system", "content": "Classify."}], "machine": "2 cores",
    "n": 1,
}  # fmt: skip
LOST = Request.ask("I lost my card")
ROW = {
    "key": request_key(LOST), "text": "I lost my card", "answer": "card_lost", "prompt_tokens": 90,
    "cached_tokens": 80, "completion_tokens": 3, "latency_ms": 812.5, "cost_usd": 0.0002,
}  # fmt: skip


def written(path: Path, *lines: Any) -> Path:
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(text) + "\n")
    return path


def test_recorded_answer_comes_back_as_it_was(tmp_path: Path) -> None:
    model = ReplayModel.load(written(tmp_path / "big.jsonl", {"recorded": BIG}, ROW))
    assert isinstance(model, Model)
    asked = LOST.model_copy(update={"max_tokens": 7})  # answers are found by their messages alone
    tokens = TokenUsage(prompt_tokens=90, cached_tokens=80, completion_tokens=3)
    assert asyncio.run(model.complete(asked)) == Completion(
        text="card_lost",
        answered_by="big-70b",
        latency_ms=812.5,
        cost_usd=0.0002,
        charges=(stated("big-70b", 0.0002, source=f"recorded {BIG['made_at']}", tokens=tokens),),
        prompt_tokens=90,
        completion_tokens=3,
    )


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    row = {**ROW}
    del row["cost_usd"]
    path = written(tmp_path / "big.jsonl", {"recorded": BIG}, row, ROW, '{"key": ')
    with pytest.raises(DataError) as caught:
        ReplayModel.load(path)
    assert str(caught.value) == (
        f"{path} is not a complete recording\n"
        f"  {path}:2  cost_usd: Field required\n"
        f"  {path}:4  EOF while parsing a value, column 8\n"
        "  next: run smallfirst record again: it drops a partial last row and continues"
    )


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (ROW, "recorded: Field required"),
        ({"recorded": BIG | {"tempo": 1}}, "recorded.tempo: Extra inputs are not permitted"),
        ("", "the file is empty"),
    ],
)
def test_file_without_a_header_is_refused(tmp_path: Path, line: Any, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        ReplayModel.load(written(tmp_path / "big.jsonl", line))
    (problem,) = caught.value.problems
    assert (problem.line, rule in problem.rule) == (1, True)


# --- the cap


async def test_a_request_waits_for_what_another_may_release() -> None:
    cap = SpendingCap(1.0, 0.3)
    first = await cap.reserve(0.5)
    waiting = asyncio.create_task(cap.reserve(0.5))
    await asyncio.sleep(0)
    assert not waiting.done()
    await cap.release(0.5, 0.1)
    assert (first, await waiting, cap.spent_usd) == (0.5, 0.5, 0.4)


async def test_an_answer_above_its_worst_case_raises_that_of_all_later_ones() -> None:
    cap = SpendingCap(1.0)
    assert await cap.reserve(0.2) == 0.2
    await cap.release(0.2, 0.4)
    assert await cap.reserve(0.2) == 0.4
    assert await SpendingCap(0.1).reserve(0.2) is None
