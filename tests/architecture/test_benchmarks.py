"""Benchmarks stay runnable: every name that one takes from the package or from another benchmark exists."""

import ast
import importlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT / "benchmarks")) for path in MODULES])
def test_every_name_that_is_imported_exists(path: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        for name in [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []:
            if module.startswith("smallfirst") and not _has(module, name):
                missing.append(f"{module}.{name}")
            if module.startswith("benchmarks.") and name not in _defined(module):
                missing.append(f"{module}.{name}")
    assert missing == []


def _has(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@cache
def _defined(module: str) -> set[str]:
    """Names at the top of a benchmark; it is not loaded, since it may need a peer that is not installed."""
    path = ROOT / module.replace(".", "/")
    found = {each.stem for each in path.glob("*.py")}
    for node in () if path.is_dir() else ast.parse(path.with_suffix(".py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        else:
            stored = (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
            found |= {part.id for part in stored}
    return found
