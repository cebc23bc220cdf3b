"""The rules between the fields of an endpoint config; no message repeats a value that may be a secret."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from smallfirst import EndpointConfig
from smallfirst.deployment.endpoint_plan import check_name
from smallfirst.errors import ConfigError, SmallfirstError, did_you_mean, without_secrets
from smallfirst.interfaces.mlflow_deployments.config_schema import EndpointBody, ExternalModel, ServedEntity
from smallfirst.records import parse_record
from smallfirst.serving.settings import check_settings

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""Name of an endpoint or an entity; never `.` or `..`."""
_SECRET = re.compile(r"\{\{\s*secrets/([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+)\s*\}\}")
_CONFIG_FIELDS = {
    "openai": "openai_config",
    "databricks-model-serving": "databricks_model_serving_config",
    "custom": "custom_provider_config",
}
_OTHER_APIS = {"ai21labs", "amazon-bedrock", "anthropic", "cohere", "google-cloud-vertex-ai", "palm"}
_AZURE = ("openai_api_version", "openai_deployment_name", "microsoft_entra_")
"""Beginnings of Azure's fields."""
NO_KEY = "SMALLFIRST_NO_KEY"
"""Environment variable, never set, that stands for "no key"."""
_SECRET_FIELD = re.compile(r"token$|api_?key|secret|passw|private_key|credential", re.IGNORECASE)


def is_valid_name(name: str) -> bool:
    """Return True if an endpoint or an entity may have this name."""
    return NAME.fullmatch(name) is not None and name.strip(".") != ""


def secret_variable(reference: object) -> str | None:
    """Return the environment variable of `{{secrets/scope/key}}`; None if `reference` has another form."""
    found = _SECRET.fullmatch(reference.strip()) if isinstance(reference, str) else None
    return re.sub(r"[^A-Za-z0-9]", "_", f"{found[1]}_{found[2]}").upper() if found else None


def entity_name(entity: ServedEntity) -> str:
    """Return the entity's name, or one derived from its model."""
    if entity.name:
        return entity.name
    if entity.external_model is not None:
        return re.sub(r"[^A-Za-z0-9._-]", "-", entity.external_model.name)
    return f"{entity.entity_name.replace('.', '-')}-{entity.entity_version.lstrip('@')}"


def entry_entities(body: EndpointBody) -> list[str]:
    """Return the names of the entities that receive requests: all of them, or the registered ones of a cascade."""
    cascade = body.smallfirst.strategy == "cascade"
    return [entity_name(one) for one in body.config.served_entities if not cascade or one.external_model is None]


def external_endpoint(model: ExternalModel) -> EndpointConfig:
    """Return the address of an external model. Raise ConfigError if it is invalid."""
    openai, databricks, custom = (
        model.openai_config,
        model.databricks_model_serving_config,
        model.custom_provider_config,
    )
    url, key = "", None
    if model.provider == "openai" and openai:
        url, key = openai.openai_api_base, openai.openai_api_key
    elif model.provider == "databricks-model-serving" and databricks:
        url = databricks.databricks_workspace_url.rstrip("/") + "/serving-endpoints"
        key = databricks.databricks_api_token
    elif custom:
        url = custom.custom_provider_url.rstrip("/").removesuffix("/chat/completions")
        key = custom.bearer_token_auth.token if custom.bearer_token_auth else None
    # Without a reference no variable is read: a key goes only where the config sends it.
    values = {"base_url": url, "model": model.name, "api_key_env": secret_variable(key) or NO_KEY}
    return parse_record(EndpointConfig, values, where=f'external model "{model.name}"')


def without_value(error: ConfigError) -> str:
    """Return the message without the values it was refused for: one of the wrong type may be a misplaced key."""
    return re.sub(r" \(got .*\)$", "", str(error.args[0]), flags=re.MULTILINE)


def secret_violations(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield every misplaced secret of a config that is not parsed yet."""
    core = raw.get("config")
    if not isinstance(core, Mapping) or not core.get("served_entities"):
        yield "config.served_entities: at least one entity is needed"
        return
    for path, field, value in _leaves(raw, ""):
        if value is None or ".environment_vars." in path or field == "api_keys_sha256":  # not stored; checked by itself
            continue
        if field.endswith("_plaintext"):
            better = field.removesuffix("_plaintext")
            yield (
                f"{path}: a key in plain text would be kept on disk and is refused; set it as an environment "
                f'variable, such as SCOPE_KEY, and write {better}: "{{{{secrets/scope/key}}}}"'
            )
        elif _SECRET_FIELD.search(field) and secret_variable(value) is None:
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


def rule_violations(body: EndpointBody) -> list[str]:
    """Return every violated rule of a parsed config."""
    entities = body.config.served_entities
    names = [entity_name(entity) for entity in entities]
    problems = [p for i, one in enumerate(entities) for p in _entity_rules(one, f"config.served_entities.{i}")]
    problems += [
        f'config.served_entities: two entities are called "{n}"' for n, times in Counter(names).items() if times > 1
    ]
    if not is_valid_name(body.name):
        problems.append(f'name: "{body.name}" cannot be a name')
    problems += _traffic_rules(body, names)
    problems += _cascade_rules(body)
    try:
        check_settings(body.smallfirst.server)
    except ConfigError as error:
        problems.append(f"smallfirst.server: {error.args[0]}; {error.hint}")
    return problems


def _entity_rules(entity: ServedEntity, path: str) -> Iterator[str]:
    if not is_valid_name(entity_name(entity)):
        yield f"{path}.name: use 1 to 128 of the characters A-Z a-z 0-9 . _ -"
    if entity.external_model is not None:
        if entity.entity_name or entity.entity_version:
            yield f"{path}: is either external_model or entity_name, not both"
        yield from _external_rules(entity.external_model, f"{path}.external_model")
        return
    if not entity.entity_name:
        yield f"{path}: needs entity_name and entity_version, or external_model"
        return
    try:
        check_name(entity.entity_name)
    except SmallfirstError as error:
        yield f"{path}.entity_name: {error.args[0]}; {error.hint}"
    if not re.fullmatch(r"[1-9]\d{0,8}|@[\w-]{1,64}", entity.entity_version):
        yield f'{path}.entity_version: must be a number, or an alias such as "@champion" that is followed'


def _external_rules(model: ExternalModel, path: str) -> Iterator[str]:
    if model.provider in _OTHER_APIS:
        yield (
            f"{path}.provider: {model.provider} has an API of its own, and only OpenAI's is supported; reach it "
            f"through a gateway with OpenAI's API, as provider custom"
        )
        return
    if model.provider not in _CONFIG_FIELDS:
        near = did_you_mean(model.provider, [*_CONFIG_FIELDS, *_OTHER_APIS])
        yield f'{path}.provider: "{model.provider}" is unknown{near}'
        return
    if model.task != "llm/v1/chat":
        yield f"{path}.task: {model.task} is not served by an external model here, only llm/v1/chat"
    if getattr(model, _CONFIG_FIELDS[model.provider]) is None:
        yield f"{path}.{_CONFIG_FIELDS[model.provider]}: missing"
        return
    try:
        address = external_endpoint(model)
    except ConfigError as error:
        yield f"{path}: {without_value(error)}"
    else:
        if address.api_key_env == NO_KEY and not address.is_loopback:
            yield f'{path}: {address.base_url} needs a key: "{{{{secrets/scope/key}}}}"'
    openai, custom = model.openai_config, model.custom_provider_config
    if openai and (openai.openai_api_type != "openai" or any(f.startswith(_AZURE) for f in openai.model_fields_set)):
        what = "Azure's addresses and keys are not supported; give its /openai/v1 address as openai_api_base"
        yield f"{path}.openai_config: {what}"
    if custom and custom.api_key_auth is not None:
        what = "keys are sent as Authorization: Bearer only; give bearer_token_auth"
        yield f"{path}.custom_provider_config.api_key_auth: {what}"


def _traffic_rules(body: EndpointBody, names: list[str]) -> Iterator[str]:
    traffic = body.config.traffic_config
    if traffic is None:
        if len(entry_entities(body)) != 1:
            yield "config.traffic_config: missing; give each entity a share of the requests"
        return
    total = sum(route.traffic_percentage for route in traffic.routes)
    if total != 100:
        yield f"config.traffic_config.routes: the percentages sum to {total}, not to 100"
    for place, route in enumerate(traffic.routes):
        if route.entity not in names:
            yield (
                f'config.traffic_config.routes.{place}: no entity is called "{route.entity}"'
                f"{did_you_mean(route.entity, names)}"
            )
    for name, times in Counter(route.entity for route in traffic.routes).items():
        if times > 1:
            yield f'config.traffic_config.routes: "{name}" has {times} routes'


def _cascade_rules(body: EndpointBody) -> Iterator[str]:
    own, entities = body.smallfirst, body.config.served_entities
    if own.threshold is not None:
        yield "smallfirst.threshold: cannot be set; the certificate of the version holds it (smallfirst calibrate)"
    if own.strategy == "split":
        if own.fallback:
            yield "smallfirst.fallback: only applies to strategy: cascade"
        return
    external = [entity_name(one) for one in entities if one.external_model is not None]
    if len(external) == len(entities):
        yield "smallfirst.strategy: a cascade needs a registered model"
    if not own.fallback and len(external) != 1:
        yield f"smallfirst.fallback: name one of the external entities: {', '.join(external) or 'there is none'}"
    elif own.fallback and own.fallback not in external:
        near = did_you_mean(own.fallback, external)
        yield f'smallfirst.fallback: no external entity is called "{own.fallback}"{near}'
