"""Databricks' config: read as it is, refused with every problem at once, and never with a secret in it."""

from __future__ import annotations

import ast
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.endpoints import config

from smallfirst.errors import ConfigError
from smallfirst.interfaces.mlflow_deployments.config import parse_config
from smallfirst.interfaces.mlflow_deployments.config_rules import is_valid_name, secret_variable

LOCAL = "http://127.0.0.1:9/v1"
HOSTED = "https://api.openai.com/v1"


def refused(values: dict[str, Any], name: str | None = "desk") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(name, values)
    return str(caught.value)


def external(**changes: Any) -> dict[str, Any]:
    """An endpoint of one external model, some of its fields changed."""
    model = copy.deepcopy(config(LOCAL)["served_entities"][1]["external_model"])
    return {"served_entities": [{"external_model": {**model, **changes}}]}


def test_databricks_words_say_what_is_served() -> None:
    found = parse_config("desk", config(LOCAL, tickets=80, version="@champion"))
    (ours,), (big,) = found.plan.registered, found.plan.external
    assert (ours.name, ours.reference) == ("tickets", "main.ml.tickets@champion")
    assert (big.name, big.endpoint.base_url, big.endpoint.model) == ("big", LOCAL, "gpt-4o-mini")
    assert big.endpoint.api_key_env == "PROD_OPENAI"
    assert found.plan.percent == {"tickets": 80, "big": 20}
    assert found.plan.cascade is None


def test_both_call_shapes_and_the_older_words_mean_the_same() -> None:
    inner = config(LOCAL)
    expected = parse_config("desk", inner)
    assert parse_config(None, {"name": "desk", "config": inner}) == expected
    assert parse_config("desk", {"name": "desk", "config": inner}) == expected
    older = copy.deepcopy(inner)
    entities = older.pop("served_entities")
    entities[0]["model_name"] = entities[0].pop("entity_name")
    entities[0]["model_version"] = entities[0].pop("entity_version")
    older["served_models"] = entities
    newer_routes = [
        {"served_entity_name": route["served_model_name"], "traffic_percentage": route["traffic_percentage"]}
        for route in inner["traffic_config"]["routes"]
    ]
    assert parse_config("desk", older).plan == expected.plan
    assert parse_config("desk", {**inner, "traffic_config": {"routes": newer_routes}}).plan == expected.plan
    assert 'two names: "desk" and "other"' in refused({"name": "other", "config": inner})
    assert refused(inner, name=None).startswith('the config of endpoint ""')


def test_names_are_made_up_from_what_an_entity_is() -> None:
    alone = {"served_entities": [{"entity_name": "main.ml.tickets", "entity_version": 3}]}
    assert parse_config("desk", alone).plan.percent == {"main-ml-tickets-3": 100}
    assert parse_config("desk", external(name="org/model:7b")).plan.percent == {"org-model-7b": 100}


def test_what_has_no_effect_is_said_and_what_is_unknown_is_refused() -> None:
    values = config(
        LOCAL,
        tags=[{"key": "team", "value": "desk"}],
        rate_limits=[{"calls": 10, "key": "user", "renewal_period": "minute"}],
        route_optimized=True,
        auto_capture_config={"catalog_name": "main", "schema_name": "logs", "enabled": True},
    )
    values["served_entities"][0] |= {"workload_type": "CPU", "environment_vars": {"TOKEN": "very-secret"}}
    found = parse_config("desk", values)
    said = "\n".join(found.notes)
    for word in ("workload_size", "workload_type", "scale_to_zero_enabled", "environment_vars", "rate_limits"):
        assert word in said
    assert "route_optimized" in said
    assert "environment variable PROD_OPENAI" in said
    assert found.settings.store_bodies
    assert "very-secret" not in json.dumps(found.body)
    assert found.body["tags"] == [{"key": "team", "value": "desk"}]
    values["served_entities"][0]["worklaod_size"] = "Small"
    assert 'unknown setting — did you mean "workload_size"?' in refused(values)


def test_all_problems_are_told_at_once() -> None:
    values = config(LOCAL)
    values["served_entities"][0] |= {"entity_name": "tickets", "entity_version": "newest"}
    values["traffic_config"]["routes"][0] |= {"traffic_percentage": 50, "served_model_name": "tikets"}
    values["served_entities"][1]["external_model"] |= {"task": "llm/v1/embeddings"}
    said = refused({**values, "smallfirst": {"threshold": 0.9}})
    for words in (
        'entity_name: "tickets" is not a model name',
        "entity_version: must be a number, or an alias",
        "the percentages sum to 50, not to 100",
        'no entity is called "tikets" — did you mean "tickets"?',
        "task: llm/v1/embeddings is not served",
        "threshold: cannot be set",
    ):
        assert words in said


def test_traffic_must_be_said_where_there_is_a_choice() -> None:
    values = config(LOCAL)
    del values["traffic_config"]
    assert "traffic_config: missing" in refused(values)
    twice = config(LOCAL)
    twice["traffic_config"]["routes"] = [{"served_model_name": "big", "traffic_percentage": 50}] * 2
    assert '"big" has 2 routes' in refused(twice)
    twice["served_entities"][1]["name"] = "tickets"
    assert 'two entities are called "tickets"' in refused(twice)
    assert "at least one entity" in refused({"served_entities": []})


def test_a_secret_is_named_and_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secret_variable("{{secrets/prod-eu/open.ai}}") == "PROD_EU_OPEN_AI"
    assert secret_variable("{{ secrets/a/b }}") == "A_B"
    assert secret_variable("sk-123") is None
    values = config(HOSTED)
    assert "the variable PROD_OPENAI is not set; export PROD_OPENAI=…" in refused(values)
    monkeypatch.setenv("PROD_OPENAI", "sk-live-1")
    assert "sk-live-1" not in json.dumps(parse_config("desk", values).body)


@pytest.mark.parametrize(
    "keys",
    [
        {"openai_api_key_plaintext": "sk-live-1"},
        {"openai_api_key": "sk-live-1"},
        {"openai_api_key": {"value": "sk-live-1"}, "openai_api_base": 7},
        "sk-live-1",
    ],
)
def test_a_key_in_plain_text_is_refused_and_not_repeated(keys: Any) -> None:
    said = refused(external(openai_config=keys))
    assert "sk-live-1" not in said
    assert "openai_config" in said


def test_a_key_in_plain_text_is_answered_with_what_to_write() -> None:
    said = refused(external(openai_config={"openai_api_key_plaintext": "x", "openai_api_base": LOCAL}))
    assert 'write openai_api_key: "{{secrets/scope/key}}"' in said
    assert "would be kept on disk" in said


def test_other_providers_are_reached_or_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WS_TOKEN", "t")
    token = {"databricks_workspace_url": "https://adb-1.net/", "databricks_api_token": "{{secrets/ws/token}}"}
    own = {"provider": "databricks-model-serving", "openai_config": None, "databricks_model_serving_config": token}
    prices = {"smallfirst": {"prices": {"tokens": {"chat": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}}}}
    found = parse_config("desk", {**external(name="chat", **own), **prices}).plan.external[0].endpoint
    assert (found.base_url, found.api_key_env) == ("https://adb-1.net/serving-endpoints", "WS_TOKEN")
    custom = {"custom_provider_url": "http://localhost:8001/v1/chat/completions"}
    own = {"provider": "custom", "openai_config": None, "custom_provider_config": custom}
    assert parse_config("desk", external(**own)).plan.external[0].endpoint.base_url == "http://localhost:8001/v1"
    custom["api_key_auth"] = {"key": "X-Key", "value": "{{secrets/a/b}}"}  # type: ignore[assignment]
    assert "give bearer_token_auth" in refused(external(**own))
    assert "anthropic has an API of its own" in refused(external(provider="anthropic"))
    assert 'did you mean "openai"' in refused(external(provider="opnai"))
    assert "custom_provider_config: missing" in refused(external(provider="custom"))
    azure = {"openai_api_type": "azure", "openai_api_base": HOSTED, "openai_api_key": "{{secrets/ws/token}}"}
    assert "Azure" in refused(external(openai_config=azure))
    keyless = {"openai_api_base": HOSTED}
    assert 'needs a key: "{{secrets/scope/key}}"' in refused(external(openai_config=keyless))


def test_an_unknown_price_is_an_error_that_says_where_to_write_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROD_OPENAI", "sk")
    own = {"openai_api_key": "{{secrets/prod/openai}}", "openai_api_base": "https://llm.example.com/v1"}
    said = refused(external(name="house-7b", openai_config=own))
    assert 'no price for "house-7b"' in said
    assert 'smallfirst: {prices: {tokens: {"house-7b"' in said


def test_a_model_on_this_machine_is_paid_by_the_hour() -> None:
    assert parse_config("desk", external()).plan.external[0].endpoint.priced_by == "machine"
    price = {"gpt-4o-mini": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}
    own = parse_config("desk", {**external(), "smallfirst": {"prices": {"tokens": price}}})
    assert own.plan.external[0].endpoint.priced_by is None


def test_a_cascade_takes_the_one_external_entity_as_fallback() -> None:
    values = config(LOCAL)
    del values["traffic_config"]
    for block in ("smallfirst", "routing"):
        found = parse_config("desk", {**values, block: {"strategy": "cascade"}})
        assert found.plan.cascade is not None
        assert found.plan.cascade.fallback == "big"
        assert found.plan.percent == {"tickets": 100}
    wrong = {**values, "routing": {"strategy": "cascade", "fallback": "bigg"}}
    assert 'no external entity is called "bigg" — did you mean "big"?' in refused(wrong)
    assert "only applies to strategy: cascade" in refused({**config(LOCAL), "routing": {"fallback": "big"}})
    assert "needs a registered model" in refused({**external(), "routing": {"strategy": "cascade"}})
    assert "more than one block" in refused({**values, "routing": {}, "smallfirst": {}})


def test_an_update_changes_what_it_speaks_of() -> None:
    own = {"smallfirst": {"server": {"port": 8123}, "sticky_by": ["team"]}}
    before = parse_config("desk", {**config(LOCAL), "tags": [{"key": "a"}], **own}).body
    routes = [
        {"served_model_name": "tickets", "traffic_percentage": 5},
        {"served_model_name": "big", "traffic_percentage": 95},
    ]
    found = parse_config("desk", {"traffic_config": {"routes": routes}}, before=before)
    assert found.plan.percent == {"tickets": 5, "big": 95}
    assert (found.settings.port, found.plan.sticky_by, found.body["tags"]) == (8123, ("team",), [{"key": "a"}])
    alone = parse_config("desk", {"served_entities": config(LOCAL)["served_entities"][:1]}, before=before)
    assert alone.plan.percent == {"tickets": 100}
    stays = parse_config("desk", {"smallfirst": {"strategy": "cascade", "fallback": "big"}}, before=before)
    assert (stays.settings.port, stays.plan.sticky_by) == (8123, ("user",))


@pytest.mark.parametrize(
    ("name", "good"), [("a.B_c-9", True), ("..", False), ("a/b", False), ("", False), ("a" * 129, False)]
)
def test_a_name_is_never_a_path(name: str, good: bool) -> None:
    assert is_valid_name(name) is good
    if name and not good:
        assert "name" in refused(config(LOCAL), name)


def test_a_server_that_others_reach_needs_a_key() -> None:
    said = refused({**config(LOCAL), "smallfirst": {"server": {"host": "0.0.0.0"}}})
    assert "can be reached from other machines" in said


def test_the_configs_of_the_document_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPPORT_OPENAI_KEY", "sk")
    text = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    blocks = [ast.parse(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    calls = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.Call)]
    verbs = {call.func.attr: call for call in calls if isinstance(call.func, ast.Attribute)}
    values = {word.arg: ast.literal_eval(word.value) for word in verbs["create_endpoint"].keywords}
    found = parse_config(values["name"], values["config"])
    assert found.plan.percent == {"tickets": 90, "gpt": 10}
    changed = parse_config(None, ast.literal_eval(verbs["update_endpoint"].args[1]), before=found.body)
    assert changed.plan.percent == {"tickets": 100, "gpt": 0}
