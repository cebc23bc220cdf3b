"""What calibration rows can certify: 0.95^n at most the level of the next look, 0.025 for the first."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.preflight import project_of

from smallfirst.data.dataset import fold_text
from smallfirst.paths import home
from smallfirst.pipeline.joined_rows import LOOKS
from smallfirst.pipeline.preflight.certificate import (
    CertificateForecast,
    certificate_findings,
    forecast_certificate,
)
from smallfirst.records import fingerprint
from smallfirst.routing.certificate.looks import count_look


def forecast(folder: Path, n: int, more: str = "") -> CertificateForecast:
    found = forecast_certificate(project_of(folder, calibration=n, more=more))
    assert found is not None
    return found


def test_the_first_look_has_four_fifths_of_the_level(tmp_path: Path) -> None:
    found = forecast(tmp_path, 62)  # 0.95^62 = 0.0416, 0.95^63 = 0.0395
    assert (found.reachable, found.look) == (False, 1)
    assert found.missing is not None
    assert found.missing.n_rows == 1
    [finding] = certificate_findings(found)
    assert finding.level == "fix"
    assert finding.what == (
        "certificate: 62 calibration rows cannot show at most 5 % of kept answers wrong (95 %), even without an error"
    )
    assert finding.rule.startswith("add 1 more calibration rows, which is about 2 more rows in validation.jsonl")
    found = forecast(tmp_path, 63)
    assert (found.reachable, found.n_most_confident, found.n_wrong) == (True, 63, 0)
    assert found.in_words.endswith("if, say, the 63 most confident answers are all right")
    assert list(certificate_findings(found)) == []


def test_a_later_look_at_the_same_rows_takes_more_of_them(tmp_path: Path) -> None:
    project = project_of(tmp_path, calibration=80)
    rows = {fingerprint(fold_text(example.text)) for example in project.rows.calibration.examples}
    (home() / "tasks" / "desk").mkdir(parents=True)
    count_look(home() / "tasks" / "desk" / LOOKS, rows, "another guarantee")
    found = forecast_certificate(project)
    assert found is not None
    assert (found.look, found.reachable) == (2, False)
    assert found.missing is not None
    assert found.missing.n_rows == 104 - 80  # 0.95^104 = 0.0048, below 0.2 * 0.05 / 2


def test_half_of_many_rows_decide(tmp_path: Path) -> None:
    found = forecast(tmp_path, 400)
    # Binomial(200, 0.05): at most 4 with probability 0.026, at most 5 with 0.062.
    assert (found.n_most_confident, found.n_wrong) == (200, 4)
    assert found.in_words.endswith("if, say, at most 4 of the 200 most confident answers are wrong")


@pytest.mark.parametrize(
    ("guarantee", "reachable", "missing"),
    [
        ("max_error: 0.05, per_class: true", False, True),  # 24 rows a label
        ("max_error: 0.2, per_class: true", True, False),
        ("max_error: null, max_accuracy_loss: 0.05", False, False),  # there is no large model
    ],
)
def test_every_limit_is_searched_as_in_calibration(
    tmp_path: Path, guarantee: str, reachable: bool, missing: bool
) -> None:
    found = forecast(tmp_path, 72, f"routing: {{guarantee: {{{guarantee}}}}}\n")
    assert (found.reachable, found.missing is not None, found.n_wrong) == (reachable, missing, None)


def test_people_s_answers_to_some_of_the_rows_certify_alone(tmp_path: Path) -> None:
    project = project_of(tmp_path)
    data = project.file.data.model_copy(update={"gold": Path("gold.jsonl")})
    assert forecast_certificate(project._replace(file=project.file.model_copy(update={"data": data}))) is None
