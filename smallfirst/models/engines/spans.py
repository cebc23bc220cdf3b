"""The engine of models that mark their answer in the text: an encoder with heads, in this process."""

from __future__ import annotations

import importlib

from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.protocol import Model
from smallfirst.models.spans.model import SpanModel, SpanScorer

_SCORERS = {
    "tagger": "smallfirst.models.spans.tagger:Tagger",
    "reader": "smallfirst.models.spans.reader:Reader",
}
"""The scorer of each kind of manifest, imported to be loaded."""


class SpansEngine:
    """Marks answers in this process."""

    def is_installed(self) -> bool:
        return True

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        if source.kind != "spans":
            return Assessment(False)
        reason = "no other engine marks answers in a text"
        return Assessment(True, reason, "marked in this process", weights=source.path, threads=1)

    def load(self, source: ModelSource) -> Model:
        return SpanModel(_scorer(source), source.manifest, name=source.name, price=source.prices.machine)


def _scorer(source: ModelSource) -> SpanScorer:
    module, _, name = _SCORERS[source.manifest.kind].partition(":")
    scorer: SpanScorer = getattr(importlib.import_module(module), name).load(source.path, source.manifest)
    return scorer


SPANS = SpansEngine()
