"""`smallfirst[serve]` alone serves linear and remote models; an absent package is named by its extra."""

from __future__ import annotations

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
from fixtures.certificates import certificate
from fixtures.endpoints import large_server
from fixtures.entry_points import PYPROJECT

from smallfirst.base.errors import EXTRAS
from smallfirst.data.dataset import Dataset
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest
from smallfirst.tasks.classify import Classify

WITHOUT = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
absent = {names}
PathFinder.find_spec = lambda name, *more: None if name.partition(".")[0] in absent else find_spec(name, *more)
"""
NOT_SERVE = {name for name, extra in EXTRAS.items() if extra != "serve"}
SERVER = """
import sys
from pathlib import Path
from smallfirst import Certificate, EndpointConfig, Ledger, Router, ServeSettings, load_model, serve
from smallfirst.models.remote.model import EndpointModel
from smallfirst.models.pricing import PriceBook

small_folder, certificate, url, ledger = sys.argv[1:]
config = EndpointConfig(base_url=url, model="large", priced_by="machine", api_key_env="NO_KEY")
large = EndpointModel(config, PriceBook())
router = Router(load_model(Path(small_folder)), large, Certificate.load(Path(certificate)), name="desk")
serve({"desk": router, "large": large}, ledger=Ledger(Path(ledger)), settings=ServeSettings(port=0))
"""


def test_a_router_of_a_words_model_and_a_remote_one_is_served_without_torch(
    tmp_path: Path, toy_rows: Dataset, toy_task: Classify
) -> None:
    LinearClassifier.fit("words", toy_rows, toy_task).save(
        tmp_path / "model", Manifest(kind="words", task=toy_task, base="")
    )
    certificate(0.9).save(tmp_path / "certificate.json")
    with large_server() as large:
        arguments = [tmp_path / "model", tmp_path / "certificate.json", large.url, tmp_path / "ledger.db"]
        code = WITHOUT.format(names=NOT_SERVE) + SERVER
        command = [sys.executable, "-c", code, *map(str, arguments)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].strip()
            found = [_ask(url, text) for text in ("where is my card", "xyz")]
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)
    assert [(answer["smallfirst"]["route"], answer["choices"][0]["message"]["content"]) for answer in found] == [
        ("small", "card_arrival"),
        ("large", "refund_request"),
    ]
    assert server.returncode == 0


def _ask(url: str, text: str) -> dict[str, dict[str, str]]:
    body = {"model": "desk", "messages": [{"role": "user", "content": text}]}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_missing_package_names_its_extra() -> None:
    code = WITHOUT.format(names={"uvicorn"}) + "from smallfirst import serve"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "This step needs a package that is not installed: uvicorn" in done.stderr
    assert 'next: pip install "smallfirst[serve]"' in done.stderr


def test_rows_are_checked_with_the_base_alone() -> None:
    code = WITHOUT.format(names={*EXTRAS}) + "from smallfirst.interfaces.cli.main import main\nmain()"
    task_file = PYPROJECT.parent / "examples" / "claims_desk" / "task.yaml"
    command = [sys.executable, "-c", code, "check", str(task_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("GO")


def test_every_extra_that_errors_name_exists() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS.values()) <= set(project["optional-dependencies"])
    assert len(project["dependencies"]) <= 15
