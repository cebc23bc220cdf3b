"""A ladder of linear models: the whole path without PyTorch, without a fine-tune and without weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from smallfirst.path.project.run_folder import RunFolder

WITHOUT_TORCH = """
import sys

from importlib.machinery import PathFinder

class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        absent = name.partition(".")[0] in ("torch", "transformers", "peft")
        return None if absent else super().find_spec(name, *where)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
from smallfirst.interfaces.cli.main import main
main(["run", sys.argv[1], "--json"])
"""


def test_a_linear_ladder_goes_live_where_pytorch_is_not_installed(tmp_path: Path) -> None:
    rows = [
        {"text": f"{word} number {i} of {i * 7919 % 1000}", "label": label}
        for i in range(60)
        for word, label in (("card", "cards"), ("fee", "fees"), ("pin", "codes"))
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = "name: desk\ndata: {train: train.jsonl}\nladder: [words]\nminutes: 20\ngate: {accuracy_at_least: 0.8}\n"
    (tmp_path / "task.yaml").write_text(settings, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "task.yaml")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    outcome = json.loads(ran.stdout)
    assert list(outcome["paths"]) == ["words", "routed"]
    assert outcome["promoted"]["candidate"] == "words"
    run_folder = RunFolder.latest("desk")
    fitted = run_folder.fitted()
    assert fitted is not None
    assert (fitted.ladder, fitted.fitted) == (("words",), ("words",))
    assert outcome["minutes"]["words"] == fitted.minutes["words"] < 1
    assert "Fitted in: words" in (run_folder.path / "report.html").read_text(encoding="utf-8")
    assert not (run_folder.path / "run.json").exists()
    assert not (run_folder.path / "model").exists()
