"""What test rows can show of a gate; plans share the level: z² is 4.709 (97 %) beside other candidates, else 4.218."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.preflight import project_of

from smallfirst.pipeline.preflight.gate import ThresholdForecast, forecast_gate, gate_findings

LARGE = 'large: {endpoint: {base_url: "http://localhost:1/v1", model: m}}\n'


def forecast(folder: Path, gate: str, *, test: int = 60, more: str = "") -> ThresholdForecast:
    [found] = forecast_gate(project_of(folder, test=test, more=f"gate: {{{gate}}}\n{more}"))
    return found


def test_an_accuracy_is_shown_up_to_so_many_wrong_rows(tmp_path: Path) -> None:
    found = forecast(tmp_path, "accuracy_at_least: 0.8", test=70)
    # Wilson's lower end of 64 of 70 is 0.809, of 63 of 70 0.791.
    assert (found.reachable, found.n_wrong, found.least_measured) == (True, 6, 64 / 70)
    assert found.in_words == ("70 test rows show accuracy at least 0.800 only from a measured 0.914 (6 wrong at most)")
    assert list(gate_findings([found])) == []


def test_an_accuracy_that_too_few_rows_cannot_show_says_how_many_would(tmp_path: Path) -> None:
    found = forecast(tmp_path, "accuracy_at_least: 0.8", test=18)  # 18 / (18 + 4.709) = 0.793
    assert not found.reachable
    assert found.missing is not None
    assert (found.missing.n_rows, found.missing.file) == (1, "test.jsonl")
    [finding] = gate_findings([found])
    assert finding.level == "fix"
    assert finding.what.startswith("gate: accuracy at least 0.800 is out of reach: 1.000 [0.793, 1.000] n=18")
    assert finding.what.endswith(" of a model without an error on 18 test rows")
    assert finding.rule == "add 1 more rows in test.jsonl; or change gate.accuracy_at_least"
    assert forecast(tmp_path, "accuracy_at_least: 0.8", test=19).n_wrong == 0  # 19 / 23.709 = 0.801


@pytest.mark.parametrize(
    ("gate", "reachable"),
    [
        ("macro_f1_at_least: 0.9", True),  # 60 / 64.709 = 0.927
        ("macro_f1_at_least: 0.93", False),
        ("measures_at_least: {weighted_f1: 0.93}", False),
        ("each_part_at_least: 0.7", True),  # 3 labels of 20 rows: z² = 6.635, 20 / 26.635 = 0.751
        ("each_part_at_least: 0.76", False),
        ("parts_at_least: {pin: 0.75}", True),  # one label: 20 / 24.709 = 0.809
        ("p50_ms_at_most: 5", True),
        ("p95_ms_at_most: 5", False),  # 60 requests show no upper end: it takes 82
    ],
)
def test_every_threshold_is_judged_by_the_gate_s_own_check(tmp_path: Path, gate: str, reachable: bool) -> None:
    assert forecast(tmp_path, gate).reachable is reachable


def test_a_metric_or_label_that_the_task_lacks_is_found_before_training(tmp_path: Path) -> None:
    [finding] = gate_findings([forecast(tmp_path, "measures_at_least: {wighted_f1: 0.5}")])
    assert 'has no metric "wighted_f1"' in finding.what
    assert finding.rule == (
        'metrics of task "desk": macro_f1, weighted_f1; or change gate.measures_at_least.wighted_f1'
    )
    [finding] = gate_findings([forecast(tmp_path, "parts_at_least: {pen: 0.5}")])
    assert 'has no part "pen"' in finding.what


def test_a_comparison_with_the_large_model_takes_one_and_rows_that_it_is_asked(tmp_path: Path) -> None:
    found = forecast(tmp_path, "not_worse_than_large_by: 0.1")
    assert found.in_words.endswith("is out of reach: the large model was not measured")
    assert forecast(tmp_path, "not_worse_than_large_by: 0.1", more=LARGE).reachable  # 4.709 / 64.709 = 0.073
    sampled = LARGE.replace("m}}", "m}, sample_test: 30}")  # 4.709 / 34.709 = 0.136
    assert not forecast(tmp_path, "not_worse_than_large_by: 0.1", more=sampled).reachable


def test_without_test_rows_nothing_is_forecast(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    rows = project.rows.model_copy(update={"test": project.rows.test.subset("none", ())})
    assert forecast_gate(project._replace(rows=rows)) == ()


def test_an_accuracy_of_one_says_that_nothing_goes_live_alone_and_is_no_finding(tmp_path: Path) -> None:
    assert forecast_gate(project_of(tmp_path, test=60, more="gate: {accuracy_at_least: 1.0}\n")) == ()
