"""What is foretold before a run; plans share the level: z² is 4.709 (97 %) beside other candidates, else 4.218."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from fixtures.preflight import project_of

from smallfirst.base.paths import home
from smallfirst.base.progress import Progress
from smallfirst.base.records import fingerprint
from smallfirst.data.dataset import fold_text
from smallfirst.path.foretold import (
    CertificateForecast,
    ThresholdForecast,
    forecast_certificate,
    forecast_findings,
    forecast_gate,
    forecast_rows,
)
from smallfirst.path.plans.joined_rows import LOOKS
from smallfirst.path.project.project import Project
from smallfirst.path.project.task_file import read_task_file
from smallfirst.routing.certificate.looks import count_look

LARGE = 'large: {endpoint: {base_url: "http://localhost:1/v1", model: m}}\n'


def gate(folder: Path, gate: str, *, test: int = 60, more: str = "") -> ThresholdForecast:
    [found] = forecast_gate(project_of(folder, test=test, more=f"gate: {{{gate}}}\n{more}"))
    return found


def certificate(folder: Path, n: int, more: str = "") -> CertificateForecast:
    found = forecast_certificate(project_of(folder, calibration=n, more=more))
    assert found is not None
    return found


def rows(folder: Path, n: int, n_plain: int, settings: str = "gate: {accuracy_at_least: 0.8}\n") -> Project:
    """A file of n rows, of which `n_plain` in ten say their label."""
    draw, lines = random.Random(0), []
    for i in range(n):
        label = draw.choice(("card", "fee", "pin"))
        words = " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(6))
        lines.append(json.dumps({"text": f"{words} {label if i % 10 < n_plain else ''}", "label": label}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "task.yaml").write_text(f"name: desk\nladder: [words]\ndata: {{train: rows.jsonl}}\n{settings}")
    return Project.read(read_task_file(folder), Progress(quiet=True))


def test_an_accuracy_is_shown_up_to_so_many_wrong_rows(tmp_path: Path) -> None:
    found = gate(tmp_path, "accuracy_at_least: 0.8", test=70)
    # Wilson's lower end of 64 of 70 is 0.809, of 63 of 70 0.791.
    assert (found.reachable, found.n_wrong, found.least_measured) == (True, 6, 64 / 70)
    assert found.in_words == ("70 test rows show accuracy at least 0.800 only from a measured 0.914 (6 wrong at most)")
    assert list(forecast_findings([found], None, None)) == []


def test_an_accuracy_that_too_few_rows_cannot_show_is_a_finding_with_the_one_number(tmp_path: Path) -> None:
    project = project_of(tmp_path, test=18, more="gate: {accuracy_at_least: 0.8}\n")  # 18 / (18 + 4.709) = 0.793
    [found] = forecast_gate(project)
    assert not found.reachable
    needed = forecast_rows(project, forecast_certificate(project))
    assert needed is not None
    assert needed.fewest is not None
    assert needed.fewest.files["test.jsonl"] >= 1
    [finding, *_] = forecast_findings([found], None, needed)
    assert finding.level == "fix"
    assert finding.what.startswith("gate: accuracy at least 0.800 is out of reach: 1.000 [0.793, 1.000] n=18")
    assert finding.rule == f"add {needed.fewest.in_words}; or change gate.accuracy_at_least"
    assert gate(tmp_path, "accuracy_at_least: 0.8", test=19).n_wrong == 0  # 19 / 23.709 = 0.801


@pytest.mark.parametrize(
    ("threshold", "reachable"),
    [
        ("macro_f1_at_least: 0.9", True),  # 60 / 64.709 = 0.927
        ("macro_f1_at_least: 0.93", False),
        ("each_part_at_least: 0.7", True),  # 3 labels of 20 rows: z² = 6.635, 20 / 26.635 = 0.751
        ("each_part_at_least: 0.76", False),
        ("parts_at_least: {pin: 0.75}", True),  # one label: 20 / 24.709 = 0.809
        ("p95_ms_at_most: 5", False),  # 60 requests show no upper end: it takes 82
    ],
)
def test_every_threshold_is_judged_by_the_gate_s_own_check(tmp_path: Path, threshold: str, reachable: bool) -> None:
    assert gate(tmp_path, threshold).reachable is reachable


def test_a_metric_or_label_that_the_task_lacks_is_found_before_training(tmp_path: Path) -> None:
    [finding] = forecast_findings([gate(tmp_path, "measures_at_least: {wighted_f1: 0.5}")], None, None)
    assert 'has no metric "wighted_f1"' in finding.what
    assert finding.rule == (
        'metrics of task "desk": macro_f1, weighted_f1; or change gate.measures_at_least.wighted_f1'
    )
    [finding] = forecast_findings([gate(tmp_path, "parts_at_least: {pen: 0.5}")], None, None)
    assert 'has no part "pen"' in finding.what


def test_a_comparison_with_the_large_model_takes_one_and_rows_that_it_is_asked(tmp_path: Path) -> None:
    found = gate(tmp_path, "not_worse_than_large_by: 0.1")
    assert found.in_words.endswith("is out of reach: the large model was not measured")
    assert gate(tmp_path, "not_worse_than_large_by: 0.1", more=LARGE).reachable  # 4.709 / 64.709 = 0.073
    sampled = LARGE.replace("m}}", "m}, sample_test: 30}")  # 4.709 / 34.709 = 0.136
    assert not gate(tmp_path, "not_worse_than_large_by: 0.1", more=sampled).reachable


def test_an_accuracy_of_one_says_that_nothing_goes_live_alone_and_is_no_finding(tmp_path: Path) -> None:
    assert forecast_gate(project_of(tmp_path, test=60, more="gate: {accuracy_at_least: 1.0}\n")) == ()


def test_the_certificate_is_foretold_at_the_level_of_the_next_look(tmp_path: Path) -> None:
    found = certificate(tmp_path, 62)  # 0.95^62 = 0.0416, 0.95^63 = 0.0395
    assert (found.reachable, found.n_without_error, found.level) == (False, 63, pytest.approx(0.04))
    [finding] = forecast_findings([], found, None)
    assert finding.level == "fix"
    assert finding.what == (
        "certificate: 62 calibration rows cannot show at most 5 % of kept answers wrong (95 %), even without an error"
    )
    assert finding.rule == "add rows; or change routing.guarantee"
    assert certificate(tmp_path, 63).reachable


def test_a_later_look_at_the_same_rows_takes_more_of_them(tmp_path: Path) -> None:
    project = project_of(tmp_path, calibration=80)
    texts = {fingerprint(fold_text(example.text)) for example in project.rows.calibration.examples}
    (home() / "tasks" / "desk").mkdir(parents=True)
    count_look(home() / "tasks" / "desk" / LOOKS, texts, "another guarantee")
    found = forecast_certificate(project)
    assert found is not None
    assert found.level < 0.01
    assert not found.reachable


def test_the_errors_assumed_are_said_and_the_chances_lie_between_them(tmp_path: Path) -> None:
    project = rows(tmp_path, 300, n_plain=8)
    found = forecast_rows(project, forecast_certificate(project))
    assert found is not None
    assert found.right is not None
    assert found.right.value == pytest.approx(0.8 + 0.2 / 3, abs=0.08)
    assert found.assumption.startswith("from the errors of a linear model on words (right on 0.")
    assert found.chance_gate is not None
    assert found.chance_certificate is not None
    for low, high in (found.chance_gate, found.chance_certificate):
        assert 0 <= low <= high <= 1
    assert found.chance_gate[1] > 0.8  # half of 13 % errors on 60 rows, of which 0.8 is asked
    assert found.fewest is not None
    assert found.most is None or found.most.n_data_rows >= found.fewest.n_data_rows
    assert "rows: about " in "\n".join(found.in_words)


def test_enough_rows_ask_for_none(tmp_path: Path) -> None:
    project = rows(tmp_path, 1500, n_plain=10)
    found = forecast_rows(project, forecast_certificate(project))
    assert found is not None
    assert (found.most, found.fewest) == (None, None)
    assert found.chance_certificate is not None
    assert min(found.chance_certificate) > 0.75


def test_people_s_answers_to_some_of_the_rows_certify_alone(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    data = project.file.data.model_copy(update={"gold": Path("gold.jsonl")})
    assert forecast_certificate(project._replace(file=project.file.model_copy(update={"data": data}))) is None
