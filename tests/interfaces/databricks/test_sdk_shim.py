"""The import that existing code makes, with and without another part of `databricks` installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import smallfirst
from smallfirst.interfaces.databricks import sdk_shim as databricks

ROOT = Path(smallfirst.__file__).parents[1]

THEIRS = """
import smallfirst.interfaces.databricks.sdk_shim
from databricks.model_training import foundation_model as fm
from databricks.model_training.exceptions import ValidationError
import databricks.model_training.foundation_model as again
import smallfirst.interfaces.databricks.foundation_model as ours
import smallfirst.interfaces.databricks.exceptions as errors
assert fm is again is ours
assert ValidationError is errors.ValidationError
assert sorted(fm.__all__) == ["cancel", "create", "get", "get_checkpoints", "get_events", "get_models", "list"]
assert "torch" not in __import__("sys").modules
"""


def run(code: str, *flags: str, path: str = "") -> None:
    """Runs the code in a process of its own, in which nothing of this one is imported."""
    inside = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{path}\n{code}"
    done = subprocess.run([sys.executable, *flags, "-c", inside], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_existing_code_imports_ours_beside_another_part_of_databricks(tmp_path: Path) -> None:
    """A package of the same namespace, as databricks-sdk is one, stays importable before and after."""
    (tmp_path / "databricks" / "sdk").mkdir(parents=True)
    (tmp_path / "databricks" / "__init__.py").write_text(
        '__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'
    )
    (tmp_path / "databricks" / "sdk" / "__init__.py").write_text("here = True\n")
    first = f"sys.path.insert(0, {str(tmp_path)!r})"
    run(f"{THEIRS}\nfrom databricks.sdk import here\nassert here", path=first)
    run(f"import databricks.sdk\n{THEIRS}\nassert databricks.sdk.here", path=first)


def test_existing_code_imports_ours_without_any_other_part() -> None:
    hide = """
import importlib.machinery as machinery
real = machinery.PathFinder.find_spec
def find(name, path=None, target=None):
    return None if name == "databricks" else real(name, path, target)
machinery.PathFinder.find_spec = find
"""
    run(THEIRS, path=hide)


@pytest.mark.skipif(find_spec("databricks.sdk") is None, reason="databricks-sdk is not installed")
def test_the_installed_sdk_stays() -> None:
    run(f"{THEIRS}\nfrom importlib.util import find_spec\nassert find_spec('databricks.sdk').origin")


def test_a_second_time_changes_nothing() -> None:
    assert databricks.install() is databricks.install() is sys.modules["databricks.model_training"]
