"""The engine of linear models: a classifier over word counts or over the vectors of a sentence encoder."""

from __future__ import annotations

from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.label_model import LabelModel
from smallfirst.models.protocol import Model


class LinearEngine:
    """Scores labels in this process."""

    def is_installed(self) -> bool:
        return True

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        if source.kind != "linear":
            return Assessment(False)
        reason = "a linear model has nothing that another engine could speed up"
        return Assessment(True, reason, "scored in this process", weights=source.path, threads=1)

    def load(self, source: ModelSource) -> Model:
        from smallfirst.models.linear.classifier import LinearClassifier

        scorer = LinearClassifier.load(source.path, source.manifest)
        return LabelModel(scorer, source.manifest, name=source.name, price=source.prices.machine)


LINEAR = LinearEngine()
