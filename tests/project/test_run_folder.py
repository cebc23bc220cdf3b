"""Run folders: which run is resumed, and which candidate of it is exported."""

from __future__ import annotations

import pytest

from smallfirst.errors import StageMissing
from smallfirst.project.run_folder import FITTED, FittedCandidates, Promotion, RunFolder


def run_of(*fitted: str, ladder: tuple[str, ...] = ("words", "small"), run_id: str | None = None) -> RunFolder:
    run_folder = RunFolder.new("desk")
    FittedCandidates(ladder=ladder, fitted=fitted, mlflow_run_id=run_id).save(run_folder.path / FITTED)
    return run_folder


def test_a_run_is_unfinished_until_every_candidate_is_fitted_and_open_until_its_report_is_written() -> None:
    run_folder = run_of("words")
    assert RunFolder.unfinished("desk") is not None
    with pytest.raises(StageMissing, match="desk has no finished run"):
        RunFolder.latest("desk")
    FittedCandidates(ladder=("words",), fitted=("words",), mlflow_run_id="7").save(run_folder.path / FITTED)
    assert RunFolder.unfinished("desk") is None
    assert RunFolder.latest("desk").path == run_folder.path
    assert run_folder.mlflow_run_id() == "7"
    assert RunFolder.without_report("desk") is not None
    (run_folder.path / "report.html").write_text("")
    assert RunFolder.without_report("desk") is None


def test_the_candidate_that_went_live_is_exported_else_the_largest_that_is_fitted() -> None:
    run_folder = run_of("words", "small", run_id="7")
    for name in ("words", "small"):
        run_folder.model_folder(name).mkdir()
    assert run_folder.live_candidate() == "small"
    promotion = Promotion(name="main.default.desk", version=1, candidate="words", at="2026-11-27T00:00:00+00:00")
    promotion.save(run_folder.path / "promoted.json")
    assert run_folder.live_candidate() == "words"
