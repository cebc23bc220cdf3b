"""The README shows the packages that there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def readme_tree() -> ModuleType:
    """tools/readme_tree.py as a module."""
    spec = importlib.util.spec_from_file_location("readme_tree", ROOT / "tools" / "readme_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tree_in_the_readme_is_that_of_the_package_docstrings(readme_tree: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_tree.updated(readme) == readme, "run: python tools/readme_tree.py"


def test_every_package_has_a_summary_of_one_line(readme_tree: ModuleType) -> None:
    for line in readme_tree.tree().splitlines()[1:]:
        name, _, words = line.strip().partition(" ")
        assert words.strip(), f"{name} has no docstring"
        assert len(line) <= 140, f"the first docstring line of {name} is too long"
