"""The files that a calibration row passes through, from its file to its certificate: few, and documented."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import smallfirst
from smallfirst.base.progress import Progress
from smallfirst.data.dataset import Dataset, Example
from smallfirst.data.sources.text_files import RawRow
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.path.calibrate import certify_candidate
from smallfirst.path.evaluate import evaluate_stage
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import CERTIFICATE
from smallfirst.path.project.task_file import read_task_file
from smallfirst.path.train import train_stage
from smallfirst.routing.certificate.calibration_set import CalibrationSet, CascadeOutcome

PACKAGE = Path(smallfirst.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "design" / "order_of_proof.md"
MAX_FILES = 18
BESIDE = {
    "smallfirst/data/copies.py",
    "smallfirst/registry/runs.py",
    "smallfirst/tasks/classify.py",
}
"""They look at the rows, or log them, and pass no calibration row on."""
LABELS = {"card": "my card is lost, number", "refund": "I want money back for order", "hours": "do you open at"}


class Watched:
    """The files with a function that is given or returns a row of these texts, or a table of them, in any thread."""

    def __init__(self, texts: set[str]) -> None:
        self.texts, self.files = texts, set[str]()

    def holds(self, value: Any, depth: int = 0) -> bool:
        if isinstance(value, RawRow):
            return any(text in str(value.values) for text in self.texts)
        if isinstance(value, Example | EvaluatedRow):
            return value.text in self.texts
        if isinstance(value, CalibrationSet | CascadeOutcome):
            return True
        rows: Any = value.examples if isinstance(value, Dataset) else value
        rows = value.rows if isinstance(value, Evaluation) else rows
        return isinstance(rows, list | tuple) and depth < 2 and any(self.holds(one, depth + 1) for one in rows)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(PACKAGE)):
            return
        name = f"smallfirst/{Path(code.co_filename).relative_to(PACKAGE)}"
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        given = [frame.f_locals.get(name) for name in names] if event == "call" else [argument]
        if name not in self.files and any(map(self.holds, given)):
            self.files.add(name)


@contextmanager
def watched(texts: set[str]) -> Iterator[set[str]]:
    found = Watched(texts)
    sys.setprofile(found)
    threading.setprofile(found)
    try:
        yield found.files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def test_a_row_passes_through_few_files_and_these_are_documented(tmp_path: Path) -> None:
    for part, n in (("train", 40), ("validation", 60), ("test", 40)):
        rows = [
            {"text": f"{part} {i}: {words} {7 * i}", "label": label}
            for i in range(n)
            for label, words in LABELS.items()
        ]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = "{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}"
    settings = f"name: desk\nlabels: [card, refund, hours]\nladder: [words]\ndata: {files}\n"
    (tmp_path / "task.yaml").write_text(settings, encoding="utf-8")
    file, quiet = read_task_file(tmp_path), Progress(quiet=True)
    texts = {row.text for row in Project.read(file, quiet).rows.calibration.examples}
    with watched(texts) as touched:
        project = Project.read(file, quiet)
        run_folder = train_stage(project)
        evaluate_stage(project, run_folder)
        certify_candidate(project, run_folder, "words", alone=True)
    assert (run_folder.path / CERTIFICATE).is_file()
    documented = re.findall(r"^\d+\. `(smallfirst/[\w/]+\.py)`", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(touched - BESIDE) <= MAX_FILES
    assert set(documented) <= touched, "the page names files that no row passes through"
