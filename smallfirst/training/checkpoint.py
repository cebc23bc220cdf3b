"""Checkpoints: folders, complete once state.json exists, from which a killed run continues to the same weights.

Tensors are safetensors files: one, or one for each process of a sharded run (PyTorch's distributed checkpoint). Either
is read by one process or any number of them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smallfirst.files import write_atomically
from smallfirst.training.distributed.group import Group

MAX_TIME_SHARE = 0.03
"""Share of the time that writing checkpoints may take."""
_STATE, _TENSORS = "state.json", "state.safetensors"


class SavedCheckpoint(NamedTuple):
    """A complete checkpoint in its folder."""

    place: Path
    figures: dict[str, Any]

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        found: set[str] = set()
        for path in self.place.glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                found |= set(file.keys())
        return found

    @torch.no_grad()
    def load_into(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the tensors by those of the same names; of sharded ones a process reads its own part."""
        if (self.place / _TENSORS).is_file() and not any(map(_is_sharded, tensors.values())):
            with safe_open(self.place / _TENSORS, framework="pt") as file:
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(name))
            return
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that one process reads by itself is meant
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(self.place)), no_dist=True)


class CheckpointStore:
    """The checkpoints of one run in one folder; the newest complete one counts."""

    def __init__(self, folder: Path, *, least_s: float = 60, group: Group | None = None) -> None:
        self.folder, self.least_s, self.group = folder, least_s, group or Group()
        self._next_at = time.monotonic() + least_s

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next_at

    def write(self, step: int, tensors: Mapping[str, torch.Tensor], figures: dict[str, Any]) -> float:
        """Write a checkpoint, `figures` as JSON; return the seconds it took. On OSError the one before is still there.

        Every process of a sharded run must come here, of others the first one only.
        """
        began = time.monotonic()
        place = self.folder / f"step-{step}"
        try:
            if self.group.leads:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
            self._write_tensors(place, tensors)
            if self.group.leads:
                write_atomically(place / _STATE, json.dumps(figures).encode())
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            raise (OSError(str(error)) if isinstance(error, SafetensorError) else error) from None
        finally:
            took = time.monotonic() - began
            self._next_at = time.monotonic() + max(self.least_s, took / MAX_TIME_SHARE)
        for other in self._places() if self.group.leads else ():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
        return took

    def _write_tensors(self, place: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        if not self.group.shard:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / _TENSORS)
            with (place / _TENSORS).open("rb") as file:
                os.fsync(file.fileno())
            return
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        self.group.wait()  # for the folder
        try:
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True))
        except CheckpointException as error:
            raise OSError(str(error).splitlines()[-1]) from error

    def latest(self) -> SavedCheckpoint | None:
        """Return the newest complete checkpoint, None if there is none."""
        for place in sorted(self._places(), key=lambda place: int(place.name.removeprefix("step-")), reverse=True):
            if (place / _STATE).is_file():
                figures = json.loads((place / _STATE).read_text(encoding="utf-8"))
                return SavedCheckpoint(place, figures)
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _places(self) -> list[Path]:
        return list(self.folder.glob("step-*"))


def _is_sharded(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
