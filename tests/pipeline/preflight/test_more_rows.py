"""How many rows of data give so many rows of a part."""

from __future__ import annotations

import json
from pathlib import Path

from fixtures.preflight import project_of

from smallfirst.pipeline.preflight.more_rows import more_rows
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import read_task_file


def test_a_file_of_its_own_takes_as_many_and_a_part_of_one_more(tmp_path: Path) -> None:
    project = project_of(tmp_path, calibration=40)
    assert more_rows(project, "test", 7).in_words == "7 more rows in test.jsonl"
    found = more_rows(project, "calibration", 10)
    n_validation = sum(map(len, (project.rows.selection, project.rows.calibration, project.rows.left_out)))
    assert found.n_data_rows == -(-10 * n_validation // 40)
    in_file = f"about {found.n_data_rows} more rows in validation.jsonl"
    assert found.in_words == f"10 more calibration rows, which is {in_file}"


def test_one_file_gives_the_share_that_it_gave_so_far(tmp_path: Path) -> None:
    rows = [{"text": f"row {i * 7919} {i * i}", "label": "ab"[i % 2]} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text("name: desk\ndata: {train: rows.jsonl}\n")
    project = Project.read(read_task_file(tmp_path), Progress(quiet=True))
    n_test = len(project.rows.test)
    assert more_rows(project, "test", n_test).n_data_rows == 200
    bare = project.rows.model_copy(update={"test": project.rows.test.subset("none", ())})
    assert more_rows(project._replace(rows=bare), "test", 10).n_data_rows == 50  # a fifth
