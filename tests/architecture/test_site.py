"""The documentation site is built without a warning, has every page, and its reference pages are those of the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tools import reference

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_the_site_is_built_without_a_warning_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {str(page.relative_to(tmp_path / "site").with_suffix(".md")) for page in tmp_path.glob("site/**/*.html")}
    assert built >= set(pages(CONFIG["nav"]))
    assert [page for page in tmp_path.glob("site/**/*.html") if "<p>```" in page.read_text("utf-8")] == []
    outside = re.findall(r'(?:src|href)="(https?://[^"]+)"', (tmp_path / "site" / "index.html").read_text("utf-8"))
    assert {address.split("/")[2] for address in outside} <= {"zensical.org"}, "the site loads nothing from elsewhere"


def test_the_reference_pages_are_those_of_the_code() -> None:
    # In a process of its own: other tests register kinds and policies.
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run: python tools/reference.py\n{done.stdout}{done.stderr}"


def test_the_reference_shows_defaults_and_meanings() -> None:
    page = reference.settings_page()
    assert "- `patience` (integer): Stop after so many epochs in a row" in page
    assert "- `method` (`full` or `lora` or `qlora`, `full`):" in page
    assert "## routing.guarantee\n" in page
    assert "- `--port INTEGER` (`8000`):" in reference.cli_page()
    assert "#### smallfirst keys create\n" in reference.cli_page()


def test_every_page_is_in_the_navigation_once() -> None:
    listed = pages(CONFIG["nav"])
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(there)


def pages(entry: Any) -> list[str]:
    """Every page of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in pages(part)]
