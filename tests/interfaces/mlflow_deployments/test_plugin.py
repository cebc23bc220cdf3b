"""Databricks' dict through MLflow's own client, `get_deploy_client("smallfirst")`, and its HTTP client beside it."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.deployments
import pandas
import pytest
from fixtures.endpoints import NAME, Large, config, large_server, register_tiny, register_words
from mlflow.deployments import BaseDeploymentClient, get_deploy_client, interface
from mlflow.deployments.plugin_manager import DeploymentPlugins
from mlflow.exceptions import MlflowException

from smallfirst.data.dataset import Dataset
from smallfirst.interfaces.mlflow_deployments import endpoints
from smallfirst.interfaces.mlflow_deployments import plugin as mlflow_plugin
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Request
from smallfirst.tasks.classify import Classify

MODULE = "smallfirst.interfaces.mlflow_deployments.plugin"
ASKED = {"messages": [{"role": "user", "content": "where is my card"}]}


def databricks_config(api_base: str) -> dict[str, Any]:
    """The argument of a notebook on Databricks, but for its names."""
    return {"name": "support-desk", "config": config(api_base)}


@pytest.fixture(autouse=True)
def _installed() -> None:
    """MLflow knows the plugin, whether or not this checkout is installed."""
    interface.plugin_store.register("smallfirst", MODULE)


@pytest.fixture(scope="module")
def large() -> Iterator[Large]:
    with large_server() as found:
        yield found


@pytest.fixture(scope="module")
def created(
    tmp_path_factory: pytest.TempPathFactory, toy_rows: Dataset, toy_task: Classify, large: Large, warm_jobs: None
) -> Iterator[dict[str, Any]]:
    """The endpoint `support-desk`, as MLflow's client gave it back."""
    folder = tmp_path_factory.mktemp("plugin")
    interface.plugin_store.register("smallfirst", MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(folder / "state"))
        patch.setenv("PROD_OPENAI", "sk-live-1")
        register_words(folder / "model", toy_rows, toy_task)
        yield get_deploy_client("smallfirst").create_endpoint(config=databricks_config(large.url))
        for endpoint in endpoints.all_endpoints():
            endpoints.delete(endpoint.name)


def test_mlflow_finds_the_plugin_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plugin_of_this_test-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-this-test\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[mlflow.deployments]\nsmallfirst = {MODULE}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert DeploymentPlugins()["smallfirst"] is mlflow_plugin


def test_the_module_has_what_mlflow_looks_for_and_one_client() -> None:
    members = dict(inspect.getmembers(mlflow_plugin, inspect.isclass))
    clients = [c for c in members.values() if issubclass(c, BaseDeploymentClient) and c is not BaseDeploymentClient]
    assert clients == [mlflow_plugin.SmallfirstClient]
    assert list(inspect.signature(mlflow_plugin.run_local).parameters) == ["name", "model_uri", "flavor", "config"]
    assert "{{secrets/scope/key}}" in mlflow_plugin.target_help()


def test_databricks_config_makes_an_endpoint_that_databricks_words_describe(created: dict[str, Any]) -> None:
    assert created["name"] == "support-desk"
    assert created["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert [entity["name"] for entity in created["config"]["served_entities"]] == ["tickets", "big"]
    assert created["config"]["traffic_config"] == databricks_config("")["config"]["traffic_config"]
    assert "sk-live-1" not in json.dumps(created)
    client = get_deploy_client("smallfirst")
    assert client.get_endpoint("support-desk") == created
    assert [one["name"] for one in client.list_endpoints()] == ["support-desk"]


def test_predict_answers_a_chat_and_refuses_rows(created: dict[str, Any]) -> None:
    client = get_deploy_client("smallfirst")
    chat = client.predict(endpoint="support-desk", inputs=ASKED)
    assert chat.choices[0]["message"]["content"] == "card_arrival"
    assert chat["model"] == "support-desk"
    for inputs in (pandas.DataFrame({"text": ["where is my card"]}), ["where is my card"]):
        with pytest.raises(MlflowException, match="inputs are a body"):
            client.predict(endpoint="support-desk", inputs=inputs)
    assert client.predict(deployment_name="support-desk", inputs=ASKED)["choices"] == chat["choices"]


def test_a_stream_is_chunks_that_make_up_the_answer(created: dict[str, Any]) -> None:
    chunks = list(get_deploy_client("smallfirst").predict_stream(endpoint="support-desk", inputs=ASKED))
    assert chunks[0]["object"] == "chat.completion.chunk"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == "card_arrival"
    with pytest.raises(MlflowException, match="messages"):
        list(get_deploy_client("smallfirst").predict_stream(endpoint="support-desk", inputs={}))


def test_mlflows_own_http_client_asks_the_same_server(created: dict[str, Any], large: Large) -> None:
    theirs = get_deploy_client(created["url"])
    assert theirs.predict(endpoint="support-desk", inputs=ASKED)["choices"][0]["message"]["content"] == "card_arrival"


def test_an_update_moves_the_traffic(created: dict[str, Any], large: Large) -> None:
    client = get_deploy_client("smallfirst")
    shares = databricks_config(large.url)["config"]["traffic_config"]["routes"]
    for route, percent in zip(shares, (0, 100), strict=True):
        route["traffic_percentage"] = percent
    updated = client.update_endpoint_config("support-desk", {"traffic_config": {"routes": shares}})
    assert (updated["config"]["config_version"], updated["url"]) == (2, created["url"])
    found = client.predict(endpoint="support-desk", inputs=ASKED)
    assert found["choices"][0]["message"]["content"] == "refund_request"
    assert large.keys[-1] == "Bearer sk-live-1"


def test_a_deployment_is_an_endpoint_of_one_model(
    created: dict[str, Any], tmp_path: Path, tiny_folder: Path, toy_task: Classify
) -> None:
    folder = register_tiny(tmp_path / "tiny", tiny_folder, toy_task, name="main.ml.tiny")
    expected = asyncio.run(load_model(folder).complete(Request.ask("where is my card"))).text
    found = mlflow.deployments.run_local("smallfirst", "alone", "models:/main.ml.tiny@champion")
    client = get_deploy_client("smallfirst")
    try:
        assert found["name"] == "alone"
        assert client.get_deployment("alone")["config"]["served_entities"][0]["live_version"] == "1"
        assert {one["name"] for one in client.list_deployments()} == {"alone", "support-desk"}
        assert client.predict("alone", inputs=ASKED)["choices"][0]["message"]["content"] == expected
        client.update_deployment("alone", f"models:/{NAME}/1")
        assert client.get_deployment("alone")["config"]["config_version"] == 2
        assert client.predict("alone", inputs=ASKED)["choices"][0]["message"]["content"] == "card_arrival"
    finally:
        client.delete_deployment("alone")
    client.delete_deployment("alone")
    with pytest.raises(MlflowException, match='no endpoint is called "alone"'):
        client.get_deployment("alone")


def test_every_error_is_mlflows_in_smallfirsts_words(large: Large) -> None:
    client = get_deploy_client("smallfirst")
    with pytest.raises(MlflowException, match="at least 1 item") as caught:
        client.create_endpoint("desk", {"served_entities": []})
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    with pytest.raises(MlflowException, match='no endpoint is called "desk"') as caught:
        client.predict(endpoint="desk", inputs=ASKED)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(MlflowException, match="no endpoint is named"):
        client.predict(inputs=ASKED)
    client.delete_endpoint("desk")
