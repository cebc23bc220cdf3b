"""The time that a run may take, on a clock of the test's own."""

from __future__ import annotations

from typing import Any, cast

import pytest

from smallfirst.pipeline.ladder.plan import TimeBudget
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.task_file import TaskFile


def test_time_is_kept_for_what_follows_and_time_before_a_resumption_counts() -> None:
    now = [100.0]
    file = TaskFile.model_validate({"name": "desk", "data": {"train": "t.jsonl"}, "minutes": 10})
    project = Project(file, cast(Any, None), cast(Any, None), Progress(quiet=True, clock=lambda: now[0]))
    budget = TimeBudget(project, began=90, used_minutes=1)
    now[0] += 20
    assert budget.used_s == 90
    # 10 s went by before the ladder, so that 20 s are kept for what comes after it.
    assert budget.left_s == pytest.approx(600 - 90 - (0.05 * 600 + 20))
    budget.keep(70)
    assert budget.left_s == pytest.approx(390)
