"""Databricks' endpoint config: the served models, their shares of the traffic, and all that is wrong with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from smallfirst.base.errors import ConfigError, did_you_mean
from smallfirst.base.records import Record, parse_record

NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$"
"""Names of endpoints and entities, which are never a path."""
_CORE_FIELDS = ("served_entities", "traffic_config")
_WITHOUT_EFFECT = re.compile(
    "workload_(size|type)|scale_to_zero_enabled|environment_vars|instance_profile_arn|burst_scaling_enabled"
    "|(min|max)_provisioned_(throughput|concurrency)|provisioned_model_units"
    "|route_optimized|rate_limits|ai_gateway|budget_policy_id|email_notifications|telemetry_config|auto_capture_config"
)
"""Fields of an entity or an endpoint that are accepted and not kept."""
Name = Annotated[str, Field(pattern=NAME)]
Version = Annotated[str, BeforeValidator(str), Field(pattern=r"^([1-9][0-9]{0,8}|@[A-Za-z0-9_-]{1,64})$")]


class ServedEntity(Record):
    """A registered model."""

    name: Name | None = None
    """Its name at the endpoint; None: derived from the model."""
    entity_name: str
    """Three-level name of a registered model."""
    entity_version: Version = "@champion"
    """A number, or `@` and an alias, which is looked up when the config is loaded."""

    @property
    def served_name(self) -> str:
        return self.name or re.sub(r"[^A-Za-z0-9_-]", "-", f"{self.entity_name}-{self.entity_version.lstrip('@')}")

    @property
    def reference(self) -> str:
        """The version as `versions.resolve` takes it."""
        return f"{self.entity_name}{'' if self.entity_version[0] == '@' else '/'}{self.entity_version}"


class TrafficRoute(Record):
    """An entity's share of the traffic."""

    served_model_name: str = ""
    served_entity_name: str = ""
    traffic_percentage: int = Field(ge=0, le=100)


class TrafficConfig(Record):
    """Shares of the entities in the traffic."""

    routes: tuple[TrafficRoute, ...]


class EndpointCoreConfig(Record):
    """Served entities and their shares of the traffic."""

    served_entities: tuple[ServedEntity, ...] = Field(min_length=1)
    traffic_config: TrafficConfig | None = None
    """Optional with a single entity."""

    @property
    def percent(self) -> dict[str, int]:
        """Share of the requests by entity, in percent."""
        if self.traffic_config is None:
            return {self.served_entities[0].served_name: 100} if len(self.served_entities) == 1 else {}
        routes = self.traffic_config.routes
        return {one.served_entity_name or one.served_model_name: one.traffic_percentage for one in routes}

    @model_validator(mode="after")
    def _shares_fit_the_entities(self) -> Self:
        names = [entity.served_name for entity in self.served_entities]
        wrong = [f'two entities are called "{name}"' for name, n in Counter(names).items() if n > 1]
        unknown = [name for name in self.percent if name not in names]
        wrong += [f'no entity is called "{name}"{did_you_mean(name, names)}' for name in unknown]
        if (total := sum(self.percent.values())) != 100:
            wrong.append(f"the percentages of different entities sum to {total}, not to 100")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class EndpointBody(Record):
    """The request that creates an endpoint."""

    name: Name
    config: EndpointCoreConfig
    tags: Any = None
    """Kept and shown."""
    description: str | None = None
    """Kept and shown."""

    @property
    def references(self) -> dict[str, str]:
        """The registered version of each entity, or its alias, as `versions.resolve` takes it."""
        return {entity.served_name: entity.reference for entity in self.config.served_entities}


def parse_config(
    name: str | None, config: Mapping[str, Any] | None, *, before: EndpointBody | None = None
) -> EndpointBody:
    """Parse a config over `before`, that of an endpoint. Raise ConfigError with all problems, and no value of it."""
    raw = _normalized(name, config or {})
    if before is not None:
        old, new = before.model_dump(mode="json", exclude_unset=True), raw.get("config", {})
        if "served_entities" in new:  # new entities do not inherit the traffic of the old ones
            old["config"].pop("traffic_config", None)
        raw = {**old, **raw, "config": {**old["config"], **new}}
    shown = str(raw.get("name", ""))[:128]
    try:
        return parse_record(EndpointBody, raw, where=f'the config of endpoint "{shown}" cannot be used')
    except ConfigError as error:  # a wrong value may be a misplaced key
        raise ConfigError(re.sub(r" \(got .*\)$", "", str(error.args[0]), flags=re.MULTILINE)) from None


def _normalized(name: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in the form of an EndpointBody, without the fields that have no effect."""
    body = _with_effect(config)
    core = dict(body.pop("config") or {}) if isinstance(body.get("config"), Mapping) else {}
    core |= {field: body.pop(field) for field in _CORE_FIELDS if field in body}
    if name is not None and body.setdefault("name", name) != name:
        raise ConfigError(f'two names: "{name}" and "{body["name"]}" in the config', hint="give one of them")
    if isinstance(entities := core.get("served_entities"), list | tuple):
        core["served_entities"] = [_with_effect(one) if isinstance(one, Mapping) else one for one in entities]
    return {**body, "config": core} if core else body


def _with_effect(part: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in part.items() if not _WITHOUT_EFFECT.fullmatch(field)}
