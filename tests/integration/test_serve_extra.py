"""A task of linear models is trained, served and checked where packages are absent; one that is missing is named."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
from fixtures.endpoints import large_server
from fixtures.entry_points import PYPROJECT
from fixtures.preflight import write_task

from smallfirst.base.errors import EXTRAS
from smallfirst.base.paths import home
from smallfirst.path.project.run_folder import RunFolder

WITHOUT = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
absent = {names}
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in absent else find_spec(name, *more)
"""
NOT_SERVE = {name for name, extra in EXTRAS.items() if extra != "serve"}
MAIN = "from smallfirst.interfaces.cli.main import main\nmain()"


def write_desk(folder: Path, url: str) -> None:
    """A task that words answer, with a large model at an address."""
    rows = [
        {"text": f"{word} number {i} of {i * 7919 % 1000}", "label": label}
        for i in range(60)
        for word, label in (("card", "cards"), ("fee", "fees"), ("pin", "codes"))
    ]
    large = {"endpoint": {"base_url": url, "model": "big", "priced_by": "machine", "api_key_env": "NO_KEY"}}
    write_task(folder, {"train": rows}, ladder=["words"], minutes=20, gate={"accuracy_at_least": 0.8}, large=large)


def test_a_linear_task_runs_without_pytorch_and_is_served_by_its_extra_alone(tmp_path: Path, empty_store: Path) -> None:
    """The one test that starts the command line's `run` and `serve` in processes of their own."""
    shutil.copy(empty_store, home())
    with large_server("fees") as large:
        write_desk(tmp_path, large.url)
        code = WITHOUT.format(names={"torch", "transformers", "peft"}) + MAIN
        ran = subprocess.run(
            [sys.executable, "-c", code, "run", str(tmp_path), "--json"], capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        outcome, run_folder = json.loads(ran.stdout), RunFolder.latest("desk")
        assert list(outcome["paths"]) == ["large", "words", "routed"]
        assert outcome["promoted"]["candidate"] == "words"
        fitted = run_folder.fitted()
        assert (fitted.ladder, fitted.fitted) == (("words",), ("words",))
        assert outcome["minutes"]["words"] == fitted.minutes["words"] < 1
        assert "Fitted in: words" in (run_folder.path / "report.html").read_text(encoding="utf-8")
        assert not (run_folder.path / "model").exists()
        code = WITHOUT.format(names=NOT_SERVE) + MAIN
        command = [sys.executable, "-c", code, "serve", str(tmp_path), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
            lines: list[str] = []
            try:
                while not (found := re.search(r"http://127.0.0.1:\d+/v1", lines[-1] if lines else "")):
                    lines.append(server.stdout.readline())
                    assert lines[-1], "".join(lines)
                small, big = (_ask(found[0], model) for model in ("desk", "desk-large"))
            finally:
                server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)
    assert (small["smallfirst"]["route"], small["choices"][0]["message"]["content"]) == ("small", "cards")
    assert big["choices"][0]["message"]["content"] == "fees"
    assert server.returncode == 0


def _ask(url: str, model: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "card number 3 of 21"}]}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_missing_package_names_its_extra() -> None:
    code = WITHOUT.format(names={"uvicorn"}) + "from smallfirst import serve"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "This step needs a package that is not installed: uvicorn" in done.stderr
    assert 'next: pip install "smallfirst[serve]"' in done.stderr


def test_rows_are_checked_with_the_base_alone() -> None:
    code = WITHOUT.format(names={*EXTRAS}) + MAIN
    task_file = PYPROJECT.parent / "examples" / "claims_desk" / "task.yaml"
    command = [sys.executable, "-c", code, "check", str(task_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GO")


def test_every_extra_that_errors_name_exists() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    assert len(project["dependencies"]) <= 15
