"""`smallfirst serve --explain`: the engines it names are those that would answer."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner
from fixtures.endpoints import register_words

from smallfirst.cli.serve import serve
from smallfirst.data.dataset import Dataset
from smallfirst.models.servers.vllm import VllmModel
from smallfirst.pipeline.large_model import general_model
from smallfirst.project.task_file import read_task_file
from smallfirst.tasks.classify import Classify


def test_explained_engine_of_the_large_model_is_the_one_that_answers(
    module_store: Path, tmp_path: Path, tiny_folder: Path, toy_rows: Dataset, toy_task: Classify
) -> None:
    register_words(tmp_path / "model", toy_rows, toy_task)
    program = tmp_path / "vllm"  # not on PATH, and there is no GPU
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    settings = {
        "name": "tickets",
        "data": {"train": "train.jsonl"},
        "register_to": "main.ml.tickets",
        "large": {"vllm": {"base": str(tiny_folder), "program": str(program)}},
    }
    path = tmp_path / "task.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    found = CliRunner().invoke(serve, [str(path), "--explain"], catch_exceptions=False).output
    assert "tickets-small\n  engine   linear: scored in this process" in found
    assert "tickets-large\n  engine   vLLM: a server in a child process" in found
    assert "why      it is the engine named for this model" in found
    assert isinstance(general_model(read_task_file(path)), VllmModel)
