"""A linear candidate is fitted by each of its estimators; the one that is right more often on other rows is kept."""

from pathlib import Path

import numpy as np
import pytest
from fixtures.preflight import task_of, things

from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import read_manifest
from smallfirst.path.candidates.linear import WORDS
from smallfirst.path.project.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("module_home")


@pytest.mark.parametrize("better", ["logistic_regression", "linear_svm"])
@pytest.mark.parametrize("in_folds", [True, False])
def test_the_estimator_that_is_right_more_often_is_fitted_recorded_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: str, in_folds: bool
) -> None:
    fit = LinearClassifier.fit

    def worse(kind: str, data: object, task: object, *, estimator: str, **more: object) -> LinearClassifier:
        """Fit it, and turn the other estimator's answers round."""
        made = fit(kind, data, task, estimator=estimator, **more)  # type: ignore[arg-type]
        if estimator != better:
            made.weights = -made.weights
        return made

    monkeypatch.setattr(LinearClassifier, "fit", worse)
    project = task_of(tmp_path, {"train": things(90)}, ladder=["words"])
    run_folder, rows = RunFolder.new(project.file.name), project.rows.train
    if in_folds:
        WORDS.refit(project, run_folder, WORDS.out_of_fold(project, run_folder))
        rows = project.rows.development
    else:
        WORDS.fit(project, run_folder)
    folder = run_folder.model_folder("words")
    assert read_manifest(folder).estimator == better
    loaded = LinearClassifier.load(folder, read_manifest(folder))
    assert np.allclose(loaded.weights, fit("words", rows, project.task, estimator=better).weights)  # type: ignore[arg-type]
