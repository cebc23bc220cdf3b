"""The file of the large model's prompt: read beside task.yaml, in place of `about` and the numbers of solved rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.project.prompt_file import Prompt
from smallfirst.project.task_file import TaskFile, read_task_file

TASK = """
name: desk
data: {train: train.jsonl}
large: {gguf: some/model, nearest: 4, prompt: told.yaml}
"""


def task_file(folder: Path, prompt: str) -> TaskFile:
    (folder / "task.yaml").write_text(TASK)
    (folder / "told.yaml").write_text(prompt)
    return read_task_file(folder)


def test_its_numbers_of_solved_rows_replace_those_of_the_task_file(tmp_path: Path) -> None:
    large = task_file(tmp_path, "instructions: Sort.\nnearest: 8\n").large
    assert large is not None
    assert large.prompt == Prompt(instructions="Sort.", nearest=8)
    assert (large.nearest, large.shots_per_label) == (8, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instruction: Sort.", 'did you mean "instructions"'),
        ("- Sort.", "expected settings by name, found list"),
        ("instructions: {", "not readable as YAML"),
    ],
)
def test_a_bad_prompt_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task_file(tmp_path, text)
    assert str(tmp_path / "told.yaml") in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_prompt_file_says_what_belongs_into_it(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK)
    with pytest.raises(ConfigError, match=r"remove large\.prompt"):
        read_task_file(tmp_path)
