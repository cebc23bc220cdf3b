"""Linear models for closed answers: on the words of a text, or on a frozen sentence encoder. Fitted in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from smallfirst.data.dataset import Dataset
from smallfirst.measuring.out_of_fold import FoldAnswers, RawAnswer, folds_of, read_labels
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import CachedEncoder
from smallfirst.models.linear.classifier import Estimator, LinearClassifier, ScopedClassifier
from smallfirst.models.manifest import INT8_FILE, Int8Check, Manifest, write_manifest
from smallfirst.path.project.candidates import Candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder

if TYPE_CHECKING:
    from smallfirst.models.label_model import TextScorer


class LinearCandidate(Candidate):
    """A linear model on features of the kind that `kind` says: the best of its `estimators`, of equals the first.

    The choice is by accuracy on selection rows or, fitted in folds, out of fold. Of two that are alike it makes the
    accuracy out of fold too high, by 0.4 standard errors of their difference at most; test rows know nothing of it.
    """

    kind: Literal["words", "encoder"]
    estimators: tuple[Estimator, ...] = ("logistic_regression",)
    closed_answers_only = True
    several_labels = True
    n_folds = 5

    def fit(self, project: Project, run_folder: RunFolder) -> float:
        """Fit on the training rows; choose the estimator and calibrate the confidence on the selection rows."""
        encoder, rows, manifest = self._encoder(project), project.rows, self._manifest(project)
        fitted = {one: self._fitted(project, rows.train, encoder, one) for one in self._estimators(project)}
        texts = [example.text for example in rows.selection.examples]
        answers = {one: read_labels(model, rows.train, texts, manifest) for one, model in fitted.items()}
        manifest = self._choose(project, answers, rows.selection, manifest)
        classifier, folder = fitted[manifest.estimator], run_folder.model_folder(self.name)
        manifest = classifier.save(folder, manifest)
        if (precision := choose_precision(project, folder)) is not None and precision.kept:
            classifier = LinearClassifier.load(folder, manifest)
        score = calibrate(project, classifier, manifest, folder)
        project.progress.log(f"fitted {self.title}: {score:.3f} on selection rows")
        return score

    def out_of_fold(self, project: Project, run_folder: RunFolder) -> FoldAnswers:
        """Return answers by models fitted on four fifths of the rows; the first one's precision is chosen on them."""
        rows, encoder, manifest = project.rows.development, self._encoder(project), self._manifest(project)
        folds, precision = folds_of(rows, self.n_folds), None
        answers: dict[Estimator, dict[int, RawAnswer]] = {one: {} for one in self._estimators(project)}
        for fold in folds:
            texts = [example.text for example in fold.held.examples]
            for estimator, known in answers.items():
                classifier = self._fitted(project, fold.rest, encoder, estimator)
                known |= dict(zip(fold.at, read_labels(classifier, fold.rest, texts, manifest), strict=True))
            if fold is folds[0] and self.kind == "encoder":
                with TemporaryDirectory() as folder:
                    classifier.save(Path(folder), manifest)
                    precision = choose_precision(project, Path(folder), fold.held)
        given = {one: [known[i] for i in range(len(rows))] for one, known in answers.items()}
        manifest = self._choose(project, given, rows, manifest)
        return FoldAnswers.fit(given[manifest.estimator], rows, manifest, len(folds), int8=precision)

    def refit(self, project: Project, run_folder: RunFolder, folds: FoldAnswers) -> None:
        """Fit on training and selection rows."""
        rows, folder = project.rows.development, run_folder.model_folder(self.name)
        shutil.rmtree(folder, ignore_errors=True)
        classifier = self._fitted(project, rows, self._encoder(project), folds.manifest.estimator)
        manifest = classifier.save(folder, folds.manifest)
        finish_refit(classifier, rows, manifest, folds, folder)

    def _estimators(self, project: Project) -> tuple[Estimator, ...]:
        """Return what is tried; where a text may have several labels, each has a logistic regression of its own."""
        return self.estimators if project.task.closed else self.estimators[:1]

    def _manifest(self, project: Project) -> Manifest:
        return Manifest(kind=self.kind, task=project.task, base=self.encoder_name(project.file.small))

    def _fitted(self, project: Project, rows: Dataset, encoder: Any, estimator: Estimator) -> LinearClassifier:
        return LinearClassifier.fit(self.kind, rows, project.task, encoder=encoder, estimator=estimator)

    def _choose(
        self, project: Project, answers: Mapping[Estimator, Sequence[RawAnswer]], rows: Dataset, manifest: Manifest
    ) -> Manifest:
        """Return the manifest with the estimator whose answers to these rows are right most often."""
        labels = project.task.closed
        n_right = {
            one: sum(
                labels[int(np.argmax(answer.nats))] == e.answer for answer, e in zip(given, rows.examples, strict=True)
            )
            for one, given in answers.items()
            if labels
        }
        best = max(answers, key=lambda one: n_right.get(one, 0))
        if best != next(iter(answers)):
            counts = ", ".join(f"{one.replace('_', ' ')} {n}" for one, n in n_right.items())
            project.progress.log(f"{self.title}: right of {len(rows):,} rows: {counts}")
        return manifest.model_copy(update={"estimator": best})

    def _encoder(self, project: Project) -> Any:
        """Return what embeds every text once; None for models of words."""
        name = self.encoder_name(project.file.small)
        if not name:
            return None
        from smallfirst.models.encoder.sentence_encoder import open_encoder

        return CachedEncoder(open_encoder(find_weights(name, log=project.progress.log)))


def choose_precision(project: Project, folder: Path, rows: Dataset | None = None) -> Int8Check | None:
    """Decide whether the model in a folder is read in int8 from now on, by rows that it was not fitted on.

    Left out these are the selection rows. None where int8 is not possible.
    """
    from smallfirst.models.linear.classifier import check_int8

    found = check_int8(folder, project.rows.selection if rows is None else rows) if project.task.closed else None
    if found:
        project.progress.log(f"int8 {'used' if found.kept else 'not used'}: {found.why}")
    return found


def calibrate(project: Project, classifier: LinearClassifier, manifest: Manifest, folder: Path) -> float:
    """Fit what turns the scores of the model in `folder` into answers and confidences; return its score.

    On selection rows, and with `other`, where there are enough of its rows: the signals that recognize it.
    """
    from smallfirst.measuring.calibration import calibrate_labels

    selection, scorer = project.rows.selection, cast("TextScorer", classifier)
    if manifest.kind == "encoder":
        scoped = ScopedClassifier.fit(classifier, project.rows.train, selection, manifest)
        if scoped is not None:
            scorer, manifest = scoped, scoped.save(folder, manifest)
    score, manifest = calibrate_labels(scorer.score([e.text for e in selection.examples]), selection, manifest)
    write_manifest(folder, manifest)
    return score


def finish_refit(
    classifier: LinearClassifier, rows: Dataset, manifest: Manifest, folds: FoldAnswers, folder: Path
) -> None:
    """Complete the model in `folder`, fitted on `rows`, by what was fitted on the folds' answers."""
    if folds.int8 is not None:
        fingerprint = manifest.weights_fingerprint
        folds.int8.model_copy(update={"weights_fingerprint": fingerprint}).save(folder / INT8_FILE)
    scoped = ScopedClassifier.unweighted(classifier, rows, manifest) if folds.scope is not None else None
    if scoped is not None and folds.scope is not None:
        scoped.parameters = folds.scope
        manifest = scoped.save(folder, manifest)
    write_manifest(folder, manifest)


class _Words(LinearCandidate):
    name = "words"
    kind = "words"
    estimators = ("logistic_regression", "linear_svm")
    title = "words + linear"
    explanation = "weighs the words of each text; no language model, fitted in seconds"
    size = 10
    measured_by_default = True

    def minutes_to_fit(self, project: Project) -> float:
        """Return the time of n-grams and regression: 18 s for 10,000 rows in 77 labels."""
        return len(project.rows.train) * 1.8e-3 / 60


class _Encoder(LinearCandidate):
    name = "encoder"
    kind = "encoder"
    encoder_setting = "encoder"
    title = "sentence embeddings + linear"
    explanation = "a published model turns texts into numbers, a linear one sorts them"
    size = 20
    measured_by_default = True
    uses_sentence_encoder = True


class _Multilingual(LinearCandidate):
    name = "multilingual"
    kind = "encoder"
    encoder_setting = "multilingual_encoder"
    title = "multilingual sentence embeddings + linear"
    explanation = "as sentence embeddings + linear, with a model for which a text says the same in 16 languages"
    size = 25
    measured_by_default = True
    for_other_languages = True

    def minutes_to_fit(self, project: Project) -> float:
        """Return the time of 800 texts a second, which one core reads."""
        return len(project.rows.train) / 800 / 60


class _LargerEncoder(LinearCandidate):
    name = "larger_encoder"
    kind = "encoder"
    encoder_setting = "larger_encoder"
    title = "larger sentence embeddings + linear"
    explanation = "as sentence embeddings + linear, with a published model of five times the size"
    size = 31
    promise = 22
    measured_by_default = True


WORDS, ENCODER, MULTILINGUAL, LARGER_ENCODER = _Words(), _Encoder(), _Multilingual(), _LargerEncoder()
