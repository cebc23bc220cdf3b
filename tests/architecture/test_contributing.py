"""The recipes of CONTRIBUTING.md work as they stand there: one file and one registration each."""

import asyncio
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.interfaces.cli.main import main
from smallfirst.models.loading import ModelSource, choose_engine, load
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import request_key
from smallfirst.path.project.candidate_registry import CANDIDATES
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import RoutingConfig, read_task_file
from smallfirst.routing.policies import apply_policies
from smallfirst.traffic.logs.read import read_logs

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
Install = Callable[[str], dict[str, str]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install the package of the recipe under a heading; return its blocks by file name."""
    before = set(sys.modules)

    def write(heading: str) -> dict[str, str]:
        section = TEXT.partition(f"### {heading}\n")[2].partition("\n##")[0]
        found = re.findall(r"```\w+\n# (\S+)\n(.*?)```", section, re.DOTALL)
        blocks = dict(found)
        assert len(blocks) == len(found)
        points = tomllib.loads(blocks["pyproject.toml"])["project"]["entry-points"]
        ((group, entries),) = points.items()
        assert len(entries) == 1, "one registration"
        modules = [name for name in blocks if name.endswith(".py")]
        assert len(modules) == 1, "one file"
        package = tmp_path / "site"
        info = package / "shop-1.0.dist-info"
        info.mkdir(parents=True)
        (package / modules[0]).write_text(blocks[modules[0]], encoding="utf-8")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
        lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        monkeypatch.syspath_prepend(str(package))
        return blocks

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("shop_"):
            sys.modules.pop(name)


def write_task(folder: Path, rows: list[dict[str, str]], settings: dict[str, Any]) -> str:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = {"data": {"train": "train.jsonl"}, **settings}
    (folder / "task.yaml").write_text(json.dumps(file), encoding="utf-8")
    return str(folder / "task.yaml")


def run_stages(task: str) -> str:
    """Run the stages of a task; return what the gate said."""
    said = ""
    for command in ("check", "train", "evaluate", "gate", "report"):
        result = CliRunner().invoke(main, [command, task])
        assert result.exit_code == 0, f"{command}: {result.output}"
        said = result.output if command == "gate" else said
    return said


def test_a_candidate(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"text": f"{word} number {i} of {i * 7919 % 1000}", "label": label}
        for i in range(60)
        for word, label in (("card", "cards"), ("fee", "fees"), ("pin", "codes"))
    ]
    settings = {"name": "desk", "ladder": ["first-word", "words"], "gate": {"accuracy_at_least": 0.8}}
    task = write_task(tmp_path, rows, settings | {"routing": {"small": "first-word"}})
    refused = CliRunner().invoke(main, ["check", task])
    assert refused.exit_code == 2
    assert f'ladder: "first-word" is no candidate; known: {", ".join(CANDIDATES.names())}' in refused.output
    monkeypatch.setattr(CANDIDATES, "_loaded", dict(CANDIDATES._loaded))  # forgotten after the test
    install("Add a candidate")
    assert "goes live by the gate: first-word" in run_stages(task)
    run_folder = RunFolder.latest("desk")
    assert run_folder.verdicts().of("first-word").passed
    page = (run_folder.path / "report.html").read_text(encoding="utf-8")
    assert ": a table of first words" in page


def test_a_task_kind(install: Install, tmp_path: Path) -> None:
    install("Add a task kind")
    rows = [
        {
            "question": f"is number {n} {'even' if n % 3 else 'odd'}",
            "answer": "yes" if (n % 2 == 0) == (n % 3 > 0) else "no",
        }
        for n in range(80)
    ]
    settings = {"name": "parity", "kind": "yes_no", "ladder": ["words"], "gate": {"accuracy_at_least": 0.01}}
    run_stages(write_task(tmp_path, rows, settings))
    evaluation = RunFolder.latest("parity").evaluation("words", "test")
    assert evaluation.measures.keys() == {"yes_precision"}
    assert {row.answer for row in evaluation.rows} <= {"yes", "no"}
    assert [row.score for row in evaluation.rows] == [float(row.answer == row.gold) for row in evaluation.rows]
    result = CliRunner().invoke(main, ["init", str(tmp_path / "new"), "--kind", "yes_no"])
    assert result.exit_code == 0, result.output
    assert read_task_file(tmp_path / "new").kind == "yes_no"
    write_task(tmp_path, rows, {"name": "parity", "kind": "yes_no", "yess": "da", "labels": ["a", "b"]})
    with pytest.raises(ConfigError) as error:
        read_task_file(tmp_path)
    assert 'yess: unknown setting — did you mean "yes"?' in str(error.value)
    assert "labels: a setting of kind classify, not of yes_no" in str(error.value)


def test_a_policy(install: Install) -> None:
    settings: Any = yaml.safe_load(install("Add a policy")["task.yaml"])["routing"]
    routing = parse_record(RoutingConfig, settings, where="task.yaml")
    decision = apply_policies(routing.policies, Request.ask("Where is it? And when?"))
    assert (decision.to, decision.policy, decision.why) == ("large", "questions", "2 questions")
    assert apply_policies(routing.policies, Request.ask("Where is it?")) is None


def test_an_engine(install: Install, tmp_path: Path) -> None:
    install("Add an engine")
    request = Request.ask("where is my card")
    header = {"recorded": {"model": "big", "made_at": "2026-11-26", "smallfirst": "0", "n": 1}}
    spent = {"prompt_tokens": 9, "completion_tokens": 1, "latency_ms": 1, "cost_usd": 0}
    row = {"key": request_key(request), "text": request.text, "answer": "arrival", **spent}
    path = tmp_path / "large.recording.jsonl"
    path.write_text(f"{json.dumps(header)}\n{json.dumps(row)}\n")
    source = ModelSource(path)
    assert choose_engine(source) == "recording"
    assert asyncio.run(load(source).complete(request)).text == "arrival"


def test_a_log_format(install: Install, tmp_path: Path) -> None:
    log = tmp_path / "journal.jsonl"
    log.write_text(install("Add a log format")[log.name])
    ((one,), problems) = map(list, read_logs([log]))
    assert (one.id, one.model, one.at.hour, problems) == ("7", "gpt-4o", 9, [])
    assert (one.request["messages"][-1]["content"], one.source) == ("where is my card?", f"{log}:1")
