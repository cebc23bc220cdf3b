"""A labelling plan: rows above a cut, labelled one after the other, until the promise is shown."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smallfirst.improvement.labelling.label_plan import LabelPlanOptions, LabelPlanReport, label_plan
from smallfirst.pipeline.run import try_run
from smallfirst.progress import Progress
from smallfirst.project.planned_rows import load_plan
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import read_task_file

THINGS = ("card", "fee", "pin", "loan")
QUIET = Progress(quiet=True)


def rows(n: int, seed: int) -> list[dict[str, str]]:
    """Every fourth row names two things, and either may be meant."""
    draw = random.Random(seed)
    found = []
    for i in range(n):
        things = draw.sample(THINGS, 2 if i % 4 == 0 else 1)
        words = [*things, *(f"w{draw.randrange(4000)}" for _ in range(6))]
        draw.shuffle(words)
        found.append({"text": " ".join(words), "label": draw.choice(things)})
    return found


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A task whose linear model went live, and 1,500 unlabelled requests."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(folder / ".smallfirst"))
        for name, n, seed in (("train", 400, 1), ("validation", 120, 2), ("test", 150, 3)):
            write(folder / f"{name}.jsonl", rows(n, seed))
        write(folder / "traffic.jsonl", [{"text": row["text"]} for row in rows(1500, 4)])
        task = {
            "name": "desk",
            "data": {name: f"{name}.jsonl" for name in ("train", "validation", "test")},
            "ladder": ["words"],
            "routing": {"domain": "off", "guarantee": {"max_error": 0.1}},
            "gate": {"accuracy_at_least": 0.5},
            "prices": {"usd_per_label": 0.05},
        }
        (folder / "task.yaml").write_text(json.dumps(task), encoding="utf-8")
        _, error = try_run(read_task_file(folder), progress=QUIET)
        assert error is None
        yield folder


def planned(desk: Path, **options: Any) -> LabelPlanReport:
    project = Project.read(read_task_file(desk), QUIET)
    return label_plan(project, RunFolder.latest("desk"), LabelPlanOptions(**options))


def fill(out: Path, n: int, **changes: str) -> None:
    """Label the first `n` rows as people would; by number of the row in `changes`, otherwise."""
    truth = {row["text"]: row["label"] for row in rows(1500, 4)}
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    for line in lines[:n]:
        line["label"] = changes.get(f"row_{line['order']}", truth[line["text"]])
    write(out, lines)


def test_a_plan_says_which_rows_how_many_at_what_price_and_what_they_bring(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "to_label.jsonl"
    found = planned(desk, unlabelled=desk / "traffic.jsonl", out=out)
    plan, lines = found.plan, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert plan == load_plan(out)
    assert [line["text"] for line in lines] == [row.text for row in plan.rows]
    assert {(line["label"], line["stratum"]) for line in lines} == {("", "above")}
    assert min(row.confidence for row in plan.rows) >= plan.cuts[-1].threshold
    assert {line["propensity"] for line in lines} == {round(len(lines) / plan.cuts[-1].n_above, 6)}
    # A quarter of the requests is a matter of luck; nearly all others may stay small.
    assert 0.4 < found.forecasts[0].expected_share < 0.9
    n = found.forecasts[0].n_labels
    assert f"label the first {n} rows of {out}: ${0.05 * n:.2f} (a person)" in found.in_words[0]
    assert found.forecasts[0].likely_share <= found.forecasts[0].expected_share
