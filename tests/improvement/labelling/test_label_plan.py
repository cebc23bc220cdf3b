"""A labelling plan: rows above a cut, labelled one after the other, until the promise is shown."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smallfirst.errors import ConfigError, DataError
from smallfirst.improvement.labelling.label_plan import LabelPlanOptions, LabelPlanReport, label_plan
from smallfirst.pipeline.calibrate import calibrate_stage
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
        assert error is None, error
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


@pytest.fixture
def out(desk: Path, tmp_path: Path) -> Path:
    """A file to fill in, of 60 rows and their spares."""
    planned(desk, unlabelled=desk / "traffic.jsonl", out=tmp_path / "to_label.jsonl", labels=60)
    return tmp_path / "to_label.jsonl"


def test_a_plan_says_which_rows_how_many_at_what_price_and_what_they_bring(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "to_label.jsonl"
    found = planned(desk, unlabelled=desk / "traffic.jsonl", out=out)
    plan, lines = found.plan, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert plan == load_plan(out)
    assert [line["text"] for line in lines] == [row.text for row in plan.rows]
    assert {(line["label"], line["stratum"]) for line in lines} == {("", "above")}
    assert min(row.confidence for row in plan.rows) >= plan.cuts[-1].threshold
    assert {line["propensity"] for line in lines} == {round(len(lines) / plan.cuts[-1].n_above, 6)}
    assert found.forecasts[0].likely_share <= found.forecasts[0].expected_share <= 1
    n = found.forecasts[0].n_labels
    assert f"label the first {n} rows of {out} (${0.05 * n:.2f}, a person)" in found.in_words[0]
    shares = [one.expected_share for one in found.forecasts[1:]]
    assert shares == sorted(shares)


def test_the_same_traffic_gives_the_same_rows_also_as_a_table(desk: Path, tmp_path: Path) -> None:
    few, again = (
        planned(desk, unlabelled=desk / "traffic.jsonl", out=tmp_path / name, labels=60)
        for name in ("a.jsonl", "b.csv")
    )
    assert few.plan.rows == again.plan.rows
    with (tmp_path / "b.csv").open(encoding="utf-8", newline="") as file:
        assert [line["text"] for line in csv.DictReader(file)] == [row.text for row in few.plan.rows]


def test_labels_are_judged_up_to_the_first_row_without_one(desk: Path, out: Path) -> None:
    fill(out, 20)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    lines[4]["label"] = " "
    write(out, lines)
    found = planned(desk, out=out)
    assert (found.n_labelled, found.n_waiting) == (4, 15)
    assert found.in_words[-1] == "15 labels follow a row without one; they count once it has one"


def test_labelling_stops_once_the_promise_is_shown(desk: Path, out: Path) -> None:
    shares, said = [], []
    for n in (5, 30, len(load_plan(out).rows)):
        fill(out, n)
        found = planned(desk, out=out)
        shares.append(found.shown_share)
        said.append(found.in_words[0])
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.3 < shares[-1] < 0.9
    assert "rows labelled, all right so far;" in said[0]
    assert "more, all right, show" in said[0]


def test_a_row_without_a_right_answer_counts_as_wrong(desk: Path, out: Path) -> None:
    fill(out, 10)
    before = planned(desk, out=out)
    fill(out, 10, row_3="-")
    assert planned(desk, out=out).n_wrong == before.n_wrong + 1


def test_a_label_that_is_none_is_refused_by_its_line(desk: Path, out: Path) -> None:
    fill(out, 3, row_2="crad")
    with pytest.raises(DataError, match=r"1 rows cannot be used(.|\n)*to_label\.jsonl:2  label \"crad\""):
        planned(desk, out=out)


def test_rows_below_the_cut_give_the_accuracy_over_all_requests(desk: Path, tmp_path: Path) -> None:
    out = tmp_path / "to_label.jsonl"
    plan = planned(desk, unlabelled=desk / "traffic.jsonl", out=out, labels=60, below=40).plan
    assert [row.stratum for row in plan.rows].count("below") == 40
    fill(out, len(plan.rows))
    found = planned(desk, out=out)
    all_rows = planned(desk, unlabelled=desk / "traffic.jsonl", out=tmp_path / "all.jsonl", labels=60, below=10_000)
    fill(all_rows.out, len(all_rows.plan.rows))
    whole = planned(desk, out=all_rows.out).accuracy
    assert found.accuracy is not None
    assert whole is not None
    assert found.accuracy.n == len(plan.rows)
    assert found.accuracy.low < whole.value < found.accuracy.high


def test_what_cannot_be_planned_is_refused_with_the_next_command(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no plan yet"):
        planned(desk, out=tmp_path / "to_label.jsonl")
    few = write(tmp_path / "few.jsonl", [{"text": "card w1 w2"}])
    with pytest.raises(DataError, match="1 of 1 rows may be labelled"):
        planned(desk, unlabelled=few, out=tmp_path / "to_label.jsonl")


def test_shown_rows_certify_the_model_that_they_were_chosen_for(desk: Path, out: Path) -> None:
    fill(out, len(load_plan(out).rows))
    report = planned(desk, out=out)
    file = read_task_file(desk)
    with_plan = file.model_copy(update={"data": file.data.model_copy(update={"label_plan": out})})
    project = Project.read(with_plan, QUIET)
    assert {e.text for e in project.rows.planned.examples} == {row.text for row in report.plan.rows}
    run_folder = RunFolder.latest("desk")
    found = calibrate_stage(project, run_folder)
    assert found.issued
    assert found.coverage.value == report.shown_share
    assert found.threshold == report.plan.cuts[-1].threshold
    assert found.error_bound <= 0.1
    assert (found.n_labels, found.look) == (report.n_labelled, None)
    assert "tested by betting, which is valid at every row" in " ".join(found.limits_of_validity)
    plan = report.plan.model_copy(update={"model_fingerprint": "another"})
    plan.save(out.with_name("to_label.plan.json"))
    assert calibrate_stage(project, run_folder).look is not None
