"""The public surface: documented by a page that runs, and sufficient, since its signatures name public types only."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import os
import pydoc
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.preflight import write_task

import smallfirst
from smallfirst.path.project.candidate_registry import CANDIDATES

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MADE_INSIDE = {"OodGate.__init__"}
"""Constructors that only the path calls: a user passes on what `load` made."""
NAMES = [name for name in dir(smallfirst) if name not in ("__version__", "foundation_model")]


def test_the_page_s_code_runs_from_rows_to_a_served_router(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": f"{word} number {i} of {i * 7919 % 1000}", "label": label}
        for i in range(40)
        for word, label in (("card", "cards"), ("fee", "fees"), ("pin", "codes"))
    ]
    small = {"base": str(tiny_folder), "training": {"duration": "1ba"}}
    settings = {"gate": {"accuracy_at_least": 0.01}, "routing": {"small": "words"}}
    write_task(tmp_path, {"train": rows}, ladder=["words", "small"], small=small, **settings)
    (tmp_path / "base").symlink_to(tiny_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CANDIDATES, "_loaded", dict(CANDIDATES._loaded))
    served: list[Any] = []
    serve = inspect.signature(smallfirst.serve)
    monkeypatch.setattr("smallfirst.serving.app.serve", lambda *a, **k: served.append(serve.bind(*a, **k)))
    space: dict[str, Any] = {"__name__": "page"}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), space)
    (call,) = served
    assert list(call.arguments["models"]) == ["tickets", "tickets-small"]
    assert "fast" in CANDIDATES.names()


def test_every_public_name_is_shown_or_is_the_type_of_a_signature() -> None:
    shown = set(re.findall(r"\b\w+\b", PAGE))
    named = {kind.__name__ for name in NAMES for _, kind in kinds_named_by(name)}
    assert sorted(set(NAMES) - shown - named) == []


@pytest.mark.parametrize("name", NAMES)
def test_signatures_name_public_types_only(name: str) -> None:
    found = [(place, kind.__name__) for place, kind in kinds_named_by(name)]
    private = {f"{place}: {kind}" for place, kind in found if kind not in NAMES and not kind.startswith("_")}
    assert private == set()


def test_help_fits_on_two_screens() -> None:
    shown = pydoc.render_doc(smallfirst, renderer=pydoc.plaintext)
    assert sum(not line.endswith(" (package)") for line in shown.splitlines()) <= 81  # and a line for each room
    assert all(re.search(rf"^    {name}\(", shown, re.MULTILINE) for name in ("init", "check", "run", "load"))


def kinds_named_by(name: str) -> Iterator[tuple[str, type]]:
    """Every class of the package that a public name's signatures and fields name, with the place."""
    for function in functions(name):
        if function.__qualname__ not in MADE_INSIDE:
            yield from ((function.__qualname__, kind) for kind in types_of(function))
    value = getattr(smallfirst, name)
    hints: dict[str, Any] = {}
    with contextlib.suppress(NameError):  # an annotation of what only a type checker imports
        hints = typing.get_type_hints(value) if inspect.isclass(value) else {}
    for field, hint in hints.items():
        if not field.startswith("_"):
            yield from ((f"{name}.{field}", kind) for kind in classes_in(hint))


def functions(name: str) -> Iterator[Any]:
    """The function of this name, or the public methods of the class."""
    value = getattr(smallfirst, name)
    if inspect.isfunction(value):
        yield value
    for attribute, member in vars(value).items() if inspect.isclass(value) else ():
        member = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isfunction(member) and (attribute == "__init__" or not attribute.startswith("_")):
            yield member


def types_of(function: Any) -> set[type]:
    """Every class of the package in a signature, those that are imported for type checkers included."""
    module = importlib.import_module(function.__module__)
    names = dict(vars(module))
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    source = importlib.import_module(str(line.module))
                    names |= {alias.asname or alias.name: getattr(source, alias.name) for alias in line.names}
    hints = typing.get_type_hints(function, names)
    return {kind for hint in hints.values() for kind in classes_in(hint)}


def classes_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, (list, tuple)):
        for part in hint:
            yield from classes_in(part)
        return
    yield from classes_in(list(typing.get_args(hint)))
    kind = typing.get_origin(hint) or hint
    if inspect.isclass(kind) and kind.__module__.startswith("smallfirst"):
        yield kind


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_that_wait_soon_sleep_unless_the_environment_says_otherwise(given: dict[str, str], spins: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    asked = "import os, smallfirst; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", asked], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == spins
