"""The recipes of CONTRIBUTING.md work as they stand there: one file and one registration each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.contributing import Install

from smallfirst.models.loading import ModelSource, choose_engine, load
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import request_key
from smallfirst.project.task_file import RoutingConfig
from smallfirst.records import parse_record
from smallfirst.routing.policies import apply_policies

ROOT = Path(__file__).parents[2]


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
    assert choose_engine(source) == "recording"
    assert asyncio.run(load(source).complete(request)).text == "arrival"


@pytest.mark.parametrize("heading", ["Add a candidate", "Add a task kind", "Add a policy", "Add an engine"])
def test_the_code_of_a_recipe_passes_the_project_s_own_style(install: Install, heading: str) -> None:
    ((name, code),) = ((name, code) for name, code in install(heading).items() if name.endswith(".py"))
    documented = f'"""The recipe."""\n\n{code}'
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", f"smallfirst/{name}", "-"]
    done = subprocess.run(command, input=documented, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
