"""A training in the processes of torchrun: the first one runs the command, the others train along.

torchrun --nproc-per-node 2 --max-restarts 3 -m smallfirst.cli.main train TASK
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from smallfirst.training.distributed.work import WAIT_S


def is_launched() -> bool:
    """Return True in a process that torchrun started beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_restarted() -> bool:
    """Return True if torchrun has started the processes again because one was lost."""
    return is_launched() and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextmanager
def joined() -> Iterator[bool]:
    """Join the others; yield True in the process that is to run the command.

    Elsewhere take part in each training that it announces, and yield False once it has ended.
    """
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available() and os.environ.get("SMALLFIRST_DEVICE", "cuda") != "cpu"
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(seconds=WAIT_S))
    leads = dist.get_rank() == 0
    try:
        if not leads:
            _follow()
        yield leads
        if leads:
            _told("")
    finally:
        dist.destroy_process_group()


def train_along(folder: Path, **told: Any) -> Any:
    """Train with all processes of torchrun as `do_work` does; the first one calls this."""
    from smallfirst.training.distributed.work import do_work

    _told(str(folder.absolute()))
    return do_work(folder, **told)


def _follow() -> None:
    from smallfirst.training.distributed.work import do_work

    while folder := _told(""):
        do_work(Path(folder))


def _told(text: str) -> str:
    """Return the first process's text in every process."""
    import torch.distributed as dist

    told = [text]
    dist.broadcast_object_list(told, 0)
    return told[0]
