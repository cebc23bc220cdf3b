"""requirements.lock pins what smallfirst[serve,postgres] needs, in pyproject's ranges, each version with its hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY = re.compile(r"([a-z0-9-]+)==([^\s\\]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
PINNED = {name: version for name, version, _ in ENTRY.findall(LOCK)}


LOCKED = [one for extra in ("serve", "postgres") for one in PROJECT["optional-dependencies"][extra]]


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
