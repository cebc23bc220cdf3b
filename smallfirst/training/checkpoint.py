"""Checkpoints: folders, complete once state.json exists, from which a killed run continues to the same weights."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smallfirst.base.files import write_atomically

MAX_TIME_SHARE = 0.03
"""Share of the time that writing checkpoints may take."""
_STATE, _TENSORS = "state.json", "state.safetensors"


class SavedCheckpoint(NamedTuple):
    """A complete checkpoint in its folder."""

    place: Path
    figures: dict[str, Any]

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        with safe_open(self.place / _TENSORS, framework="pt") as file:
            return set(file.keys())

    @torch.no_grad()
    def load_into(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite the tensors by those of the same names, one after the other."""
        with safe_open(self.place / _TENSORS, framework="pt") as file:
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))


class CheckpointStore:
    """The checkpoints of one run in one folder; the newest complete one counts."""

    def __init__(self, folder: Path, *, least_s: float = 60) -> None:
        self.folder, self.least_s = folder, least_s
        self._next_at = time.monotonic() + least_s

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next_at

    def write(self, step: int, tensors: Mapping[str, torch.Tensor], figures: dict[str, Any]) -> float:
        """Write a checkpoint, `figures` as JSON; return the seconds it took. On OSError the one before stays."""
        began = time.monotonic()
        place = self.folder / f"step-{step}"
        try:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / _TENSORS)
            with (place / _TENSORS).open("rb") as file:
                os.fsync(file.fileno())
            write_atomically(place / _STATE, json.dumps(figures).encode())
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            raise (OSError(str(error)) if isinstance(error, SafetensorError) else error) from None
        finally:
            took = time.monotonic() - began
            self._next_at = time.monotonic() + max(self.least_s, took / MAX_TIME_SHARE)
        for other in self.folder.glob("step-*"):
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
        return took

    def latest(self) -> SavedCheckpoint | None:
        """Return the newest complete checkpoint, None if there is none."""
        complete = [path.parent for path in self.folder.glob(f"step-*/{_STATE}")]
        place = max(complete, key=lambda place: int(place.name.removeprefix("step-")), default=None)
        if place is None:
            return None
        return SavedCheckpoint(place, json.loads((place / _STATE).read_text(encoding="utf-8")))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
