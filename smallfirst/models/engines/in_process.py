"""The engines of models that no other program runs: linear classifiers, and encoders that mark answers in a text."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

from smallfirst.models.engines.engine import Assessment, Environment, Kind, ModelSource
from smallfirst.models.label_model import LabelModel
from smallfirst.models.protocol import Model

_SPAN_SCORERS = {
    "tagger": "smallfirst.models.spans.tagger:Tagger",
    "reader": "smallfirst.models.spans.reader:Reader",
}
"""The scorer of each kind of manifest, imported to be loaded."""


class InProcessEngine(NamedTuple):
    """Runs the models of one kind, in this process."""

    kind: Kind
    reason: str
    method: str
    load: Callable[[ModelSource], Model]

    def is_installed(self) -> bool:
        return True

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        if source.kind != self.kind:
            return Assessment(False)
        return Assessment(True, self.reason, self.method, weights=source.path, threads=1)


def _load_linear(source: ModelSource) -> Model:
    """Return a linear model, or a blend with its members, each run by the engine that is chosen for it."""
    from smallfirst.models.engines.selection import load
    from smallfirst.models.linear.blend import MEMBERS_FOLDER, BlendModel
    from smallfirst.models.linear.classifier import LabelSetModel
    from smallfirst.models.linear.scope import load_classifier

    manifest, folder = source.manifest, source.path / MEMBERS_FOLDER
    if manifest.kind == "blend":
        members = {name: load(source._replace(location=folder / name)) for name in manifest.member_weights}
        return BlendModel(members, manifest, name=source.name)
    kind = LabelModel if manifest.task.closed else LabelSetModel
    return kind(load_classifier(source.path, manifest), manifest, name=source.name, price=source.prices.machine)


def _load_spans(source: ModelSource) -> Model:
    from smallfirst.models.spans.model import SpanModel

    module, _, name = _SPAN_SCORERS[source.manifest.kind].partition(":")
    scorer = getattr(importlib.import_module(module), name).load(source.path, source.manifest)
    return SpanModel(scorer, source.manifest, name=source.name, price=source.prices.machine)


LINEAR = InProcessEngine(
    "linear", "a linear model has nothing that another engine could speed up", "scored in this process", _load_linear
)
SPANS = InProcessEngine("spans", "no other engine marks answers in a text", "marked in this process", _load_spans)
