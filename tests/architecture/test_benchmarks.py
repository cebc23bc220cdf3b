"""Benchmarks stay runnable: each module loads, and every name that it takes from the package exists."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest
from fixtures import warm_processes

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "benchmarks").rglob("*.py"))
LOAD = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # a peer that is compared with, installed for that benchmark alone
        if error.name.partition(".")[0] in ("smallfirst", "benchmarks"):
            raise
"""


def test_every_benchmark_loads(warm_parent: None) -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    done = warm_processes.run([sys.executable, "-c", LOAD, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT / "benchmarks")) for path in MODULES])
def test_every_name_taken_from_the_package_exists(path: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "smallfirst":
            module = importlib.import_module(node.module or "")
            missing += [f"{node.module}.{one.name}" for one in node.names if not _has(module, one.name)]
    assert missing == []


def _has(module: object, name: str) -> bool:
    if hasattr(module, name):
        return True
    try:
        importlib.import_module(f"{module.__name__}.{name}")  # type: ignore[attr-defined]
    except ModuleNotFoundError:
        return False
    return True
