"""The TASK of a verb, repeated as it was typed; help that ends with examples."""

from pathlib import Path

import pytest
from fixtures.cli import call, failed


@pytest.mark.parametrize(
    ("typed", "repeated"),
    [((), "task.yaml"), (("task.yaml",), "task.yaml"), (("my desk",), "'my desk'"), (("my desk/task.yaml",), None)],
)
def test_the_next_command_repeats_the_task_as_it_was_typed(
    desk_folder: Path, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...], repeated: str | None
) -> None:
    inside = desk_folder / "my desk"
    inside.mkdir()
    for name in ("task.yaml", "train.jsonl"):
        (inside / name).write_bytes((desk_folder / name).read_bytes())
    monkeypatch.chdir(desk_folder)
    message = failed(call("gate", *typed), 1)
    wanted = repeated or "'my desk/task.yaml'"
    assert message == f"StageMissing: desk has no finished run\n  next: smallfirst train {wanted}\n"
