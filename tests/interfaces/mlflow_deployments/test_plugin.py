"""Databricks' dict through MLflow's own client, `get_deploy_client("smallfirst:…")`, and its HTTP client beside it."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.endpoints import NAME, config, register_words
from fixtures.server import run_server
from mlflow.deployments import get_deploy_client, interface
from mlflow.deployments.plugin_manager import DeploymentPlugins
from mlflow.exceptions import MlflowException

from smallfirst.data.dataset import Dataset
from smallfirst.interfaces.mlflow_deployments import plugin as mlflow_plugin
from smallfirst.interfaces.mlflow_deployments.endpoints import Endpoints
from smallfirst.ledger.ledger import Ledger
from smallfirst.tasks.classify import Classify

MODULE = "smallfirst.interfaces.mlflow_deployments.plugin"
ASKED = {"messages": [{"role": "user", "content": "where is my card"}]}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, toy_rows: Dataset, toy_task: Classify) -> Iterator[Any]:
    """MLflow's client of a server, whether or not this checkout is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    interface.plugin_store.register("smallfirst", MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(folder / "state"))
        for live in (True, False):
            register_words(folder / "model", toy_rows, toy_task, live=live)
        endpoints, ledger = Endpoints(folder / "endpoints"), Ledger(folder / "ledger.db")
        with run_server({}, ledger, plugins=[endpoints]) as server:
            yield get_deploy_client(f"smallfirst://127.0.0.1:{server.port}")
        asyncio.run(endpoints.aclose())
        ledger.close()


@pytest.fixture(scope="module")
def created(client: Any) -> dict[str, Any]:
    """The endpoint `support-desk`, from the argument of a notebook on Databricks."""
    found: dict[str, Any] = client.create_endpoint(config={"name": "support-desk", "config": config()})
    return found


def test_mlflow_finds_the_plugin_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plugin_of_this_test-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-this-test\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[mlflow.deployments]\nsmallfirst = {MODULE}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert DeploymentPlugins()["smallfirst"] is mlflow_plugin


def test_an_endpoint_is_described_in_databricks_words(client: Any, created: dict[str, Any]) -> None:
    assert (created["name"], created["url"]) == ("support-desk", client.url)
    assert [entity["name"] for entity in created["config"]["served_entities"]] == ["tickets", "next"]
    assert created["config"]["traffic_config"] == config()["traffic_config"]
    assert client.get_endpoint("support-desk") == created
    assert [one["name"] for one in client.list_endpoints()] == ["support-desk"]


def test_predict_answers_a_chat_and_refuses_rows(client: Any, created: dict[str, Any]) -> None:
    chat = client.predict(endpoint="support-desk", inputs=ASKED)
    assert chat.choices[0]["message"]["content"] == "card_arrival"
    assert chat["model"] == "support-desk"
    with pytest.raises(MlflowException, match="name an endpoint and a body"):
        client.predict(endpoint="support-desk", inputs=["where is my card"])
    theirs = get_deploy_client(created["url"])  # MLflow's own HTTP client
    assert theirs.predict(endpoint="support-desk", inputs=ASKED)["choices"][0]["message"]["content"] == "card_arrival"


def test_an_update_moves_the_traffic(client: Any, created: dict[str, Any]) -> None:
    updated = client.update_endpoint_config("support-desk", {"traffic_config": config(first=0)["traffic_config"]})
    assert updated["config"]["config_version"] == 2
    assert client.predict("support-desk", ASKED)["smallfirst"]["answered_by"] == "next@2"


def test_a_deployment_is_an_endpoint_of_one_model(client: Any, created: dict[str, Any]) -> None:
    found = client.create_deployment("alone", f"models:/{NAME}@champion")
    assert (found["name"], found["flavor"]) == ("alone", "smallfirst")
    assert client.get_deployment("alone")["config"]["served_entities"][0]["live_version"] == "1"
    assert {one["name"] for one in client.list_deployments()} == {"alone", "support-desk"}
    client.update_deployment("alone", f"models:/{NAME}/1")
    assert client.get_deployment("alone")["config"]["config_version"] == 2
    assert client.predict("alone", inputs=ASKED)["choices"][0]["message"]["content"] == "card_arrival"
    for _ in range(2):
        client.delete_deployment("alone")
    with pytest.raises(MlflowException, match='no endpoint is called "alone"') as caught:
        client.get_deployment("alone")
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_every_error_is_mlflows_in_smallfirsts_words(client: Any) -> None:
    with pytest.raises(MlflowException, match="at least 1 item") as caught:
        client.create_endpoint("desk", {"served_entities": []})
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    with pytest.raises(MlflowException) as caught:
        client.predict(endpoint="desk", inputs=ASKED)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(MlflowException, match=r"does not answer: (?s:.)*smallfirst serve --plugin mlflow_deployments"):
        get_deploy_client("smallfirst://127.0.0.1:9").list_endpoints()
