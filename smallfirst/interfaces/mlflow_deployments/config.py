"""Databricks' endpoint config, read as it is: which models, how traffic is shared, and what has no effect here.

Both call shapes are taken: all under `config` with the name beside it, or the inner config alone. A secret is named,
never held: `{{secrets/scope/key}}` is read from the environment variable SCOPE_KEY when the endpoint starts, and a key
in plain text is refused. All problems are told at once. The price: what Databricks adds tomorrow is refused until it is
listed in `endpoint_body`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from smallfirst.deployment.endpoint_plan import Cascade, EndpointPlan, ExternalEntity, RegisteredEntity, external_model
from smallfirst.errors import ConfigError, SmallfirstError
from smallfirst.interfaces.mlflow_deployments.config_rules import (
    NO_KEY,
    entity_name,
    entry_entities,
    external_endpoint,
    rule_violations,
    secret_violations,
)
from smallfirst.interfaces.mlflow_deployments.config_schema import (
    IGNORED_BODY_FIELDS,
    IGNORED_ENTITY_FIELDS,
    EndpointBody,
)
from smallfirst.models.remote.model import EndpointConfig
from smallfirst.pricing import PriceBook
from smallfirst.records import parse_record
from smallfirst.serving.settings import ServeSettings

_CORE = ("served_entities", "served_models", "traffic_config", "auto_capture_config")
_OLD_WORDS = {"model_name": "entity_name", "model_version": "entity_version"}


class ParsedConfig(NamedTuple):
    """A config that was read."""

    name: str
    """The endpoint's."""
    plan: EndpointPlan
    """What it is made of."""
    settings: ServeSettings
    """How it listens; port 0 where none was named."""
    follow_every_s: float
    """Seconds between two looks at aliases."""
    body: dict[str, Any]
    """The config as it is kept and shown, in Databricks' newer words; holds no secret."""
    notes: tuple[str, ...]
    """What was accepted and has no effect, a sentence each."""


def parse_config(
    name: str | None, config: Mapping[str, Any] | None, *, before: Mapping[str, Any] | None = None
) -> ParsedConfig:
    """What a config asks for; `before` is the kept body of an endpoint whose other settings stay.

    Raises ConfigError with every problem at once.
    """
    raw = _over(before or {}, _whole(name, config or {}))
    problems = list(secret_violations(raw))
    try:
        body = parse_record(EndpointBody, raw, where="")
    except ConfigError as error:
        found = str(error.args[0]).split("\n  ")[1:]
        # A value of the wrong type may be a key in the wrong place.
        found = [re.sub(r" \(got .*\)$", "", line) for line in found]
        raise _refusal(raw, [*found, *problems]) from None
    problems += rule_violations(body)
    plan = None if problems else _plan(body)
    if plan is not None:
        for entity in plan.external:
            problems += _had(entity, plan)
    if plan is None or problems:
        raise _refusal(raw, problems)
    own, capture = body.smallfirst.server, body.config.auto_capture_config
    kept = {"store_bodies": own.store_bodies or bool(capture and capture.enabled)}
    settings = own.model_copy(update=kept if "port" in own.model_fields_set else {**kept, "port": 0})
    return ParsedConfig(body.name, plan, settings, body.smallfirst.follow_every_s, _kept(raw), tuple(_notes(body)))


def _refusal(raw: Mapping[str, Any], problems: list[str]) -> ConfigError:
    name = str(raw.get("name", ""))[:128]
    return ConfigError(f'the config of endpoint "{name}" cannot be used:\n  ' + "\n  ".join(dict.fromkeys(problems)))


def _whole(name: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """The body in one form and in newer words, from either call shape. Raises ConfigError if two names are given."""
    body = dict(config)
    core = dict(body.pop("config") or {}) if isinstance(body.get("config"), Mapping) else {}
    core |= {word: body.pop(word) for word in _CORE if word in body}
    if name is not None and body.setdefault("name", name) != name:
        raise ConfigError(f'two names: "{name}" and "{body["name"]}" in the config', hint="give one of them")
    own = [*_taken(body, ("smallfirst", "routing")), *_taken(core, ("smallfirst", "routing"))]
    if len(own) > 1:
        raise ConfigError("the config has more than one block `smallfirst` or `routing`", hint="put all in one")
    if "served_models" in core:
        core["served_entities"] = [*(core.get("served_entities") or ()), *(core.pop("served_models") or ())]
    entities = core.get("served_entities")
    if isinstance(entities, list | tuple):
        core["served_entities"] = [_newer(one) for one in entities]
    return {**body, **({"config": core} if core else {}), **({"smallfirst": own[0]} if own else {})}


def _over(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The kept body with what is new in it; new entities do not take over the traffic of the old ones."""
    kept, core = dict(before.get("config") or {}), new.get("config")
    if isinstance(core, Mapping) and "served_entities" in core:
        kept.pop("traffic_config", None)
    merged: dict[str, Any] = {"config": {**kept, **(core if isinstance(core, Mapping) else {})}}
    own, was = new.get("smallfirst"), before.get("smallfirst")
    if isinstance(own, Mapping) and isinstance(was, Mapping):
        merged["smallfirst"] = {**{word: was[word] for word in ("server", "prices") if word in was}, **own}
    return {**before, **new, **{word: value for word, value in merged.items() if value}}


def _taken(values: dict[str, Any], words: tuple[str, ...]) -> list[Any]:
    return [values.pop(word) for word in words if word in values]


def _newer(entity: Any) -> Any:
    if not isinstance(entity, Mapping):
        return entity
    return {_OLD_WORDS.get(word, word): value for word, value in entity.items()}


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
        cascade = Cascade(fallback=own.fallback or external[0].name, override=own.override)
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
    """A model on this machine is paid by the hour, whatever a vendor asks for one of its name."""
    by_hour = address.is_loopback and address.model not in prices.tokens
    return address.model_copy(update={"priced_by": "machine"}) if by_hour else address


def _had(entity: ExternalEntity, plan: EndpointPlan) -> Iterator[str]:
    """What stands in the way of asking an external entity: its key is not there, or it has no price."""
    try:
        external_model(entity, plan.prices)
    except SmallfirstError as error:
        yield f"{entity.name}: {error.args[0].removeprefix(entity.name + ': ')}; {error.hint}"


def _kept(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The body without values of environment variables."""
    entities = [dict(entity) for entity in raw["config"]["served_entities"]]
    for entity in entities:
        if isinstance(entity.get("environment_vars"), Mapping):
            entity["environment_vars"] = dict.fromkeys(entity["environment_vars"], "(not kept)")
    return {**raw, "config": {**raw["config"], "served_entities": entities}}


def _notes(body: EndpointBody) -> Iterator[str]:
    for entity in body.config.served_entities:
        for word, why in IGNORED_ENTITY_FIELDS.items():
            if getattr(entity, word) is not None:
                yield f"{entity_name(entity)}: {word} has no effect: {why}"
        variable = external_endpoint(entity.external_model).api_key_env if entity.external_model else NO_KEY
        if variable != NO_KEY:
            yield f"{entity_name(entity)}: its key is read from the environment variable {variable}"
    for word, why in IGNORED_BODY_FIELDS.items():
        if getattr(body, word):
            yield f"{word} has no effect: {why}"
    capture = body.config.auto_capture_config
    if capture and capture.enabled:
        yield "auto_capture_config: questions and answers are kept in the ledger, not in a table of a catalogue"
