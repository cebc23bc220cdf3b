"""A server process that is told to stop finishes its work, closes its models and exits with 0."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.ledger.ledger import Ledger
from smallfirst.serving.app import serve
from smallfirst.serving.settings import ServeSettings

SERVER = """
import asyncio, sys
from pathlib import Path
from smallfirst.models.protocol import Completion, stream_in_one_chunk
from smallfirst.serving.app import serve
from smallfirst.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings

class Slow:
    name = "slow-1"
    async def complete(self, request):
        print("working", flush=True)
        await asyncio.sleep(float(request.text))
        return Completion(text="done", answered_by=self.name, latency_ms=1, cost_usd=0)
    def stream(self, request):
        return stream_in_one_chunk(self, request)
    async def aclose(self):
        print("closed", flush=True)

ledger = Ledger(Path(sys.argv[1]))
serve({"slow": Slow()}, ledger=ledger, settings=ServeSettings(port=0, drain_s=int(sys.argv[2])))
assert not [m for m in sys.modules if m.split(".")[0] in ("torch", "transformers", "mlflow")]
"""


def ask(port: str, seconds: str, answers: list[httpx.Response]) -> threading.Thread:
    """A thread that asks for an answer which takes `seconds`."""

    def post() -> None:
        body = {"model": "slow", "messages": [{"role": "user", "content": seconds}]}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        answers.append(httpx.post(url, json=body, timeout=30))

    thread = threading.Thread(target=post)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("number", "drain_s", "seconds", "status"),
    [(signal.SIGINT, 20, "0.7", 200), (signal.SIGTERM, 0, "30", 503)],
    ids=["interrupted", "cut off"],
)
def test_a_told_server_drains_and_exits_with_0(
    tmp_path: Path, number: signal.Signals, drain_s: int, seconds: str, status: int
) -> None:
    path = tmp_path / "ledger.sqlite"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(path), str(drain_s)], stdout=subprocess.PIPE, text=True
    )
    first = server.stdout.readline()
    assert first.startswith("smallfirst serves slow at http://127.0.0.1:")
    port = first.rsplit(":", 1)[1].removesuffix("/v1\n")
    answers: list[httpx.Response] = []
    thread = ask(port, seconds, answers)
    assert server.stdout.readline() == "working\n"
    server.send_signal(number)
    thread.join()
    rest = server.communicate(timeout=20)[0]
    assert server.returncode == 0
    assert rest == f"closed\nsmallfirst stopped; the ledger is {path}\n"
    assert [answer.status_code for answer in answers] == [status]
    ledger = Ledger(path)
    assert [row.status for row in ledger.rows()] == [status]
    ledger.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def test_a_taken_port_is_named_with_the_next_step(tmp_path: Path, label) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            serve({"m": label}, ledger=ledger, settings=ServeSettings(port=port))
    ledger.close()
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use\n"
        "  next: stop the other server, or choose another port (0 takes a free one)"
    )
