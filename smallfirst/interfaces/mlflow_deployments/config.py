"""Databricks' endpoint config: the served models, their shares of the traffic, and all that is wrong with it.

Secrets are named, never held: `{{secrets/scope/key}}` is read from the server's environment variable SCOPE_KEY.
No message repeats a value that may be a secret.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from smallfirst import EndpointConfig
from smallfirst.base.errors import ConfigError, SmallfirstError, did_you_mean, without_secrets
from smallfirst.base.records import Record, parse_record
from smallfirst.deployment.endpoint_plan import EndpointPlan, Entity, check_name, external_model
from smallfirst.models.pricing import PriceBook

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
"""Names of endpoints and entities, which are never a path."""
NO_KEY = "SMALLFIRST_NO_KEY"
"""Environment variable, never set, that stands for "no key"."""
_SECRET = re.compile(r"\{\{\s*secrets/([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+)\s*\}\}")
_SECRET_FIELD = re.compile(r"token$|api_?key|secret|passw|private_key|credential|_plaintext$", re.IGNORECASE)
_CORE_FIELDS = ("served_entities", "traffic_config")
_WITHOUT_EFFECT = re.compile(
    "workload_(size|type)|scale_to_zero_enabled|environment_vars|instance_profile_arn|burst_scaling_enabled"
    "|(min|max)_provisioned_(throughput|concurrency)|provisioned_model_units"
    "|route_optimized|rate_limits|ai_gateway|budget_policy_id|email_notifications|telemetry_config|auto_capture_config"
)
"""Fields of an entity or an endpoint that are accepted and not kept."""
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Version = Annotated[str, BeforeValidator(str), Field(pattern=r"^([1-9][0-9]{0,8}|@[A-Za-z0-9_-]{1,64})$")]


class OpenAiConfig(Record):
    """Address and key of an OpenAI-style API."""

    openai_api_base: str = "https://api.openai.com/v1"
    """Address up to and including `/v1`."""
    openai_api_key: str | None = None
    """`{{secrets/scope/key}}`."""
    openai_api_type: Literal["openai"] = "openai"


class ExternalModel(Record):
    """A model behind another server."""

    name: str
    """Its name there; its price is looked up by this name."""
    provider: Literal["openai"] = "openai"
    task: Literal["llm/v1/chat"] = "llm/v1/chat"
    openai_config: OpenAiConfig

    @property
    def address(self) -> EndpointConfig:
        """Where it is; a key goes only where the config sends it. Raise ConfigError."""
        url, key = self.openai_config.openai_api_base, self.openai_config.openai_api_key
        values = {"base_url": url, "model": self.name, "api_key_env": secret_variable(key) or NO_KEY}
        found = parse_record(EndpointConfig, values, where=f'external model "{self.name}"')
        if found.api_key_env == NO_KEY and not found.is_loopback:
            raise ConfigError(f"{found.base_url} needs a key", hint='"{{secrets/scope/key}}"')
        return found


class ServedEntity(Record):
    """A registered model or an external one."""

    name: Name | None = None
    """Its name at the endpoint; None: derived from the model."""
    entity_name: str = ""
    """Three-level name of a registered model."""
    entity_version: Version = "@champion"
    """A number, or `@` and an alias that is followed."""
    external_model: ExternalModel | None = None
    """The external model, in place of a registered one."""

    @property
    def served_name(self) -> str:
        version = self.entity_version.lstrip("@")
        model = self.external_model.name if self.external_model else f"{self.entity_name}-{version}".replace(".", "-")
        return self.name or re.sub(r"[^A-Za-z0-9._-]", "-", model)


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


class OwnSettings(Record):
    """Settings that Databricks does not have, under `smallfirst`."""

    prices: PriceBook = PriceBook()


class EndpointBody(Record):
    """The request that creates an endpoint."""

    name: Name
    config: EndpointCoreConfig
    smallfirst: OwnSettings = OwnSettings()
    tags: Any = None
    """Kept and shown."""
    description: str | None = None
    """Kept and shown."""

    @property
    def percent(self) -> dict[str, int]:
        """Share of the requests by entity, in percent."""
        if self.config.traffic_config is not None:
            routes = self.config.traffic_config.routes
            return {one.served_entity_name or one.served_model_name: one.traffic_percentage for one in routes}
        entities = self.config.served_entities
        return {entities[0].served_name: 100} if len(entities) == 1 else {}

    @property
    def plan(self) -> EndpointPlan:
        """Return what is to be loaded. Raise ConfigError for the address of an external model."""
        entities = tuple(
            Entity(
                one.served_name,
                one.entity_name,
                one.entity_version,
                one.external_model.address if one.external_model else None,
            )
            for one in self.config.served_entities
        )
        return EndpointPlan(self.name, entities, self.percent, self.smallfirst.prices)


def secret_variable(reference: object) -> str | None:
    """Return the environment variable of `{{secrets/scope/key}}`; None if `reference` has another form."""
    found = _SECRET.fullmatch(reference.strip()) if isinstance(reference, str) else None
    return re.sub(r"[^A-Za-z0-9]", "_", f"{found[1]}_{found[2]}").upper() if found else None


def parse_config(
    name: str | None, config: Mapping[str, Any] | None, *, before: EndpointBody | None = None
) -> EndpointBody:
    """Parse a config over `before`, that of an endpoint. Raise ConfigError with all problems that were found."""
    given, problems = _normalized(name, config or {}), list(_misplaced_secrets(config or {}))
    raw = given if before is None else _merged(before.model_dump(mode="json", exclude_unset=True), given)
    try:
        body = parse_record(EndpointBody, raw, where="")
    except ConfigError as error:
        # A value of the wrong type may be a misplaced key.
        problems = [*(re.sub(r" \(got .*\)$", "", line) for line in error.args[0].split("\n  ")[1:]), *problems]
    else:
        problems += _violations(body)
    if problems:
        shown = str(raw.get("name", ""))[:128]
        lines = "\n  ".join(dict.fromkeys(problems))
        raise ConfigError(f'the config of endpoint "{shown}" cannot be used:\n  {lines}')
    return body


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


def _merged(before: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `before` updated by `new`; new entities do not inherit the traffic of the old ones."""
    core, own = new.get("config", {}), new.get("smallfirst", {})
    if "served_entities" in core:
        before["config"].pop("traffic_config", None)
    merged = {**before, **new, "config": {**before["config"], **core}}
    if isinstance(own, Mapping):
        merged["smallfirst"] = {**before.get("smallfirst", {}), **own}
    return merged


def _misplaced_secrets(value: Any, path: str = "", field: str = "") -> Iterator[str]:
    """Yield where a value that is kept holds a secret, or may."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _misplaced_secrets(inner, f"{path}.{key}".removeprefix("."), str(key))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _misplaced_secrets(inner, f"{path}.{place}", field)
    elif value is None or ".environment_vars." in path:  # not kept
        return
    elif _SECRET_FIELD.search(field) and secret_variable(value) is None:
        yield f'{path}: must be "{{{{secrets/scope/key}}}}", which is read from the environment variable SCOPE_KEY'
    elif isinstance(value, str) and without_secrets(value) != value:
        yield f"{path}: an address must hold no user, password or key, which would be kept on disk"


def _violations(body: EndpointBody) -> Iterator[str]:
    """Yield the rules between fields that are broken."""
    names = [entity.served_name for entity in body.config.served_entities]
    yield from (f'served_entities: two are called "{name}"' for name, n in Counter(names).items() if n > 1)
    for entity in body.config.served_entities:
        if (entity.external_model is None) == (not entity.entity_name):
            yield f"{entity.served_name}: give entity_name and entity_version, or external_model"
            continue
        try:
            if entity.external_model is None:
                check_name(entity.entity_name)
            else:
                external_model(entity.external_model.address, body.smallfirst.prices)
        except SmallfirstError as error:
            yield re.sub(r" \(got .*\)", "", f"{entity.served_name}: {error.args[0]}; {error.hint}")
    for name in body.percent.keys() - set(names):
        yield f'traffic_config.routes: no entity is called "{name}"{did_you_mean(name, names)}'
    if (total := sum(body.percent.values())) != 100:
        yield f"traffic_config.routes: the percentages of different entities sum to {total}, not to 100"
