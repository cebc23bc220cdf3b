"""Image, compose file, lock and release say what the repository has: files that exist, no root, pinned versions."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import smallfirst

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
RELEASE = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = re.compile(r"([a-z0-9-]+)==([^\s\\]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
PINNED = {name: version for name, version, _ in ENTRY.findall(LOCK)}
LOCKED = [one for extra in ("serve", "postgres") for one in PROJECT["optional-dependencies"][extra]]


def test_package_changelog_and_manifest_have_one_version() -> None:
    version = PROJECT["version"]
    assert smallfirst.__version__ == version
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    production = ROOT / "deploy" / "kubernetes" / "overlays" / "production" / "kustomization.yaml"
    assert f"newTag: {version}}}" in production.read_text(encoding="utf-8")


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M) for name in line.split()[:-1]]
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_is_not_root_and_has_a_health_check_and_the_oldest_python_served() -> None:
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER 10001$", last, re.M)
    assert "HEALTHCHECK" in last
    assert re.search(r"^ARG BASE=python:3\.11-", DOCKERFILE, re.M)
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_services_wait_for_those_that_are_healthy_and_listen_to_this_machine_alone() -> None:
    services: dict[str, Any] = COMPOSE["services"]
    waits = services["smallfirst"]["depends_on"]
    assert all(
        how == {"condition": "service_healthy"} and "healthcheck" in services[name] for name, how in waits.items()
    )
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    version = re.search(r"^mlflow-skinny==(\S+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)
    assert services["mlflow"]["image"].endswith(f":v{version[1]}")


def test_actions_of_the_release_are_pinned_and_only_publishing_may_write() -> None:
    steps = [step for job in RELEASE["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)
    assert RELEASE["permissions"] == {}
    assert RELEASE["jobs"]["build"]["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("wanted", [*PROJECT["dependencies"], *(one for one in LOCKED if "smallfirst" not in one)])
def test_each_requirement_is_pinned_within_its_range(wanted: str) -> None:
    requirement = Requirement(wanted)
    version = PINNED.get(canonicalize_name(requirement.name))
    assert version, f"{wanted} is not locked: python tools/lock_requirements.py"
    assert requirement.specifier.contains(version), f"{version}: python tools/lock_requirements.py"


def test_every_line_belongs_to_a_version_with_hashes_and_none_names_an_index() -> None:
    comments, entries = LOCK.split("\n", 2)[:2], LOCK.split("\n", 2)[2]
    assert all(line.startswith("# ") for line in comments)
    assert ENTRY.sub("", entries) == ""
    assert "://" not in LOCK
    assert "torch" not in PINNED
