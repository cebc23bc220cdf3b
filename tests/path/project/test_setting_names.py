"""Guesses in task.yaml: the setting that is meant stands in the message, ready to copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.path.project.setting_names import _OTHER_NAMES, setting_paths
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.tasks.classify import Classify


def message(tmp_path: Path, setting: str) -> str:
    """What follows the place in the message on the only wrong setting of a file."""
    (tmp_path / "task.yaml").write_text(f"name: desk\ndata: {{train: train.jsonl}}\n{setting}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_task_file(tmp_path)
    (line,) = str(caught.value).splitlines()[1:]
    return line.partition(": unknown setting")[2]


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("epochs: 5", "; write small: {training: {duration: …}}"),  # what other tools call it
        ("small: {lr: 0.001}", "; write small: {training: {learning_rate: …}}"),
        ("labels_column: topic", "; write data: {columns: {label: …}}"),
        ("classes: [a, b]", "; write labels: …"),
        ("max_error: 0.05", "; write routing: {guarantee: {max_error: …}}"),  # where it is looked for
        ("large: {gguf: a.gguf, model: m}", "; write large: {endpoint: {model: …}}"),  # below the same place first
        ("small.training.seed: 3", "; write small: {training: {seed: …}}"),
        ("ruting: {}", ' — did you mean "routing"?'),
    ],
)
def test_the_setting_that_is_meant_is_told(tmp_path: Path, setting: str, meant: str) -> None:
    assert message(tmp_path, setting) == meant


def test_every_setting_of_the_table_exists() -> None:
    known = {".".join(path) for path in setting_paths(TaskFile)} | set(Classify.setting_names())
    assert set(_OTHER_NAMES) <= known
