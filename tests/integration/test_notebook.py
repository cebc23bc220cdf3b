"""The notebook runs from top to bottom, in an event loop as notebooks have one."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_its_cells_run_where_an_event_loop_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    (tmp_path / "claims_desk").symlink_to(EXAMPLES / "claims_desk")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SMALLFIRST_HOME")
    space: dict[str, Any] = {}

    async def run_in_a_loop() -> None:
        for cell in cells[:-1]:
            exec(compile(cell, "quickstart.ipynb", "exec"), space)

    asyncio.run(run_in_a_loop())
    assert space["summary"].promoted.candidate == "words"
    assert 0.4 < eval(cells[-1].rpartition("\n")[2], space | _rows(cells[-1], space)) <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["claims_desk", "desk"]


def _rows(cell: str, space: dict[str, Any]) -> dict[str, Any]:
    exec(cell.rpartition("\n")[0], space)
    return space
