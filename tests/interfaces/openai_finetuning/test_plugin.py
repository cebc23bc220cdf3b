"""A server process with fine-tuning and no model of its own: light until it is needed, and it ends as it is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.interfaces.openai_finetuning.plugin import fine_tuning
from smallfirst.ledger.ledger import Ledger
from smallfirst.serving.app import build_app
from smallfirst.serving.settings import ServeSettings

SERVER = """
import sys
from pathlib import Path
from smallfirst.interfaces.openai_finetuning.plugin import fine_tuning
from smallfirst.serving.app import serve
from smallfirst.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings

extension = fine_tuning()
close = extension.aclose

async def tell():
    await close()
    print("closed", flush=True)

extension.aclose = tell
serve({}, ledger=Ledger(Path(sys.argv[1])), settings=ServeSettings(port=0), plugins=[extension])
assert not [m for m in sys.modules if m.split(".")[0] in ("torch", "transformers", "mlflow")]
"""


def test_a_server_of_nothing_but_fine_tuning(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "ledger.sqlite")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().split(" at ")[1].strip()
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20)
    client.files.create(file=("rows.jsonl", b"{}"), purpose="fine-tune")
    assert client.fine_tuning.jobs.list().data == []
    assert client.models.list().data == []
    server.send_signal(signal.SIGTERM)
    rest = server.communicate(timeout=20)[0]
    assert server.returncode == 0
    assert rest.splitlines()[0] == "closed"


def test_without_models_and_without_fine_tuning_there_is_nothing_to_serve(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert build_app({}, ledger=ledger, settings=ServeSettings(), plugins=[fine_tuning()])
    with pytest.raises(ConfigError, match="no model to serve"):
        build_app({}, ledger=ledger, settings=ServeSettings())
    ledger.close()
