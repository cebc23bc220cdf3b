"""The engine of linear models: a classifier over word counts or over the vectors of a sentence encoder."""

from __future__ import annotations

from smallfirst.models.engines.engine import Assessment, Environment, ModelSource, weights_bytes
from smallfirst.models.label_model import LabelModel
from smallfirst.models.protocol import Model


class LinearEngine:
    """Scores labels in this process with scikit-learn's weights."""

    def is_installed(self) -> bool:
        """Return True: scikit-learn is a base requirement."""
        return True

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        """Return that it can if the manifest names a linear kind."""
        if source.manifest is None or source.manifest.kind not in ("words", "encoder"):
            return Assessment(False)
        return Assessment(
            True,
            "a linear model has nothing that another engine could speed up",
            "scored in this process",
            weights=source.path,
            weights_bytes=weights_bytes(source.path),
            threads=1,
        )

    def load(self, source: ModelSource) -> Model:
        """Return the model of the folder."""
        from smallfirst.models.linear.classifier import LinearClassifier

        manifest = source.manifest
        assert manifest is not None
        scorer = LinearClassifier.load(source.path, manifest)
        return LabelModel(scorer, manifest, name=source.name, price=source.prices.machine)


LINEAR = LinearEngine()
