"""No dead end: the next command that `run` prints is executed until an answer is served or a person is asked."""

import asyncio
import json
import random
import re
import shlex
import shutil
import socket
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures.cli import call
from fixtures.endpoints import large_server
from fixtures.server import run_server

from smallfirst.base.paths import home

WORDS = {"cards": ("card", "plastic", "pin"), "fees": ("fee", "charge", "cost"), "codes": ("code", "password", "token")}
FRAMES = ("where is my {} {}", "please send the {} {}", "I lost a {} {}", "what about the {} {}", "the {} is wrong {}")
LOOSE = {"guarantee": {"max_error": 0.3, "confidence": 0.8}}
"""A guarantee that two dozen calibration rows can show."""
GATE = {"gate": {"accuracy_at_least": 0.8}}


def rows(n: int, *, noise: float = 0.0, labels: tuple[str, ...] = ("cards", "fees", "codes")) -> list[dict[str, Any]]:
    """Rows that words tell apart, with a share `noise` of random labels."""
    chance, found = random.Random(1), []
    for i in range(n):
        label = labels[i % len(labels)]
        text = FRAMES[i // 9 % 5].format(WORDS[label][i // 3 % 3], f"of number {i}")
        found.append({"text": text, "label": chance.choice(labels) if chance.random() < noise else label})
    return found


class Ending(NamedTuple):
    """Where a run's own suggestions led."""

    commands: list[str]
    """What was executed, without `smallfirst` and without the task."""
    codes: list[int]
    """Exit codes."""
    output: str
    """What the last command printed."""
    answer: dict[str, Any] | None
    """The answer that was served; None if a person is asked."""


class Hunt:
    """Executes the commands that the command line prints; `serve` runs a real server until it has answered once."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.body, self.answer = folder, b"", None
        patch.setattr("smallfirst.serving.app.serve", self._serve)
        patch.chdir(folder.parent)

    def follow(self, command: str = "smallfirst run tickets", *, pick: str = "") -> Ending:
        """Execute `command`, then the first one printed (after a failing gate the one named `pick`), and so on."""
        done: list[str] = []
        codes = []
        while True:
            result = call(*shlex.split(command)[1:])
            assert "Traceback" not in result.output
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            done.append(command.removeprefix("smallfirst ").replace(" tickets", ""))
            codes.append(result.exit_code)
            if self.answer is not None:
                return Ending(done, codes, result.output, self.answer)
            if asked := re.search(r"curl .* -d (.+)$", result.output, re.MULTILINE):
                self.body = shlex.split(asked[1])[0].encode()
            printed = re.findall(r"^ *(?:next: )?(smallfirst .+?)(?:   .*)?$", result.output, re.MULTILINE)
            commands = [found for found in printed if " tickets" in found]
            wanted = [one for one in commands if one.split()[1] == pick] if pick else []
            command = next(iter(wanted or commands), "")
            if not command or command.removeprefix("smallfirst ").replace(" tickets", "") in done:
                return Ending(done, codes, result.output, None)

    def _serve(self, models: Any, *, ledger: Any, settings: Any, plugins: Any) -> None:
        with run_server(models, ledger, settings, plugins=plugins) as server, closing(ledger):
            request = urllib.request.Request(f"{server.url}/v1/chat/completions", self.body)
            request.add_header("content-type", "application/json")
            with urllib.request.urlopen(request, timeout=60) as response:
                assert response.status == 200
                self.answer = json.loads(response.read()) | {"headers": dict(response.headers)}
        for plugin in plugins:
            asyncio.run(plugin.aclose())


@pytest.fixture
def hunt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Hunt:
    """A hunt in a folder with the task `tickets`, whose files are still to be written."""
    shutil.copy(empty_store, home())
    (tmp_path / "tickets").mkdir()
    return Hunt(tmp_path / "tickets", monkeypatch)


def write(hunt: Hunt, examples: list[dict[str, Any]], **settings: Any) -> None:
    (hunt.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    file = {"data": {"train": "rows.jsonl"}, "ladder": ["words"], **settings}
    (hunt.folder / "task.yaml").write_text(json.dumps(file), encoding="utf-8")


def endpoint(port: int) -> dict[str, Any]:
    return {"large": {"endpoint": {"base_url": f"http://127.0.0.1:{port}/v1", "model": "big"}}}


def test_without_certificate_what_passed_the_gate_is_served_and_says_so(hunt: Hunt) -> None:
    write(hunt, rows(150), **GATE)
    found = hunt.follow()
    assert (found.commands, found.codes) == (["run", "serve"], [0, 0])
    assert "answered without a promise" in json.dumps(found.answer)
    assert found.answer["smallfirst"]["guarantee"] is None


def test_a_gate_that_nobody_wrote_is_named_and_once_written_lets_the_candidate_answer(hunt: Hunt) -> None:
    write(hunt, rows(150))
    ran = call("run", "tickets")
    assert ran.exit_code == 3
    assert "Write  gate: {accuracy_at_least: 0.8}  into task.yaml" in " ".join(ran.output.split("\n"))
    assert "smallfirst promote tickets" in ran.output
    assert call("promote", "tickets").exit_code == 3  # it is not written yet
    write(hunt, rows(150), **GATE)
    hunt.body = b'{"model": "tickets", "messages": [{"role": "user", "content": "where is my card"}]}'
    found = hunt.follow("smallfirst promote tickets")
    assert (found.commands, found.codes) == (["promote", "serve"], [0, 0])
    assert found.answer is not None


def test_without_certificate_the_large_model_answers_once_it_is_up(hunt: Hunt) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write(hunt, rows(90), **endpoint(port), **GATE, routing={"guarantee": {"max_error": 0.05}})
    down = call("run", "tickets", "--json")
    assert (down.exit_code, json.loads(down.stdout)["error"]["type"]) == (1, "Unavailable")
    with large_server("fees", port=port) as large:
        command = json.loads(down.stdout)["next_steps"][0]["command"]
        assert command == "smallfirst run tickets --resume"
        n_runs = len(list(home().glob("tasks/tickets/*/candidates.json")))
        found = hunt.follow(command)
        assert len(list(home().glob("tasks/tickets/*/candidates.json"))) == n_runs == 1  # the same run went on
        assert (found.commands, found.codes) == (["run --resume", "serve"], [3, 0])
        assert large.asked[-1]["messages"][-1]["content"] == json.loads(hunt.body)["messages"][-1]["content"]
    assert found.answer["choices"][0]["message"]["content"] == "fees"


def test_a_failing_gate_asks_for_labels_or_a_signature(hunt: Hunt) -> None:
    write(hunt, rows(150, noise=0.5))
    found = hunt.follow()
    assert (found.commands, found.codes) == (["run", "review --labels suspects.jsonl"], [3, 0])
    assert "fill in `answer` where the given one is wrong" in found.output
    setting = re.search(r"add  relabels: (\S+)  under data: in task.yaml", found.output)
    data = {"train": "rows.jsonl", "relabels": setting[1]}
    assert (hunt.folder / setting[1]).resolve() == (hunt.folder.parent / "suspects.jsonl").resolve()
    write(hunt, rows(150, noise=0.5), data=data)
    assert call("check", "tickets").exit_code == 0  # nothing is filled in yet, and the file is found
    signed = hunt.follow("smallfirst gate tickets", pick="override")
    assert [command.split()[0] for command in signed.commands] == ["gate", "override", "promote", "serve"]
    assert signed.codes == [3, 0, 0, 0]
    assert signed.answer is not None


@pytest.mark.parametrize(
    ("data", "settings", "code", "asked"),
    [
        (rows(3), {}, 1, "no test rows"),
        (rows(60, labels=("cards",)), {}, 1, "label rows of the others"),
        ([{"text": "a", "target": {"n": 1}}], {"kind": "extract", "ladder": ["small"]}, 1, "no test rows"),
        ([], {}, 1, "no rows"),
    ],
    ids=["too few labels", "one label", "one row to extract from", "no row"],
)
def test_rows_that_make_no_task_are_named_and_more_are_asked_for(
    hunt: Hunt, data: list[dict[str, Any]], settings: dict[str, Any], code: int, asked: str
) -> None:
    write(hunt, data, **settings)
    found = hunt.follow()
    assert (found.commands, found.codes) == (["run", "check"], [code, code])
    assert asked in found.output
    record = json.loads(call("run", "tickets", "--json").stdout)
    assert record["error"]["exit_code"] == code
    assert [step["command"] for step in record["next_steps"]] == ["smallfirst check tickets", ""]
