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
        from smallfirst.models.linear.label_sets import LabelSetModel
        from smallfirst.models.linear.scope import load_classifier

        manifest = source.manifest
        if manifest.kind == "blend":
            return load_blend(source)
        kind = LabelModel if manifest.task.closed else LabelSetModel
        scorer = load_classifier(source.path, manifest)
        return kind(scorer, manifest, name=source.name, price=source.prices.machine)


def load_blend(source: ModelSource) -> Model:
    """Return a blend with its members, each run by the engine that is chosen for it."""
    from smallfirst.models.engines.selection import load
    from smallfirst.models.linear.blend import MEMBERS_FOLDER, BlendModel

    names = source.manifest.member_weights
    members = {name: load(source._replace(location=source.path / MEMBERS_FOLDER / name)) for name in names}
    return BlendModel(members, source.manifest, name=source.name)


LINEAR = LinearEngine()
