"""The engine of models behind an OpenAI-compatible address."""

from __future__ import annotations

from smallfirst.models.engines.engine import Assessment, Environment, ModelSource
from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.records import parse_record


class EndpointEngine:
    """Sends requests to an address. Its settings are those of EndpointConfig, without `base_url`."""

    def is_installed(self) -> bool:
        return True

    def assess(self, source: ModelSource, environment: Environment) -> Assessment:
        usable = source.kind == "address"
        return Assessment(usable, "it is an address" if usable else "", "asked at its address")

    def load(self, source: ModelSource) -> Model:
        """Return the endpoint, not connected yet. Raise ConfigError without its key, PriceUnknown."""
        from smallfirst.models.remote.model import EndpointModel

        settings = {**source.settings, "base_url": source.location}
        return EndpointModel(parse_record(EndpointConfig, settings, where="endpoint"), source.prices)


ENDPOINT = EndpointEngine()
