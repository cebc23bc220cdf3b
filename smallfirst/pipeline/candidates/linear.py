"""Linear models for closed answers: on the words of a text, or on a frozen sentence encoder. Fitted in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from smallfirst.data.dataset import Dataset, Example
from smallfirst.evaluation.results import EvaluatedRow
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.static_vectors import STATIC_VECTORS, StaticVectors
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.protocol import Completion
from smallfirst.pipeline.train import choose_precision
from smallfirst.project.candidates import Candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.stats.intervals import Estimate, wilson
from smallfirst.tasks.task import Task

if TYPE_CHECKING:
    from smallfirst.models.label_model import Scorer
    from smallfirst.models.linear.classifier import LinearClassifier

FOLDS = 5
"""Parts of the training rows, each answered by a model that was fitted on the others."""


class LinearCandidate(Candidate):
    """Multinomial logistic regression on features of the kind that `kind` says."""

    kind: Literal["words", "static", "encoder"]
    headline = "A linear model is enough here."
    closed_answers_only = True
    several_labels = True
    fitted_in_folds = True

    def fit(self, project: Project, run_folder: RunFolder) -> None:
        """Fit on the training rows; calibrate the confidence on the selection rows."""
        from smallfirst.models.linear.classifier import LinearClassifier

        encoder = self._encoder(project)
        classifier = LinearClassifier.fit(self.kind, project.rows.train, project.task, encoder=encoder)
        base, folder = self.encoder_name(project.file.small), run_folder.model_folder(self.name)
        manifest = classifier.save(folder, Manifest(kind=self.kind, task=project.task, base=base))
        if choose_precision(project, folder):
            classifier = LinearClassifier.load(folder, manifest)
        score = calibrate(project, classifier, manifest, folder)
        project.progress.log(f"fitted {self.title}: {score:.3f} on selection rows")

    def accuracies(self, project: Project, parts: Sequence[Dataset], folder: Path) -> Iterator[Estimate]:
        """Yield the accuracy on all test rows after fitting each part; embed every text once."""
        if not project.task.closed:
            yield from super().accuracies(project, parts, folder)
            return
        encoder, test = self._encoder(project), project.rows.test.examples
        for part in parts:
            answers = self.answers(part, test, project.task, encoder)
            yield wilson(sum(row.correct for row in answers), len(test))

    def out_of_fold(self, project: Project) -> tuple[EvaluatedRow, ...] | None:
        """Return answers to the training rows, each by a model fitted on four fifths of the others.

        None where a text may have several labels.
        """
        task, train, encoder = project.task, project.rows.train, self._encoder(project)
        answers: dict[int, EvaluatedRow] = {}
        for fold in range(FOLDS):
            rest = tuple(example for i, example in enumerate(train.examples) if i % FOLDS != fold)
            if not task.closed or len({example.answer for example in rest}) < 2:
                return None
            found = self.answers(train.subset("fold", rest), train.examples[fold::FOLDS], task, encoder)
            answers.update(zip(range(fold, len(train), FOLDS), found, strict=True))
        return tuple(answers[i] for i in range(len(train)))

    def answers(self, train: Dataset, rows: Sequence[Example], task: Task, encoder: Any = None) -> list[EvaluatedRow]:
        """Return the answers to `rows`, labels, of a model fitted on `train`; models of words need no encoder."""
        from smallfirst.evaluation.evaluate import score_row
        from smallfirst.models.linear.classifier import LinearClassifier

        classifier = LinearClassifier.fit(self.kind, train, task, encoder=encoder)
        found = []
        for example, scored in zip(rows, classifier.score([e.text for e in rows]), strict=True):
            best = int(np.argmax(scored.log_probabilities))
            completion = Completion(
                text=task.closed[best],
                latency_ms=0.0,
                cost_usd=0.0,
                confidence=float(np.exp(scored.log_probabilities[best])),
                answered_by=self.name,
            )
            found.append(score_row(example, completion, task, self.name))
        return found

    def _encoder(self, project: Project) -> Any:
        """Return what embeds every text once; None for models of words."""
        name = self.encoder_name(project.file.small)
        if not name:
            return None
        from smallfirst.models.encoder.sentence_encoder import open_encoder

        folder = find_weights(name, log=project.progress.log)
        return _CachedEncoder(StaticVectors(folder) if self.kind == "static" else open_encoder(folder))


def calibrate(project: Project, classifier: LinearClassifier, manifest: Manifest, folder: Path) -> float:
    """Fit what turns the scores of the model in `folder` into answers and confidences; return its score.

    On selection rows, and with `other`, where there are enough of its rows: the signals that recognize it.
    """
    from smallfirst.evaluation.calibration import calibrate_labels
    from smallfirst.models.linear.scope import ScopedClassifier

    selection, scorer = project.rows.selection, cast("Scorer", classifier)
    if manifest.kind == "encoder":
        scoped = ScopedClassifier.fit(classifier, project.rows.train, selection, manifest)
        if scoped is not None:
            scorer, manifest = scoped, scoped.save(folder, manifest)
    score, manifest = calibrate_labels(scorer.score([e.text for e in selection.examples]), selection, manifest)
    write_manifest(folder, manifest)
    return score


class _Words(LinearCandidate):
    name = "words"
    kind = "words"
    title = "words + linear"
    role = "a linear model on words"
    explanation = "weighs the words of each text; no language model, fitted in seconds"
    size = 10
    measured_by_default = True
    learning_curve = "always"

    def minutes_to_fit(self, project: Project) -> float:
        """Return the time of n-grams and regression: 18 s for 10,000 rows in 77 labels."""
        return len(project.rows.train) * 1.8e-3 / 60


class _Static(LinearCandidate):
    name = "static"
    kind = "static"
    title = "static vectors + linear"
    role = "a linear model on static word vectors"
    explanation = "a published table turns each piece of a word into numbers, a linear model sorts their mean"
    size = 15

    def encoder_name(self, small: Any) -> str:
        """Return the name of the table in the catalogue."""
        return STATIC_VECTORS

    def minutes_to_fit(self, project: Project) -> float:
        """Return the time of vectors and regression: 3 s for 10,000 rows in 77 labels. Raise WeightsNotFound."""
        find_weights(self.encoder_name(project.file.small), download=False)
        return len(project.rows.train) * 3e-4 / 60


class _Encoder(LinearCandidate):
    name = "encoder"
    kind = "encoder"
    encoder_setting = "encoder"
    title = "sentence embeddings + linear"
    role = "a linear model on sentence embeddings"
    explanation = "a published model turns texts into numbers, a linear one sorts them"
    size = 20
    measured_by_default = True
    learning_curve = "always"
    uses_sentence_encoder = True


class _LargerEncoder(LinearCandidate):
    name = "larger_encoder"
    kind = "encoder"
    encoder_setting = "larger_encoder"
    title = "larger sentence embeddings + linear"
    role = "a linear model on the embeddings of a larger sentence encoder"
    explanation = "as sentence embeddings + linear, with a published model of five times the size"
    size = 22


class _CachedEncoder:
    """A sentence encoder that embeds every text once."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._vectors: dict[str, np.ndarray] = {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors |= dict(zip(new, self._encoder.embed(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


WORDS, STATIC, ENCODER, LARGER_ENCODER = _Words(), _Static(), _Encoder(), _LargerEncoder()
