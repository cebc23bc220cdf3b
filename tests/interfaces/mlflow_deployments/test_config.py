"""Databricks' config: read as it is, refused with what is wrong with it, and never with a secret in it."""

from __future__ import annotations

import ast
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.endpoints import config

from smallfirst.base.errors import ConfigError
from smallfirst.deployment.endpoint_plan import external_model
from smallfirst.interfaces.mlflow_deployments.config import EndpointBody, parse_config, secret_variable

LOCAL = "http://127.0.0.1:9/v1"
HOSTED = "https://api.openai.com/v1"


def parsed(values: dict[str, Any], **more: Any) -> EndpointBody:
    return parse_config("desk", values, **more)


def refused(values: dict[str, Any], name: str | None = "desk") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(name, values)
    return str(caught.value)


def external(**changes: Any) -> dict[str, Any]:
    """An endpoint of one external model, some of its fields changed."""
    model = copy.deepcopy(config(LOCAL)["served_entities"][1]["external_model"])
    return {"served_entities": [{"external_model": {**model, **changes}}]}


def test_databricks_words_say_what_is_served() -> None:
    found = parsed(config(LOCAL, tickets=80, version="@champion"))
    ours, (name, *_, big) = found.plan.entities
    assert ours == ("tickets", "main.ml.tickets", "@champion", None)
    assert name == "big"
    assert big is not None
    assert (big.base_url, big.model, big.api_key_env) == (LOCAL, "gpt-4o-mini", "PROD_OPENAI")
    assert found.percent == {"tickets": 80, "big": 20}


def test_both_call_shapes_and_both_words_of_a_route_mean_the_same() -> None:
    inner = config(LOCAL)
    expected = parsed(inner)
    assert parse_config(None, {"name": "desk", "config": inner}) == expected
    assert parsed({"name": "desk", "config": inner}) == expected
    newer_routes = [
        {"served_entity_name": route["served_model_name"], "traffic_percentage": route["traffic_percentage"]}
        for route in inner["traffic_config"]["routes"]
    ]
    assert parsed({**inner, "traffic_config": {"routes": newer_routes}}).percent == expected.percent
    assert 'two names: "desk" and "other"' in refused({"name": "other", "config": inner})
    assert refused(inner, name=None).startswith('the config of endpoint ""')


def test_what_has_no_effect_is_not_kept_and_what_is_unknown_is_refused() -> None:
    values = config(
        LOCAL,
        tags=[{"key": "team", "value": "desk"}],
        rate_limits=[{"calls": 10, "key": "user", "renewal_period": "minute"}],
        route_optimized=True,
        auto_capture_config={"catalog_name": "main", "schema_name": "logs", "enabled": True},
    )
    values["served_entities"][0] |= {"workload_type": "CPU", "environment_vars": {"TOKEN": "very-secret"}}
    found = parse_config("desk", values)
    assert values["route_optimized"]  # the caller's own config stays as it was
    assert found.tags == [{"key": "team", "value": "desk"}]
    stored = found.model_dump_json()
    assert "very-secret" not in stored
    assert "workload" not in stored
    values["served_entities"][0]["enttiy_name"] = "x"
    assert 'unknown setting — did you mean "entity_name"?' in refused(values)


def test_problems_are_told_together() -> None:
    values = config(LOCAL)
    values["served_entities"][0] |= {"entity_name": "tickets"}
    values["traffic_config"]["routes"][0] |= {"traffic_percentage": 50, "served_model_name": "tikets"}
    said = refused(values)
    for words in (
        '"tickets" is not a model name',
        "sum to 50, not to 100",
        'no entity is called "tikets" — did you mean "tickets"?',
    ):
        assert words in said
    values["served_entities"][0]["entity_version"] = "newest"
    assert "entity_version: String should match" in refused(values)
    assert "threshold: unknown setting" in refused({**config(LOCAL), "smallfirst": {"threshold": 0.9}})


def test_a_secret_is_named_and_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secret_variable("{{secrets/prod-eu/open.ai}}") == "PROD_EU_OPEN_AI"
    assert secret_variable("{{ secrets/a/b }}") == "A_B"
    assert secret_variable("sk-123") is None
    values = config(HOSTED)
    assert "the variable PROD_OPENAI is not set; export PROD_OPENAI=…" in refused(values)
    monkeypatch.setenv("PROD_OPENAI", "sk-live-1")
    assert "sk-live-1" not in parsed(values).model_dump_json()


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
    if keys == {"openai_api_key": "sk-live-1"}:
        assert 'openai_api_key: must be "{{secrets/scope/key}}"' in said


ROUTE_TWICE = [{"served_model_name": "big", "traffic_percentage": 50}] * 2
KEY = {"openai_api_key": "{{secrets/prod/openai}}"}


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({**config(LOCAL), "traffic_config": None}, "sum to 0, not to 100"),
        ({**config(LOCAL), "traffic_config": {"routes": ROUTE_TWICE}}, "sum to 50, not to 100"),
        ({"served_entities": config(LOCAL)["served_entities"][1:] * 2}, 'two are called "big"'),
        ({"served_entities": []}, "at least 1 item"),
        ({"served_entities": [{"name": "a"}]}, "give entity_name and entity_version, or external_model"),
        (external(provider="anthropic"), "provider: Input should be 'openai'"),
        (external(openai_config={**KEY, "openai_api_type": "azure"}), "openai_api_type: Input should be 'openai'"),
        (external(openai_config={"openai_api_base": HOSTED}), 'needs a key; "{{secrets/scope/key}}"'),
        (external(task="llm/v1/embeddings"), "task: Input should be 'llm/v1/chat'"),
        (external(name="house-7b", openai_config={**KEY, "openai_api_base": "https://llm.example.com/v1"}),
         'smallfirst: {prices: {tokens: {"house-7b"'),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_used_says_why(
    values: dict[str, Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROD_OPENAI", "sk")
    assert rule in refused(values)


def test_a_model_on_this_machine_is_paid_by_the_hour() -> None:
    def priced_by(**own: Any) -> str | None:
        plan = parsed({**external(), **own}).plan
        (entity,) = plan.entities
        assert entity.address is not None
        return external_model(entity.address, plan.prices).config.priced_by

    assert priced_by() == "machine"
    price = {"gpt-4o-mini": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}
    assert priced_by(smallfirst={"prices": {"tokens": price}}) is None


def test_an_update_changes_what_it_speaks_of() -> None:
    price = {"gpt-4o-mini": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}
    own = {"smallfirst": {"prices": {"tokens": price}}}
    before = parsed({**config(LOCAL), "tags": [{"key": "a"}], **own})
    routes = [
        {"served_model_name": "tickets", "traffic_percentage": 5},
        {"served_model_name": "big", "traffic_percentage": 95},
    ]
    found = parsed({"traffic_config": {"routes": routes}}, before=before)
    assert found.percent == {"tickets": 5, "big": 95}
    assert (found.smallfirst, found.tags) == (before.smallfirst, [{"key": "a"}])
    alone = parsed({"served_entities": config(LOCAL)["served_entities"][:1]}, before=before)
    assert alone.percent == {"tickets": 100}


def test_the_configs_of_the_document_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPPORT_OPENAI_KEY", "sk")
    text = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    blocks = [ast.parse(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    calls = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.Call)]
    verbs = {call.func.attr: call for call in calls if isinstance(call.func, ast.Attribute)}
    values = {word.arg: ast.literal_eval(word.value) for word in verbs["create_endpoint"].keywords}
    found = parse_config(values["name"], values["config"])
    assert found.percent == {"tickets": 90, "gpt": 10}
    assert EndpointBody.model_validate(json.loads(found.model_dump_json(exclude_unset=True))) == found
    changed = parse_config(None, ast.literal_eval(verbs["update_endpoint"].args[1]), before=found)
    assert changed.percent == {"tickets": 100, "gpt": 0}
