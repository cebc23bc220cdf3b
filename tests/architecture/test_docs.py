"""Documents say what is true: every task.yaml in them is read, and every template."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from smallfirst.project.task_file import read_task_file

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n")[1] for block in BLOCKS])
def test_every_task_file_of_the_documents_is_read(block: str, tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(block, encoding="utf-8")
    assert read_task_file(tmp_path).kind in block


def test_each_kind_has_a_document_and_a_template_that_is_read() -> None:
    kinds = {"classify", "extract", "answer", "chat"}
    assert {re.search(r"kind: (\w+)", block)[1] for block in BLOCKS} == kinds  # type: ignore[index]
    for kind in kinds:
        template = ROOT / "smallfirst" / "tasks" / "templates" / f"{kind}.yaml"
        assert read_task_file(template).kind == kind


def test_settings_that_a_template_has_commented_out_are_real_ones(tmp_path: Path) -> None:
    for template in (ROOT / "smallfirst" / "tasks" / "templates").glob("*.yaml"):
        text = template.read_text(encoding="utf-8")
        lines = [re.sub(r"^(\s*)# (?=[ a-z_]+:)", r"\1", line) for line in text.splitlines()]
        (tmp_path / "task.yaml").write_text("\n".join(lines), encoding="utf-8")
        assert read_task_file(tmp_path).large is not None
