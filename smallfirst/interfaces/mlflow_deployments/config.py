"""Databricks' endpoint config: the served models, their shares of the traffic, and all that is wrong with it.

Secrets are named, never held: `{{secrets/scope/key}}` is read from the environment variable SCOPE_KEY at the start.
No message repeats a value that may be a secret.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from smallfirst import EndpointConfig, ServeSettings
from smallfirst.deployment.endpoint_plan import EndpointPlan, Entity, check_name, external_model
from smallfirst.errors import ConfigError, SmallfirstError, did_you_mean, without_secrets
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import Record, parse_record
from smallfirst.serving.settings import check_settings

NO_KEY = "SMALLFIRST_NO_KEY"
"""Environment variable, never set, that stands for "no key"."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SECRET = re.compile(r"\{\{\s*secrets/([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+)\s*\}\}")
_SECRET_FIELD = re.compile(r"token$|api_?key|secret|passw|private_key|credential|_plaintext$", re.IGNORECASE)
_CORE_FIELDS = ("served_entities", "served_models", "traffic_config", "auto_capture_config")
_RENAMED_FIELDS = {"model_name": "entity_name", "model_version": "entity_version"}
_WITHOUT_EFFECT = re.compile(
    "workload_(size|type)|scale_to_zero_enabled|environment_vars|instance_profile_arn|burst_scaling_enabled"
    "|(min|max)_provisioned_(throughput|concurrency)|provisioned_model_units"
    "|route_optimized|rate_limits|ai_gateway|budget_policy_id|email_notifications|telemetry_config"
)
"""Fields of an entity or an endpoint that are accepted, not kept, and named in the note."""


class OpenAiConfig(Record):
    """Address and key of an OpenAI-style API."""

    openai_api_base: str = "https://api.openai.com/v1"
    """Address up to and including `/v1`."""
    openai_api_key: str | None = None
    """`{{secrets/scope/key}}`."""
    openai_api_type: Literal["openai"] = "openai"


class DatabricksConfig(Record):
    """Address and key of another workspace's serving endpoints."""

    databricks_workspace_url: str
    databricks_api_token: str | None = None


class BearerAuth(Record):
    """A key sent as `Authorization: Bearer`."""

    token: str | None = None


class CustomConfig(Record):
    """Address and key of any other OpenAI-style API."""

    custom_provider_url: str
    """Address up to and including `/v1`, or with `/chat/completions` after it."""
    bearer_token_auth: BearerAuth = BearerAuth()


class ExternalModel(Record):
    """A model behind another server."""

    name: str
    """Its name there; its price is looked up by this name."""
    provider: str
    """`openai`, `databricks-model-serving` or `custom`."""
    task: Literal["llm/v1/chat"] = "llm/v1/chat"
    openai_config: OpenAiConfig | None = None
    databricks_model_serving_config: DatabricksConfig | None = None
    custom_provider_config: CustomConfig | None = None

    @property
    def address(self) -> EndpointConfig:
        """Where it is; a key goes only where the config sends it. Raise ConfigError."""
        openai, databricks, custom = (
            self.openai_config,
            self.databricks_model_serving_config,
            self.custom_provider_config,
        )
        if self.provider == "openai" and openai:
            url, key = openai.openai_api_base, openai.openai_api_key
        elif self.provider == "databricks-model-serving" and databricks:
            url = f"{databricks.databricks_workspace_url.rstrip('/')}/serving-endpoints"
            key = databricks.databricks_api_token
        elif self.provider == "custom" and custom:
            url = custom.custom_provider_url.rstrip("/").removesuffix("/chat/completions")
            key = custom.bearer_token_auth.token
        else:
            raise ConfigError(
                "provider must be openai, databricks-model-serving or custom, with its block openai_config, "
                "databricks_model_serving_config or custom_provider_config",
                hint="reach others through a gateway with OpenAI's API, as custom",
            )
        values = {"base_url": url, "model": self.name, "api_key_env": secret_variable(key) or NO_KEY}
        found = parse_record(EndpointConfig, values, where=f'external model "{self.name}"')
        if found.api_key_env == NO_KEY and not found.is_loopback:
            raise ConfigError(f"{found.base_url} needs a key", hint='"{{secrets/scope/key}}"')
        return found


class ServedEntity(Record):
    """A registered model or an external one."""

    name: str = ""
    """Its name at the endpoint; derived from the model if empty."""
    entity_name: str = ""
    """Three-level name of a registered model; `model_name` is the older field."""
    entity_version: str = ""
    """A number, or `@` and an alias that is followed; `model_version` is the older field."""
    external_model: ExternalModel | None = None
    """The external model, in place of a registered one."""

    @field_validator("entity_version", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @property
    def served_name(self) -> str:
        if self.name or self.external_model is None:
            return self.name or f"{self.entity_name.replace('.', '-')}-{self.entity_version.lstrip('@')}"
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.external_model.name)


class TrafficRoute(Record):
    """An entity's share of the traffic."""

    served_model_name: str = ""
    served_entity_name: str = ""
    traffic_percentage: int = Field(ge=0, le=100)


class TrafficConfig(Record):
    """Shares of the entities in the traffic."""

    routes: tuple[TrafficRoute, ...]


class AutoCaptureConfig(Record):
    """Recording of questions and answers, into the ledger."""

    enabled: bool = True
    # Accepted without effect: there is no table of a catalogue.
    catalog_name: str | None = None
    schema_name: str | None = None
    table_name_prefix: str | None = None


class EndpointCoreConfig(Record):
    """Served entities and their shares of the traffic."""

    served_entities: tuple[ServedEntity, ...] = Field(min_length=1)
    traffic_config: TrafficConfig | None = None
    """Optional with a single entity, and in a cascade of one."""
    auto_capture_config: AutoCaptureConfig | None = None


class OwnSettings(Record):
    """Settings that Databricks does not have, under `smallfirst` or `routing`."""

    strategy: Literal["split", "cascade"] = "split"
    """`cascade`: registered models answer what their certificate allows, the fallback the rest."""
    fallback: str = ""
    """External entity that a cascade asks last; optional if there is only one."""
    sticky_by: tuple[str, ...] = ("user",)
    """Tags of a request whose equal values go to the same entity; the first one that it has counts."""
    prices: PriceBook = PriceBook()
    server: ServeSettings = ServeSettings()
    """Address, keys and limits; without `port` a free one is chosen once and kept."""


class EndpointBody(Record):
    """The request that creates an endpoint."""

    name: str
    config: EndpointCoreConfig
    smallfirst: OwnSettings = OwnSettings()
    tags: Any = None
    """Kept and shown."""
    description: str | None = None
    """Kept and shown."""

    @property
    def registered(self) -> tuple[ServedEntity, ...]:
        return tuple(one for one in self.config.served_entities if one.external_model is None)

    @property
    def external(self) -> dict[str, ExternalModel]:
        return {one.served_name: one.external_model for one in self.config.served_entities if one.external_model}

    @property
    def percent(self) -> dict[str, int]:
        """Share of the requests by entity, in percent; without a traffic_config all to the one that may get them."""
        if self.config.traffic_config is not None:
            routes = self.config.traffic_config.routes
            return {one.served_entity_name or one.served_model_name: one.traffic_percentage for one in routes}
        entities = self.config.served_entities if self.smallfirst.strategy == "split" else self.registered
        return {entities[0].served_name: 100} if len(entities) == 1 else {}

    @property
    def fallback(self) -> str | None:
        """The external entity that a cascade asks last; None for a split."""
        if self.smallfirst.strategy == "split":
            return None
        return self.smallfirst.fallback or (next(iter(self.external)) if len(self.external) == 1 else "")

    @property
    def server_settings(self) -> ServeSettings:
        server, capture = self.smallfirst.server, self.config.auto_capture_config
        return server.model_copy(update={"store_bodies": server.store_bodies or bool(capture and capture.enabled)})

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
        own, stored = self.smallfirst, self.server_settings.store_bodies
        return EndpointPlan(self.name, entities, self.percent, self.fallback, own.sticky_by, own.prices, stored)


def is_valid_name(name: str) -> bool:
    """Return True if an endpoint or an entity may have this name, which is never `.` or `..`."""
    return _NAME.fullmatch(name) is not None and name.strip(".") != ""


def secret_variable(reference: object) -> str | None:
    """Return the environment variable of `{{secrets/scope/key}}`; None if `reference` has another form."""
    found = _SECRET.fullmatch(reference.strip()) if isinstance(reference, str) else None
    return re.sub(r"[^A-Za-z0-9]", "_", f"{found[1]}_{found[2]}").upper() if found else None


def parse_config(
    name: str | None, config: Mapping[str, Any] | None, *, before: EndpointBody | None = None
) -> tuple[EndpointBody, tuple[str, ...]]:
    """Parse a config over `before`, that of an endpoint; return it, and a note that names what has no effect.

    Raise ConfigError with all problems that were found.
    """
    given = _normalized(name, config or {})
    problems = list(_misplaced_secrets(given))
    ignored = _drop_without_effect(given)
    raw = given if before is None else _merged(before.model_dump(mode="json", exclude_unset=True), given)
    try:
        body = parse_record(EndpointBody, raw, where="")
    except ConfigError as error:
        # A value of the wrong type may be a misplaced key.
        lines = [re.sub(r" \(got .*\)$", "", line) for line in error.args[0].split("\n  ")[1:]]
        raise _invalid(raw, [*lines, *problems]) from None
    problems += _violations(body)
    if problems:
        raise _invalid(raw, problems)
    return body, (f"without effect here: {', '.join(dict.fromkeys(ignored))}",) if ignored else ()


def _invalid(raw: Mapping[str, Any], problems: list[str]) -> ConfigError:
    name = str(raw.get("name", ""))[:128]
    return ConfigError(f'the config of endpoint "{name}" cannot be used:\n  ' + "\n  ".join(dict.fromkeys(problems)))


def _normalized(name: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in one form with the newer fields. Raise ConfigError if two names are given."""
    body = dict(config)
    core = dict(body.pop("config") or {}) if isinstance(body.get("config"), Mapping) else {}
    core |= {field: body.pop(field) for field in _CORE_FIELDS if field in body}
    if name is not None and body.setdefault("name", name) != name:
        raise ConfigError(f'two names: "{name}" and "{body["name"]}" in the config', hint="give one of them")
    blocks = [part.pop(key) for part in (body, core) for key in ("smallfirst", "routing") if key in part]
    if len(blocks) > 1:
        raise ConfigError("the config has more than one block `smallfirst` or `routing`", hint="put all in one")
    if "served_models" in core:
        core["served_entities"] = [*(core.get("served_entities") or ()), *(core.pop("served_models") or ())]
    if isinstance(entities := core.get("served_entities"), list | tuple):
        core["served_entities"] = [
            {_RENAMED_FIELDS.get(field, field): value for field, value in one.items()}
            if isinstance(one, Mapping)
            else one
            for one in entities
        ]
    return {**body, **({"config": core} if core else {}), **({"smallfirst": blocks[0]} if blocks else {})}


def _drop_without_effect(given: dict[str, Any]) -> list[str]:
    """Remove the fields without effect; return the names of those that asked for something."""
    entities = given.get("config", {}).get("served_entities")
    parts = [given, *(one for one in entities if isinstance(one, dict))] if isinstance(entities, list) else [given]
    found = [(part, field) for part in parts for field in part if _WITHOUT_EFFECT.fullmatch(field)]
    return [field for part, field in found if part.pop(field)]


def _merged(before: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `before` updated by `new`; new entities do not inherit the traffic of the old ones."""
    core, own = new.get("config", {}), new.get("smallfirst")
    if "served_entities" in core:
        before["config"].pop("traffic_config", None)
    merged = {**before, **new, "config": {**before["config"], **core}}
    if isinstance(own, Mapping):
        stays = {key: value for key, value in before.get("smallfirst", {}).items() if key in ("server", "prices")}
        merged["smallfirst"] = {**stays, **own}
    return merged


def _misplaced_secrets(raw: Mapping[str, Any]) -> Iterator[str]:
    for path, field, value in _leaves(raw, ""):
        if value is None or ".environment_vars." in path or field == "api_keys_sha256":  # not kept; checked by itself
            continue
        if _SECRET_FIELD.search(field) and secret_variable(value) is None:
            yield f'{path}: must be "{{{{secrets/scope/key}}}}", which is read from the environment variable SCOPE_KEY'
        elif isinstance(value, str) and without_secrets(value) != value:
            yield f"{path}: an address must hold no user, password or key, which would be kept on disk"


def _leaves(value: Any, path: str, field: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}".removeprefix("."), str(key))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{place}", field)
    else:
        yield path, field, value


def _violations(body: EndpointBody) -> Iterator[str]:
    """Yield the rules between fields that are broken."""
    names = [entity.served_name for entity in body.config.served_entities]
    for name in (body.name, *names):
        if not is_valid_name(name):
            yield f'name: "{name[:128]}" cannot be a name: use 1 to 128 of A-Z a-z 0-9 . _ -'
    yield from (f'served_entities: two are called "{name}"' for name, n in Counter(names).items() if n > 1)
    for entity in body.config.served_entities:
        yield from _entity_violations(entity, body)
    for name in body.percent.keys() - set(names):
        yield f'traffic_config.routes: no entity is called "{name}"{did_you_mean(name, names)}'
    if (total := sum(body.percent.values())) != 100:
        yield f"traffic_config.routes: the percentages of different entities sum to {total}, not to 100"
    cascade, fallback = body.fallback is not None, body.fallback or body.smallfirst.fallback
    if cascade and (fallback not in body.external or not body.registered):
        near = did_you_mean(fallback, body.external)
        yield f'smallfirst: a cascade needs a registered model and an external one as fallback, not "{fallback}"{near}'
    if fallback and not cascade:
        yield "smallfirst.fallback: only applies to strategy: cascade"
    try:
        check_settings(body.smallfirst.server)
    except ConfigError as error:
        yield f"smallfirst.server: {error.args[0]}; {error.hint}"


def _entity_violations(entity: ServedEntity, body: EndpointBody) -> Iterator[str]:
    name, version = entity.served_name, entity.entity_version
    if (entity.external_model is None) == (not entity.entity_name):
        yield f"{name}: give entity_name and entity_version, or external_model"
        return
    try:
        if entity.external_model is not None:
            external_model(entity.external_model.address, body.smallfirst.prices)
            return
        check_name(entity.entity_name)
    except SmallfirstError as error:
        yield re.sub(r" \(got .*\)", "", f"{name}: {error.args[0]}; {error.hint}")
    if not re.fullmatch(r"[1-9]\d{0,8}|@[\w-]{1,64}", version):
        yield f'{name}.entity_version: must be a number, or an alias such as "@champion" that is followed'
