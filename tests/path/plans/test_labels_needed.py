"""One number of rows for all that is open, with the chance that as many decide it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.preflight import project_of

from smallfirst.base.progress import Progress
from smallfirst.base.stats.sample_size import RowsNeeded
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.gate import Gate
from smallfirst.measuring.verdict import nearest_to_passing
from smallfirst.path.plans.labels_needed import OpenQuestion, labels_needed, rows_to_label
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import VERDICTS, GateVerdicts, RunFolder
from smallfirst.path.project.task_file import read_task_file


def question(part: str, n_more: int, chance: float, n_now: int) -> OpenQuestion:
    return OpenQuestion(part, RowsNeeded(n_more, chance), n_now)  # type: ignore[arg-type]


def one_file(folder: Path) -> Project:
    rows = [{"text": f"row {i * 7919} {i * i}", "label": "ab"[i % 2]} for i in range(200)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text("name: desk\ndata: {train: rows.jsonl}\nprices: {usd_per_label: 0.1}\n")
    return Project.read(read_task_file(folder), Progress(quiet=True))


def test_of_one_file_the_question_that_takes_most_rows_decides_and_the_least_chance_is_said(tmp_path: Path) -> None:
    project = one_file(tmp_path)
    n_test, n_cal = len(project.rows.test), len(project.rows.calibration)
    gate, certificate = question("test", n_test, 0.6, n_test), question("calibration", 3 * n_cal, 0.75, n_cal)
    found = rows_to_label(project, [gate, certificate])
    assert found is not None
    assert (found.n_data_rows, found.chance) == (600, 0.6)  # three times 200 rows give three times as many of each part
    assert found.in_words == "about 600 more rows in rows.jsonl (chance 60 %)"
    assert found.with_price.endswith(", for about $60.00 by a person")
    # Where test rows certify as well, twice as many rows of the file count, so half as many are missing.
    both = rows_to_label(project, [question("calibration", 3 * n_cal, 0.75, 2 * n_cal)])
    assert both is not None
    assert both.n_data_rows == 300


def test_of_a_gate_and_a_certificate_the_one_that_takes_fewer_rows_puts_something_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, run_folder = one_file(tmp_path), RunFolder(tmp_path / "run")
    n_test, n_cal = len(project.rows.test), len(project.rows.calibration)
    ways = [question("calibration", 40 * n_cal, 0.75, n_cal), question("test", n_test, 0.6, n_test)]
    monkeypatch.setattr("smallfirst.path.plans.labels_needed._open", lambda *_, **__: iter(ways))
    found = labels_needed(project, run_folder)
    assert found is not None
    assert (found.n_data_rows, found.chance) == (200, 0.6)


def test_files_of_their_own_grow_by_what_each_lacks(tmp_path: Path) -> None:
    project = project_of(tmp_path, calibration=40)
    found = rows_to_label(project, [question("test", 7, 0.75, 60), question("calibration", 10, 0.7, 40)])
    assert found is not None
    n_validation = sum(map(len, (project.rows.selection, project.rows.calibration, project.rows.left_out)))
    assert found.files == {"test.jsonl": 7, "validation.jsonl": -(-10 * n_validation // 40)}
    assert found.n_data_rows == sum(found.files.values())
    assert found.in_words.startswith(f"about {found.n_data_rows} more rows (7 in test.jsonl, ")
    assert found.in_words.endswith(" in validation.jsonl; chance 70 %)")


def test_what_is_unlikely_asks_for_no_rows(tmp_path: Path) -> None:
    project = one_file(tmp_path)
    never, open_ = question("test", 20_000, 0.02, 40), question("calibration", 30, 0.75, 30)
    assert rows_to_label(project, [never]) is None
    assert rows_to_label(project, []) is None
    found = rows_to_label(project, [never, open_])
    assert found is not None
    assert found.chance == 0.75


def test_without_a_row_of_a_part_its_share_of_the_file_is_what_the_split_gives(tmp_path: Path) -> None:
    project = one_file(tmp_path)
    bare = project._replace(rows=project.rows.model_copy(update={"test": project.rows.test.subset("none", ())}))
    found = rows_to_label(bare, [question("test", 10, 0.75, 0)])
    assert found is not None
    assert found.n_data_rows == 50  # a fifth


def test_of_all_candidates_the_one_that_takes_fewest_rows_is_asked_for(
    tmp_path: Path, measured: Callable[..., Evaluation]
) -> None:
    project, run_folder, gate = one_file(tmp_path), RunFolder(tmp_path / "run"), Gate(accuracy_at_least=0.8)
    first, second = verdicts = tuple(
        gate.check(
            measured([True] * right + [False] * (30 - right), candidate=name), large=None, comparisons_made=parts
        )
        for name, right, parts in (("encoder", 27, 1 / 0.6), ("tuned", 28, 10))
    )
    assert nearest_to_passing(verdicts) is first  # its interval ends nearer to the bar
    assert (first.checks[0].more_rows, second.checks[0].more_rows) == (370, 160)
    GateVerdicts(winner=None, verdicts=verdicts).save(run_folder.path / VERDICTS)
    found = labels_needed(project, run_folder)
    assert found is not None
    assert found.n_data_rows == pytest.approx(160 * 200 / len(project.rows.test), rel=0.1)
