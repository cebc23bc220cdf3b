"""Databricks' config: read as it is, and refused with what is wrong with it."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures.endpoints import NAME, config

from smallfirst.base.errors import ConfigError
from smallfirst.interfaces.mlflow_deployments.config import EndpointBody, parse_config


def refused(values: dict[str, Any], name: str | None = "desk") -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(name, values)
    return str(caught.value)


def test_both_call_shapes_and_both_words_of_a_route_mean_the_same() -> None:
    inner = config(first=80, version="@champion")
    expected = parse_config("desk", inner)
    assert expected.references == {"tickets": f"{NAME}@champion", "next": f"{NAME}/2"}
    assert expected.config.percent == {"tickets": 80, "next": 20}
    assert parse_config(None, {"name": "desk", "config": inner}) == expected
    newer_routes = [
        {"served_entity_name": route["served_model_name"], "traffic_percentage": route["traffic_percentage"]}
        for route in inner["traffic_config"]["routes"]
    ]
    newer = parse_config("desk", {**inner, "traffic_config": {"routes": newer_routes}})
    assert newer.config.percent == expected.config.percent
    assert 'two names: "desk" and "other"' in refused({"name": "other", "config": inner})


def test_what_has_no_effect_is_not_kept_and_what_is_unknown_is_refused() -> None:
    values = config(tags=[{"key": "team"}], rate_limits=[{"calls": 10}], route_optimized=True)
    values["served_entities"][0]["environment_vars"] = {"TOKEN": "very-secret"}
    found = parse_config("desk", values)
    assert values["route_optimized"]  # the caller's own config stays as it was
    assert found.tags == [{"key": "team"}]
    assert not re.search("very-secret|workload|scale_to_zero|rate_limits", found.model_dump_json())
    values["served_entities"][0]["enttiy_name"] = "x"
    assert 'unknown setting — did you mean "entity_name"?' in refused(values)


def test_a_key_in_a_config_is_refused_and_not_repeated() -> None:
    hosted = {"name": "gpt-4o-mini", "openai_config": {"openai_api_key": "sk-live-1"}}
    said = refused({"served_entities": [{"entity_name": NAME, "external_model": hosted}]})
    assert "external_model: unknown setting" in said
    assert "sk-live-1" not in said


ROUTE_TWICE = [{"served_model_name": "next", "traffic_percentage": 50}] * 2


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({**config(), "traffic_config": None}, "sum to 0, not to 100"),
        ({**config(), "traffic_config": {"routes": ROUTE_TWICE}}, "sum to 50, not to 100"),
        ({"served_entities": config()["served_entities"][1:] * 2}, 'two entities are called "next"'),
        ({"served_entities": []}, "at least 1 item"),
        ({"served_entities": [{"name": "a"}]}, "entity_name: missing"),
        ({"served_entities": [{"name": "../a", "entity_name": NAME}]}, "name: String should match"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(values: dict[str, Any], rule: str) -> None:
    assert rule in refused(values)


def test_the_configs_of_the_document_are_read() -> None:
    text = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text(encoding="utf-8")
    blocks = [ast.parse(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    calls = [node for block in blocks for node in ast.walk(block) if isinstance(node, ast.Call)]
    verbs = {call.func.attr: call for call in calls if isinstance(call.func, ast.Attribute)}
    values = {word.arg: ast.literal_eval(word.value) for word in verbs["create_endpoint"].keywords}
    found = parse_config(values["name"], values["config"])
    assert found.config.percent == {"tickets": 90, "next": 10}
    assert EndpointBody.model_validate(json.loads(found.model_dump_json(exclude_unset=True))) == found
    changed = parse_config(None, ast.literal_eval(verbs["update_endpoint"].args[1]), before=found)
    assert changed.config.percent == {"tickets": 0, "next": 100}
