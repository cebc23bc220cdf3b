"""Under torchrun the first process runs the command, the others take part in what it announces."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from fixtures.warm_processes import WarmProcess

from smallfirst.training.distributed.torchrun import is_launched, is_restarted

PROCESS = """
import json, sys
from pathlib import Path
from smallfirst.training.distributed import torchrun, work
seen = []
work.do_work = lambda folder, **told: seen.append([str(folder), sorted(told)])
with torchrun.joined() as leads:
    if leads:
        torchrun.train_along(Path("/first"), on_step=print)
        torchrun.train_along(Path("/second"))
Path(sys.argv[1]).write_text(json.dumps([leads, seen]))
"""


def test_the_others_train_along_until_the_command_ends(tmp_path: Path, warm_parent: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    outs = [tmp_path / "0", tmp_path / "1"]
    processes = [
        WarmProcess([sys.executable, "-c", PROCESS, str(out)], env={**shared, "RANK": out.name, "LOCAL_RANK": out.name})
        for out in outs
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert json.loads(outs[0].read_text()) == [True, [["/first", ["on_step"]], ["/second", []]]]
    assert json.loads(outs[1].read_text()) == [False, [["/first", []], ["/second", []]]]


def test_torchrun_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not is_launched()  # one process alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_launched()
    assert not is_restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_restarted()
