"""An assistant in traffic is one task, with its calls, what can move, and a draft that `learn` takes."""

import json
import random
from pathlib import Path

import pytest
from fixtures.assistant import dialogue, exchanges

from smallfirst.path.project.task_file import read_task_file
from smallfirst.traffic import learning
from smallfirst.traffic.discovery.discover import Discovery, discover, render_report
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.task_source import TaskSource


def test_an_assistant_is_one_task_with_its_calls(discovered: tuple[Discovery, Path]) -> None:
    found, _ = discovered
    [task] = found.tasks
    assert (task.name, task.kind, task.n_requests, found.rest) == ("find-table", "functions", len(exchanges(120)), ())
    assert task.labels["find_table"] == 120
    assert task.calls is not None
    assert task.calls.n_calls == sum(task.labels.values())
    assert 100 <= task.calls.n_conversations <= 120
    assert task.calls.lasting == ("cancel_table",)
    assert task.verdict == "moves"
    assert task.calls.moves is not None
    assert (task.calls.moves.low > 0.7, task.calls.chance) == (True, 1.0)
    assert "with a chance of 100%, and then" in task.why
    assert task.format_check is not None
    assert task.format_check.is_exact
    page = render_report(found)
    assert "2 functions" in page
    assert task.calls.in_words in page


def test_its_draft_keeps_conversations_together_and_asks_about_what_lasts(discovered: tuple[Discovery, Path]) -> None:
    folder = discovered[1] / "find-table"
    file, source = read_task_file(folder), TaskSource.of(folder)
    assert file.kind == "call"
    assert "conversations" in file.why_no_second_look
    assert "\n# functions: {cancel_table: never}\n" in (folder / "task.yaml").read_text()
    assert source is not None
    assert source.assistant is not None
    assert source.assistant.names == {"find_table", "cancel_table"}
    parts = [conversations(folder / name) for name in ("rows.jsonl", "validation.jsonl", "test.jsonl")]
    assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
    assert len(parts[0]) < 0.5 * sum(map(len, parts))
    assert discover(exchanges(120), out=discovered[1], max_error=0.2).tasks[0].name == "find-table"


def test_corrections_of_one_conversation_are_used_for_one_thing(
    discovered: tuple[Discovery, Path], tmp_path: Path
) -> None:
    drafted = read_task_file(discovered[1] / "find-table")
    rows = [row for path in learning._files(drafted).values() for row in learning._read(path, drafted)]
    said = {row.key: row for row in rows}
    files = learning._write_parts(tmp_path, drafted, rows, said, accuracy=True)
    groups = [conversations(tmp_path / name) for name in files.values()]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups))


def conversations(path: Path) -> set[str]:
    return {json.loads(line)["conversation"] for line in path.read_text().splitlines()}


def test_calls_that_nothing_tells_stay() -> None:
    rng = random.Random(1)
    found = discover([shuffled(one, rng) for one in exchanges(120)], max_error=0.05)
    [task] = found.tasks
    assert task.verdict == "stays"
    assert "open" in task.why


def shuffled(one: Exchange, rng: random.Random) -> Exchange:
    """The same request with the answer of another dialogue's turn."""
    said = [message for message in dialogue(rng) if message["role"] == "assistant"]
    choice = {"message": rng.choice(said), "finish_reason": "stop"}
    return one.model_copy(update={"response": {"model": "big-2026", "choices": [choice]}})


@pytest.mark.parametrize("n", [5, 120])
def test_few_turns_or_single_ones_are_no_assistant(n: int) -> None:
    asked = [one for one in exchanges(n) if n == 5 or len(one.request["messages"]) == 2]
    assert not any(task.kind == "functions" for task in discover(asked).tasks)
