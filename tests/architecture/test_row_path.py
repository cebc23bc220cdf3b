"""The files that a row passes through, to its optimizer step and to its certificate: few, and documented."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fixtures.preflight import write_task

from smallfirst.base.progress import Progress
from smallfirst.data.dataset import Dataset, Example
from smallfirst.data.sources.text_files import RawRow
from smallfirst.measuring.evaluate import EvaluatedRow, Evaluation
from smallfirst.models.local.packed_rows import PackedRows
from smallfirst.path.calibrate import certify_candidate
from smallfirst.path.evaluate import evaluate_stage
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import CERTIFICATE
from smallfirst.path.train import train_stage
from smallfirst.registry.runs import open_run
from smallfirst.routing.certificate.calibration_set import CalibrationSet, CascadeOutcome
from smallfirst.training.config import TokenizedRow, TrainConfig
from smallfirst.training.loop import StepMetrics
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import train
from tests.architecture.test_request_path import DOCUMENT, entered_files

MARK = "zebra"
"""A word of every training row's text and of every label."""
LABELS = {"card": "my card is lost, number", "refund": "I want money back for order", "hours": "do you open at"}


class Stop(BaseException):
    """The first step is done."""


def is_training_row(value: Any) -> bool:
    """True for a row or a batch in any form, for its text or its label, and for a sequence of rows."""
    if isinstance(value, str):
        return MARK in value
    if isinstance(value, RawRow | Example | TokenizedRow | PackedRows):
        return True
    several = isinstance(value, list | tuple) and bool(value) and not isinstance(value[0], str)
    return several and is_training_row(value[0])


def is_row_of(texts: set[str]) -> Callable[[Any], bool]:
    """A function that is true for a row of these texts, or a table of them."""

    def holds(value: Any, depth: int = 0) -> bool:
        if isinstance(value, RawRow):
            return any(text in str(value.values) for text in texts)
        if isinstance(value, Example | EvaluatedRow):
            return value.text in texts
        if isinstance(value, CalibrationSet | CascadeOutcome):
            return True
        rows: Any = value.examples if isinstance(value, Dataset) else value
        rows = value.rows if isinstance(value, Evaluation) else rows
        return isinstance(rows, list | tuple) and depth < 2 and any(holds(one, depth + 1) for one in rows)

    return holds


def check_few_and_documented(touched: set[str], page: str, *, at_most: int) -> None:
    text = (DOCUMENT.parent / page).read_text(encoding="utf-8")
    documented = re.findall(r"^\d+\. `(smallfirst/[\w/]+\.py)`", text, re.MULTILINE)
    assert len(touched) <= at_most, sorted(touched)
    assert set(documented) <= touched, "the page names files that no row passes through"


def test_a_training_row_passes_through_few_files(tiny_folder: Path, tmp_path: Path) -> None:
    labels = (f"{MARK} card", f"{MARK} refund")
    rows = [{"text": f"{MARK} {i} where is my {label}", "label": label} for i in range(6) for label in labels]
    file = write_task(tmp_path, {"train": rows}, labels=list(labels))
    config = TrainConfig(duration="2ba", batch_tokens=64, max_seq_tokens=64)

    def stop(_: StepMetrics) -> None:
        raise Stop

    with open_run("toy", "path") as tracked, contextlib.suppress(Stop), entered_files(is_training_row) as touched:
        project = Project.read(file)
        recipe = TaskRecipe(project.task, project.rows.train, project.rows.selection)
        train(recipe, config, base=("tiny", tiny_folder), tracked=tracked, folder=tmp_path / "run", on_step=stop)
    data = {"smallfirst/data/copies.py", "smallfirst/data/families.py"}
    beside = {"smallfirst/training/estimates.py", *data}  # they look at rows, pass none on (families: may name a group)
    check_few_and_documented(touched - beside, "training_path.md", at_most=12)


def test_a_calibration_row_passes_through_few_files(tmp_path: Path) -> None:
    rows = {
        part: [
            {"text": f"{part} {i}: {words} {7 * i}", "label": label}
            for i in range(n)
            for label, words in LABELS.items()
        ]
        for part, n in (("train", 8), ("validation", 12), ("test", 8))
    }
    file = write_task(tmp_path, rows, labels=list(LABELS), ladder=["words"])
    quiet = Progress(quiet=True)
    texts = {row.text for row in Project.read(file, quiet).rows.calibration.examples}
    with entered_files(is_row_of(texts)) as touched:
        project = Project.read(file, quiet)
        run_folder = train_stage(project)
        evaluate_stage(project, run_folder)
        certify_candidate(project, run_folder, "words", alone=True)
    assert (run_folder.path / CERTIFICATE).is_file()
    beside = {"smallfirst/data/copies.py", "smallfirst/registry/runs.py", "smallfirst/tasks/classify.py"}
    check_few_and_documented(touched - beside, "order_of_proof.md", at_most=18)
