"""The README is one screen, and the layout page shows the packages that there are."""

import re
from pathlib import Path

from tools import layout_tree

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120
    assert len(README.split()) < 900


def test_every_table_of_the_readme_has_headers() -> None:
    """A row of dashes stands below a row of names."""
    headers = re.findall(r"^(\|.*\|)\n\|[-|]+\|$", README, re.MULTILINE)
    assert headers
    assert [line for line in headers if not line.strip("| ")] == []


def test_the_tree_on_the_layout_page_is_that_of_the_package_docstrings() -> None:
    page = layout_tree.PAGE.read_text(encoding="utf-8")
    assert layout_tree.updated(page) == page, "run: python tools/layout_tree.py"


def test_every_package_has_a_summary_of_one_line() -> None:
    for line in layout_tree.tree().splitlines()[1:]:
        name, _, words = line.strip().partition(" ")
        assert words.strip(), f"{name} has no docstring"
        assert len(line) <= 140, f"the first docstring line of {name} is too long"
