"""The recipes of CONTRIBUTING.md work as they stand there: one file and one registration each."""

from __future__ import annotations

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

from smallfirst.models.engines.engine import ModelSource
from smallfirst.models.engines.selection import choose_engine, detect_environment, load
from smallfirst.models.protocol import Request
from smallfirst.models.recorded.replay import request_key
from smallfirst.project.task_file import RoutingConfig
from smallfirst.records import parse_record
from smallfirst.routing.policies import apply_policies

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
Install = Callable[[str], dict[str, str]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install the package of one recipe into a folder of its own; return its blocks by file name."""
    loaded = set(sys.modules)

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
        (tmp_path / modules[0]).write_text(blocks[modules[0]])
        info = tmp_path / "shop-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n")
        lines = "".join(f"{name} = {target}\n" for name, target in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        monkeypatch.syspath_prepend(str(tmp_path))
        return blocks

    yield write
    for name in set(sys.modules) - loaded:
        if name.startswith("shop_"):
            sys.modules.pop(name)


def test_a_policy(install: Install) -> None:
    settings: Any = yaml.safe_load(install("Add a policy")["task.yaml"])["routing"]
    routing = parse_record(RoutingConfig, settings, where="task.yaml")
    decision = apply_policies(routing.policies, Request.ask("Where is it? And when?"))
    assert decision is not None
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
    choice = choose_engine(source, detect_environment())
    assert (choice.engine, choice.reason) == ("recording", "it is a recording")
    assert asyncio.run(load(source).complete(request)).text == "arrival"
