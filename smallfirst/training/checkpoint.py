"""Checkpoints: folders, complete once state.json exists, from which a killed run continues to the same weights."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from smallfirst.files import write_atomically

MAX_TIME_SHARE = 0.03
"""Share of the time that writing checkpoints may take."""
_STATE, _TENSORS = "state.json", "state.safetensors"


class Checkpoint(NamedTuple):
    """The state of a run."""

    tensors: dict[str, torch.Tensor]
    figures: dict[str, Any]
    """Plain JSON values."""


class CheckpointStore:
    """The checkpoints of one run in one folder; the newest complete one counts."""

    def __init__(self, folder: Path, *, least_s: float = 60) -> None:
        self.folder = folder
        self.least_s = least_s
        self._next_at = time.monotonic() + least_s

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next_at

    def write(self, step: int, saved: Checkpoint) -> float:
        """Write a checkpoint; return the seconds it took. On OSError the one before is still there."""
        began = time.monotonic()
        place = self.folder / f"step-{step}"
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in saved.tensors.items()}, place / _TENSORS)
            with (place / _TENSORS).open("rb") as file:
                os.fsync(file.fileno())
            write_atomically(place / _STATE, json.dumps(saved.figures).encode())
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            raise (OSError(str(error)) if isinstance(error, SafetensorError) else error) from None
        finally:
            took = time.monotonic() - began
            self._next_at = time.monotonic() + max(self.least_s, took / MAX_TIME_SHARE)
        for other in self._places():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
        return took

    def latest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, None if there is none."""
        for place in sorted(self._places(), key=lambda place: int(place.name.removeprefix("step-")), reverse=True):
            if (place / _STATE).is_file():
                figures = json.loads((place / _STATE).read_text(encoding="utf-8"))
                return Checkpoint(load_file(place / _TENSORS), figures)
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _places(self) -> list[Path]:
        return list(self.folder.glob("step-*"))
