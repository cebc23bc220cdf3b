"""Importing does nothing: no heavy package is loaded before a stage needs it."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import smallfirst

ROOT = Path(smallfirst.__file__).parent
HEAVY = {"torch", "transformers", "peft", "mlflow", "starlette", "uvicorn", "sklearn", "xllamacpp", "aiohttp"}
DOORS = {
    "torch": ("models", "training"),
    "transformers": ("models", "training"),
    "peft": ("models", "training"),
    "mlflow": ("registry", "interfaces"),
    "starlette": ("serving",),
    "uvicorn": ("traffic", "serving"),
    "xllamacpp": ("models",),
    "aiohttp": ("traffic", "models"),
    "httpx": (),
}
"""Which part of the package may import a heavy dependency at all."""


def loaded(module: str) -> set[str]:
    """Return the top-level packages that a fresh process has loaded after it imported `module`."""
    code = f"import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def imported(module: str) -> set[str]:
    """Return the heavy packages among those."""
    return HEAVY & loaded(module)


def test_importing_the_package_loads_none_of_its_requirements() -> None:
    required = {"pydantic", "numpy", "scipy", "click", "yaml", "jinja2", "aiohttp", *HEAVY}
    assert "smallfirst" in (found := loaded("smallfirst"))
    assert found & required == set()


def test_the_command_line_loads_nothing_heavy_before_it_knows_the_verb() -> None:
    assert imported("smallfirst.interfaces.cli.main") == set()


@pytest.mark.parametrize(
    ("modules", "may_load"),
    [
        ("smallfirst.path.project.task_file, smallfirst.routing.router, smallfirst.measuring.gate", set()),
        ("smallfirst.serving.app, smallfirst.interfaces.openai_finetuning.plugin", {"aiohttp", "starlette", "uvicorn"}),
    ],
)
def test_records_and_the_gateway_process_load_no_torch(modules: str, may_load: set[str]) -> None:
    assert imported(modules) <= may_load


def test_every_public_name_is_there_and_no_other() -> None:
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    found = {node.names[0].name for node in stub.body if isinstance(node, ast.ImportFrom)} - {"ModuleType"}
    assert len(found) > 150
    assert {*dir(smallfirst)} == {*found, "__version__", "foundation_model"}
    assert {*smallfirst.__all__} < {*dir(smallfirst)}
    for name in dir(smallfirst):
        assert getattr(smallfirst, name) is not None
    with pytest.raises(AttributeError, match="module 'smallfirst' has no attribute 'trian'"):
        _ = smallfirst.trian  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", sorted(DOORS))
def test_a_heavy_dependency_has_one_door(package: str) -> None:
    inside = {room for room, name in _imports() if name.partition(".")[0] == package}
    assert inside <= set(DOORS[package])


@cache
def _imports() -> frozenset[tuple[str, str]]:
    return frozenset(
        (path.relative_to(ROOT).parts[0], name)
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _names(node)
    )


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
