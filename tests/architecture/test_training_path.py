"""The files that a training row passes through, from its file to the optimizer step: few, and all documented."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import smallfirst
from smallfirst.data.dataset import Example
from smallfirst.data.sources.text_files import RawRow
from smallfirst.models.local.packed_rows import PackedRows
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import read_task_file
from smallfirst.registry.runs import open_run
from smallfirst.training.config import TrainConfig
from smallfirst.training.loop import StepMetrics
from smallfirst.training.recipe import TaskRecipe, TokenizedRow
from smallfirst.training.run import train

PACKAGE = Path(smallfirst.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "design" / "training_path.md"
MAX_FILES = 12
MARK = "zebra"
"""A word of every row's text and of every label."""
BESIDE = {
    "smallfirst/training/estimates.py",
    "smallfirst/data/copies.py",
}
"""They look at the rows and pass no training row on."""


class Stop(BaseException):
    """The first step is done."""


def is_row(value: Any) -> bool:
    """True for a row or a batch in any form, for its text or its label, and for a sequence of rows."""
    if isinstance(value, str):
        return MARK in value
    if isinstance(value, RawRow | Example | TokenizedRow | PackedRows):
        return True
    return isinstance(value, list | tuple) and bool(value) and not isinstance(value[0], str) and is_row(value[0])


@contextmanager
def watched(touched: set[str]) -> Iterator[None]:
    """Inside the block, add to `touched` every file of the package with a function that is given or returns a row."""

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(str(PACKAGE)) or event not in ("call", "return"):
            return
        code = frame.f_code
        given = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]]
        if any(map(is_row, given if event == "call" else [argument])):
            touched.add(f"smallfirst/{Path(file).relative_to(PACKAGE)}")

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_a_row_passes_through_few_files_and_these_are_documented(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"text": f"{MARK} {i} where is my {what}", "label": what}
        for i in range(6)
        for what in (f"{MARK} card", f"{MARK} refund")
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "task.yaml").write_text("name: desk\nlabels: [zebra card, zebra refund]\ndata: {train: train.jsonl}\n")
    file = read_task_file(tmp_path)
    config = TrainConfig(duration="2ba", batch_tokens=64, max_seq_tokens=64)

    def stop(_: StepMetrics) -> None:
        raise Stop

    touched: set[str] = set()
    with open_run("toy", "path") as tracked, contextlib.suppress(Stop), watched(touched):
        project = Project.read(file)
        recipe = TaskRecipe(project.task, project.rows.train, project.rows.selection)
        train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path / "run", on_step=stop)
    documented = re.findall(r"^\d+\. `(smallfirst/[\w/]+\.py)`", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(touched - BESIDE) <= MAX_FILES
    assert set(documented) <= touched, "the page names files that no row passes through"
