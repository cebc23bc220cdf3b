"""One JSON answer from two models: an encoder gives the fields that stand in the text, a language model the others."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from typing import Any

from smallfirst.models.confidence import MIN_LOG_PROBABILITY
from smallfirst.models.manifest import Manifest
from smallfirst.models.protocol import Capability, Completion, MembersModel, Model, Request

MEMBERS = ("marked", "written")
"""Folders below `members` in the model's folder: the tagger, and the language model."""


class JoinedModel(MembersModel):
    """Members asked at the same time, each for its own fields; the answer has their summed price."""

    capabilities = frozenset({Capability.READINESS})

    def __init__(self, members: Sequence[Model], manifest: Manifest, *, name: str = "") -> None:
        self.name, self.manifest, self.members = name or manifest.task.name, manifest, members
        self.max_answer_tokens = manifest.task.max_answer_tokens

    async def complete(self, request: Request) -> Completion:
        """Return all fields; the confidence is that of both answers, calibrated. Raise as the members do."""
        began = time.perf_counter()
        parts = await asyncio.gather(*(member.complete(request) for member in self.members))
        answer = self.manifest.task.parse(joined := self.join(parts))
        return Completion(
            text=answer or joined,
            answered_by=self.name,
            latency_ms=(time.perf_counter() - began) * 1000,
            cost_usd=sum(part.cost_usd for part in parts),
            charges=tuple(charge for part in parts for charge in part.charges),
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            confidence=self.manifest.calibration.confidence(nats(parts)) if answer else 0.0,
            field_confidence={path: value for part in parts for path, value in part.field_confidence.items()},
            read={path: place for part in parts for path, place in part.read.items()},
            finish_reason="length" if any(part.finish_reason == "length" for part in parts) else "stop",
        )

    async def answers(self, texts: Sequence[str]) -> list[tuple[str, list[float]]]:
        """Return for each text the answer and the members' log-probabilities in nats, before any calibration."""

        async def ask(text: str) -> tuple[str, list[float]]:
            parts = await asyncio.gather(*(member.complete(Request.ask(text)) for member in self.members))
            return self.join(parts), nats(parts)

        return list(await asyncio.gather(*map(ask, texts)))

    @staticmethod
    def join(parts: Sequence[Completion]) -> str:
        """Return the fields of all parts as one JSON object; of a part that is no JSON none."""
        fields = dict[str, Any]()
        for part in parts:
            try:
                fields |= json.loads(part.text)
            except (ValueError, TypeError):
                continue
        return json.dumps(fields, ensure_ascii=False)


def nats(parts: Sequence[Completion]) -> list[float]:
    """Return the log of each part's confidence."""
    return [math.log(part.confidence) if part.confidence else MIN_LOG_PROBABILITY for part in parts]
