"""The manifests in deploy/: valid for Kubernetes, closed by default, and their commands are those that there are."""

import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from smallfirst.interfaces.cli.main import COMMANDS
from smallfirst.serving.replicas import ENVIRONMENT
from smallfirst.serving.settings import ServeSettings

ROOT = Path(__file__).parents[2] / "deploy"
KUSTOMIZATIONS = sorted(path.parent for path in ROOT.rglob("kustomization.yaml"))
VERSIONS = ("1.30", "1.34")
"""Kubernetes versions whose schemas are asked; `preStop: sleep` begins with the first."""


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(ROOT.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(ROOT)}", document


ALL = list(documents())
OURS = ("Kustomization", "RayService", "RayJob")
BUILT_IN = [
    pytest.param(each, id=f"{where} {each['kind']}") for where, each in ALL if each.get("kind", OURS[0]) not in OURS
]
OF_RAY = [pytest.param(each, id=where) for where, each in ALL if each.get("kind") in OURS[1:]]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, also those of Ray's own kinds."""
    for where, each in ALL:
        if each.get("kind") == "Deployment":
            yield where, each["spec"]["template"]
        if each.get("kind") in OURS[1:]:
            cluster = each["spec"].get("rayClusterConfig") or each["spec"]["rayClusterSpec"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                yield where, group["template"]


PODS = [pytest.param(pod, id=f"{where} {n}") for n, (where, pod) in enumerate(pods())]


@pytest.mark.parametrize("document", BUILT_IN)
def test_each_object_is_valid(document: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("template", PODS)
def test_each_pod_is_valid_and_confined(template: dict[str, Any]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", **template["metadata"]},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, VERSIONS[0], strict=True)
    assert template["spec"]["automountServiceAccountToken"] is False
    for container in template["spec"]["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        assert container["livenessProbe"]
        assert container["readinessProbe"]
        for variable in container["env"]:  # a secret is named, never written
            secret = re.search("KEY$|PASSWORD|TOKEN|LEDGER", variable["name"])
            assert ("valueFrom" in variable) == bool(secret), variable


@pytest.mark.parametrize("document", OF_RAY)
def test_a_ray_cluster_asks_for_its_token(document: dict[str, Any]) -> None:
    cluster = document["spec"].get("rayClusterConfig") or document["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert "runtimeEnvYAML" not in document["spec"]


def test_ray_serve_is_configured_as_the_verb_does() -> None:
    [service] = [each["spec"] for _, each in ALL if each.get("kind") == "RayService"]
    config = yaml.safe_load(service["serveConfigV2"])
    [application] = config["applications"]
    module, _, function = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    check_arguments(["serve", *application["args"]["serve"]])
    for group in (service["rayClusterConfig"]["headGroupSpec"], *service["rayClusterConfig"]["workerGroupSpecs"]):
        variables = {each["name"]: each.get("value") for each in group["template"]["spec"]["containers"][0]["env"]}
        assert ENVIRONMENT.items() <= variables.items()


def test_commands_are_those_of_the_command_line() -> None:
    found = [shlex.split(each["spec"]["entrypoint"])[1:] for _, each in ALL if each.get("kind") == "RayJob"]
    for where, pod in pods():
        if "base/" in where:
            found += [pod["spec"]["containers"][0]["args"]]
    for path in (ROOT / "skypilot").glob("*.yaml"):
        run = yaml.safe_load(path.read_text(encoding="utf-8"))["run"]
        found += [shlex.split(line)[1:] for line in run.splitlines()]
    assert {arguments[0] for arguments in found} == {"serve", "proxy", "score", "train"}
    for arguments in found:
        check_arguments(arguments)


def check_arguments(arguments: list[str]) -> None:
    """Every option of a command line is one that its verb has."""
    verb: click.Command = COMMANDS.get(arguments[0])
    known = {option for parameter in verb.params for option in parameter.opts}
    assert {each for each in arguments if each.startswith("--")} <= known, arguments


def test_a_pod_has_longer_to_stop_than_its_drain_takes() -> None:
    [serve] = [pod["spec"] for where, pod in pods() if where.endswith("base/serve.yaml")]
    before_s = serve["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert serve["terminationGracePeriodSeconds"] > before_s + ServeSettings().drain_s + 10


@pytest.mark.skipif(shutil.which("kustomize") is None, reason="needs kustomize")
@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_each_kustomization_builds_what_is_valid(folder: Path) -> None:
    built = subprocess.run(["kustomize", "build", folder], capture_output=True, text=True, check=True).stdout
    for document in yaml.safe_load_all(built):
        if document["kind"] not in OURS:
            kubernetes_validate.validate(document, VERSIONS[0], strict=True)
