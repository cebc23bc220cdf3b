"""What every file of the project must be: named by its subject, short, explained, tested, and about itself only."""

import ast
import re
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import smallfirst

PACKAGE = Path(smallfirst.__file__).parent
TESTS = Path(__file__).parents[1]
PROJECT = TESTS.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted(TESTS.rglob("test_*.py"))
NAMELESS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "tools", "base_utils"}
MOST_LINES = 600
MOST_FILES = 20
MOST_AT_ROOT = 9
WHOLE_PROJECT = ("architecture", "integration")
"""Folders of tests that are about no single module."""

# Put together from halves, so that this list does not find itself.
ELSEWHERE = [
    "/wo" + "rk/",
    "/ro" + "ot/",
    "/ho" + "me/",
    "/Us" + "ers/",
    "C:" + "\\",
    "/t" + "mp/",
    "scra" + "tch/",
    "/ve" + "nv/bin",
    "files.python" + "hosted",
    "TO" + "DO",
    "FIX" + "ME",
    "as an " + "AI",
]
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".css", ".js", ".json", ".jsonl", ".txt", ""}
LOOKED_AT = ("smallfirst", "tests", "examples", "docs", "benchmarks", ".ci")


def texts() -> list[Path]:
    """Every text file that belongs to the project."""
    found = [*PROJECT.iterdir(), *(path for name in LOOKED_AT for path in (PROJECT / name).rglob("*"))]
    return sorted(path for path in found if path.is_file() and path.suffix in TEXT and not _is_by_product(path))


def _is_by_product(path: Path) -> bool:
    """True for what tools and runs leave behind."""
    parts = path.relative_to(PROJECT).parts
    return parts[0] == ".git" or any(p.startswith(".") and p not in (".ci", ".gitignore") for p in parts)


def shown(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(PROJECT)) for path in paths]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_says_what_its_idea_is() -> None:
    without = [path for path in MODULES if path.stat().st_size and not ast.get_docstring(tree(path))]
    assert shown(without) == []


def test_no_file_is_named_after_nothing() -> None:
    assert shown([path for path in (*MODULES, *TEST_FILES) if path.stem.removeprefix("test_") in NAMELESS]) == []


def test_no_module_is_longer_than_a_person_reads() -> None:
    long = [path for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]
    assert shown(long) == []


def test_every_test_file_tests_something() -> None:
    empty = [
        path
        for path in TEST_FILES
        if not any(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
            for node in tree(path).body
        )
    ]
    assert TEST_FILES
    assert shown(empty) == []


def test_tests_mirror_the_package() -> None:
    """`tests/a/test_b.py` or `tests/a/test_b_more.py` is about `smallfirst/a/b.py`, or b is the folder itself."""
    strays = []
    for path in TEST_FILES:
        folder = path.parent.relative_to(TESTS)
        top = folder.parts[0] if folder.parts else "."
        words = path.stem.removeprefix("test_").split("_")
        subjects = {"_".join(words[:i]) for i in range(1, len(words) + 1)}
        modules = {module.stem for module in (PACKAGE / folder).glob("*.py")} | {folder.name}
        if top not in WHOLE_PROJECT and not subjects & modules:
            strays.append(path)
    assert shown(strays) == []


def test_no_class_name_stands_twice() -> None:
    names = Counter(node.name for path in MODULES for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef))
    assert {name for name, n in names.items() if n > 1} == set()


def test_no_folder_holds_more_than_a_person_scans() -> None:
    folders = {path.parent for path in MODULES}
    assert shown([folder for folder in folders if len(list(folder.glob("*.py"))) > MOST_FILES]) == []
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_ROOT


def test_a_wheel_holds_every_file_that_is_no_module() -> None:
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packed = {path for pattern in settings["package-data"]["smallfirst"] for path in PACKAGE.glob(pattern)}
    others = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert shown(sorted(others - packed)) == []


def test_no_file_speaks_of_the_place_where_it_was_written() -> None:
    words = re.compile("|".join(map(re.escape, ELSEWHERE)))
    found = {str(path.relative_to(PROJECT)): words.findall(path.read_text("utf-8", "ignore")) for path in texts()}
    assert {path: said for path, said in found.items() if said} == {}
