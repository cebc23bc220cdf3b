"""Compare requests with a task's own ones in front of its Router, by the task's profile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from smallfirst.models.batching import BatchWorker
from smallfirst.models.protocol import Request
from smallfirst.pricing.machine import MachinePrice
from smallfirst.routing.ood.detector import PROFILE_FILE, MeasuredText, TaskProfile
from smallfirst.routing.types import OodScore

MAX_BATCH = 64


class OodGate:
    """An OodDetector that scores requests which wait at the same time together."""

    def __init__(self, profile: TaskProfile, *, price: MachinePrice | None = None) -> None:
        self.profile, self._price = profile, price or MachinePrice()
        self._worker: BatchWorker[str, tuple[MeasuredText, float]] = BatchWorker(
            self._measure, name="domain", max_batch_size=MAX_BATCH
        )

    @classmethod
    def load(cls, folder: Path, *, price: MachinePrice | None = None) -> OodGate | None:
        return cls(TaskProfile.load(folder), price=price) if (folder / PROFILE_FILE).exists() else None

    @property
    def threshold(self) -> float:
        return self.profile.threshold

    async def score(self, request: Request) -> OodScore:
        began = time.perf_counter()
        found, busy_s = await self._worker.submit(request.text)
        latency_ms = (time.perf_counter() - began) * 1000
        charge = self._price.charge("domain", busy_s)
        return OodScore(found.ood_score, charge.usd or 0.0, latency_ms, (charge,), found.features)

    async def aclose(self) -> None:
        await self._worker.aclose()

    def _measure(self, texts: Sequence[str]) -> list[tuple[MeasuredText, float]]:
        began = time.perf_counter()
        found = self.profile.measure(texts)
        return [(one, (time.perf_counter() - began) / len(texts)) for one in found]
