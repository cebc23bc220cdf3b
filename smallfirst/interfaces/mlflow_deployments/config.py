"""Parse Databricks' endpoint config: the served models, their shares of the traffic, and what has no effect here.

Secrets are named, never held: `{{secrets/scope/key}}` is read from the environment variable SCOPE_KEY at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from smallfirst import EndpointConfig, ServeSettings
from smallfirst.deployment.endpoint_plan import Cascade, EndpointPlan, ExternalEntity, RegisteredEntity, external_model
from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.interfaces.mlflow_deployments.config_rules import (
    NO_KEY,
    entity_name,
    entry_entities,
    external_endpoint,
    rule_violations,
    secret_violations,
    without_value,
)
from smallfirst.interfaces.mlflow_deployments.config_schema import EndpointBody, notes
from smallfirst.pricing.prices import PriceBook
from smallfirst.records import parse_record

_CORE_FIELDS = ("served_entities", "served_models", "traffic_config", "auto_capture_config")
_RENAMED_FIELDS = {"model_name": "entity_name", "model_version": "entity_version"}


class ParsedConfig(NamedTuple):
    """A valid config."""

    name: str
    plan: EndpointPlan
    settings: ServeSettings
    """Settings of the server; port 0 if the config names none."""
    follow_every_s: float
    body: dict[str, Any]
    """The config to store and show, in Databricks' newer fields; holds no secret."""
    notes: tuple[str, ...]
    """One sentence for each field that has no effect."""


def parse_config(
    name: str | None, config: Mapping[str, Any] | None, *, before: Mapping[str, Any] | None = None
) -> ParsedConfig:
    """Parse a config over `before`, the stored body of an endpoint. Raise ConfigError with all problems."""
    raw = _merge(before or {}, _normalize(name, config or {}))
    problems = list(secret_violations(raw))
    try:
        body = parse_record(EndpointBody, raw, where="")
    except ConfigError as error:
        lines = without_value(error).split("\n  ")[1:]
        raise _invalid(raw, [*lines, *problems]) from None
    problems += rule_violations(body)
    plan = None if problems else _plan(body)
    if plan is not None:
        for entity in plan.external:
            problems += _entity_problems(entity, plan)
    if plan is None or problems:
        raise _invalid(raw, problems)
    server, capture = body.smallfirst.server, body.config.auto_capture_config
    changes = {"store_bodies": server.store_bodies or bool(capture and capture.enabled)}
    settings = server.model_copy(update=changes if "port" in server.model_fields_set else {**changes, "port": 0})
    return ParsedConfig(body.name, plan, settings, body.smallfirst.follow_every_s, _storable(raw), tuple(_notes(body)))


def _invalid(raw: Mapping[str, Any], problems: list[str]) -> ConfigError:
    name = str(raw.get("name", ""))[:128]
    return ConfigError(f'the config of endpoint "{name}" cannot be used:\n  ' + "\n  ".join(dict.fromkeys(problems)))


def _normalize(name: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body in one form with the newer fields. Raise ConfigError if two names are given."""
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
    entities = core.get("served_entities")
    if isinstance(entities, list | tuple):
        core["served_entities"] = [
            {_RENAMED_FIELDS.get(field, field): value for field, value in one.items()}
            if isinstance(one, Mapping)
            else one
            for one in entities
        ]
    return {**body, **({"config": core} if core else {}), **({"smallfirst": blocks[0]} if blocks else {})}


def _merge(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `before` updated by `new`; new entities do not inherit the traffic of the old ones."""
    stored, core = dict(before.get("config") or {}), new.get("config")
    if isinstance(core, Mapping) and "served_entities" in core:
        stored.pop("traffic_config", None)
    merged: dict[str, Any] = {"config": {**stored, **(core if isinstance(core, Mapping) else {})}}
    own, previous = new.get("smallfirst"), before.get("smallfirst")
    if isinstance(own, Mapping) and isinstance(previous, Mapping):
        merged["smallfirst"] = {**{key: previous[key] for key in ("server", "prices") if key in previous}, **own}
    return {**before, **new, **{key: value for key, value in merged.items() if value}}


def _plan(body: EndpointBody) -> EndpointPlan:
    own, entities = body.smallfirst, body.config.served_entities
    traffic = body.config.traffic_config
    percent = {route.entity: route.traffic_percentage for route in traffic.routes} if traffic else {}
    external = tuple(
        ExternalEntity(name=entity_name(one), endpoint=_priced(external_endpoint(one.external_model), own.prices))
        for one in entities
        if one.external_model
    )
    cascade = None
    if own.strategy == "cascade":
        cascade = Cascade(fallback=own.fallback or external[0].name)
    return EndpointPlan(
        registered=tuple(
            RegisteredEntity(name=entity_name(one), model=one.entity_name, version=one.entity_version)
            for one in entities
            if one.external_model is None
        ),
        external=external,
        percent=percent or {entry_entities(body)[0]: 100},
        cascade=cascade,
        sticky_by=own.sticky_by,
        prices=own.prices,
    )


def _priced(address: EndpointConfig, prices: PriceBook) -> EndpointConfig:
    """Price a model on this machine by the hour, whatever a vendor charges for one of the same name."""
    by_hour = address.is_loopback and address.model not in prices.tokens
    return address.model_copy(update={"priced_by": "machine"}) if by_hour else address


def _entity_problems(entity: ExternalEntity, plan: EndpointPlan) -> Iterator[str]:
    try:
        external_model(entity, plan.prices)
    except SmallfirstError as error:
        yield f"{entity.name}: {error.args[0].removeprefix(entity.name + ': ')}; {error.hint}"


def _storable(raw: Mapping[str, Any]) -> dict[str, Any]:
    entities = [dict(entity) for entity in raw["config"]["served_entities"]]
    for entity in entities:
        if isinstance(entity.get("environment_vars"), Mapping):
            entity["environment_vars"] = dict.fromkeys(entity["environment_vars"], "(not kept)")
    return {**raw, "config": {**raw["config"], "served_entities": entities}}


def _notes(body: EndpointBody) -> Iterator[str]:
    for entity in body.config.served_entities:
        yield from (f"{entity_name(entity)}: {note}" for note in notes(entity))
        variable = external_endpoint(entity.external_model).api_key_env if entity.external_model else NO_KEY
        if variable != NO_KEY:
            yield f"{entity_name(entity)}: its key is read from the environment variable {variable}"
    yield from notes(body)
    capture = body.config.auto_capture_config
    if capture and capture.enabled:
        yield "auto_capture_config: questions and answers are stored in the ledger, not in a table of a catalogue"
