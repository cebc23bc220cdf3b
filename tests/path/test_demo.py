"""The demo of the package: words fitted here, all else replayed from a recorded run, without PyTorch or network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import smallfirst
from smallfirst.base.errors import ConfigError
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.path.demo import RECORDED_RUN, demo

IN_THE_PACKAGE = Path(smallfirst.__file__).parent / "examples" / "claims_desk"
OFFLINE = """
import socket, sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name in ("torch", "transformers") else find_spec(name, *more)
def refused(*_, **__): raise OSError("there is no network")
socket.socket.connect = socket.getaddrinfo = refused
from smallfirst.interfaces.cli.main import main
main()
"""


def test_a_run_is_shown_without_pytorch_and_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight seconds: it fits the words of 600 rows in five folds, in a process of its own."""
    monkeypatch.delenv("SMALLFIRST_HOME", raising=False)
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE, "demo", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found, folder = json.loads(ran.stdout), tmp_path / "smallfirst-demo"
    assert [*found["paths"]] == ["large", "encoder", "tuned", "small", "routed"]
    assert all(path["requests_per_s"] is None for path in found["paths"].values())
    outcome = found["outcome"]
    assert (outcome["candidate"], outcome["gate"], outcome["version"]) == ("tuned", "passed", None)
    assert outcome["accuracy"] == found["paths"]["routed"]["accuracy"]
    assert [*found["minutes"]] == ["encoder", "tuned", "small", "words"]
    lines = [line.split("] ", 1)[1] for line in ran.stderr.splitlines()]
    assert lines[0].startswith("words are fitted here; what is marked replayed was recorded on 20")
    assert not any("fetches" in line or "tuned" in line for line in lines if line.startswith("fitting"))
    assert sum(line.startswith("replayed: ") for line in lines) == 8
    [words] = [line for line in lines if line.startswith("words on choosing rows")]
    assert words.split()[5] in found["left_out"]["words"]
    assert "recorded on" in (tmp_path / found["report"]).read_text("utf-8")
    [run_folder] = (folder / ".smallfirst" / "tasks" / "claims-desk").glob("*-*/")
    live = Evaluation.load(run_folder / "evaluations" / "words-choosing.json")
    assert live.accuracy.n == 600
    assert not (folder / ".smallfirst" / "mlflow.db").exists()


def test_another_task_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match="holds another task"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["task.yaml"]


def test_the_rows_stand_once_in_the_repository() -> None:
    own = Path(__file__).parents[2] / "examples" / "claims_desk"
    assert IN_THE_PACKAGE.is_symlink()
    assert IN_THE_PACKAGE.resolve() == own
    assert (own / RECORDED_RUN).stat().st_size < 200_000
