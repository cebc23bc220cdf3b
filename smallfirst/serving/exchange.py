"""What is known so far of one request, and the sending of its answer; the only thing here that changes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.types import Send

from smallfirst.models.protocol import Completion, Route
from smallfirst.serving.ledger.rows import LedgerRow
from smallfirst.serving.openai.errors import messages_json, messages_sha256
from smallfirst.serving.openai.requests import ParsedRequest
from smallfirst.serving.openai.responses import ResponseBuilder, certified, confidence


@dataclass
class Exchange:
    """One request and its answer."""

    reply: ResponseBuilder
    send: Send
    at: datetime
    started_s: float = field(default_factory=time.perf_counter)
    asked: ParsedRequest | None = None
    first_token_s: float | None = None
    status: int = 0
    head_sent: bool = False
    recorded: bool = False

    def taken(self, asked: ParsedRequest) -> None:
        """What is asked is known."""
        self.asked, self.reply = asked, self.reply._replace(served_name=asked.model)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started_s

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Sends status and headers."""
        self.head_sent, self.status = True, status
        raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def body(self, content: bytes, *, more: bool) -> None:
        """Sends a part of the body."""
        await self.send({"type": "http.response.body", "body": content, "more_body": more})

    async def json(self, status: int, value: dict[str, Any], headers: Mapping[str, str]) -> None:
        """Sends a whole JSON answer."""
        content = json.dumps(value).encode()
        head = {"content-type": "application/json", "content-length": str(len(content))}
        await self.start(status, {**head, **headers})
        await self.body(content, more=False)

    def row(self, *, status: int, latency_ms: float, store_bodies: bool) -> LedgerRow:
        """What the ledger keeps of the request, before anything is known of its answer."""
        request = self.asked.requests[0] if self.asked else None
        return LedgerRow(
            id=self.reply.id,
            at=self.at,
            served_name=self.reply.served_name[:128],
            status=status,
            latency_ms=latency_ms,
            request_sha256=messages_sha256(request) if request else None,
            request_text=messages_json(request) if request and store_bodies else None,
        )

    def answered_row(self, completion: Completion, *, store_bodies: bool) -> LedgerRow:
        """What the ledger keeps of an answered request."""
        route = completion.route
        row = self.row(status=200, latency_ms=completion.latency_ms, store_bodies=store_bodies)
        return row.model_copy(
            update={
                "answered_by": completion.answered_by,
                "stage": self.reply.stage(completion),
                "certified": certified(completion),
                "confidence": confidence(completion),
                "threshold": route.threshold if route else None,
                "prompt_tokens": completion.prompt_tokens,
                "completion_tokens": completion.completion_tokens,
                "first_token_ms": None if self.first_token_s is None else self.first_token_s * 1000,
                "cost_usd": completion.cost_usd,
                "answer_text": completion.text if store_bodies else None,
                **(_way(route) if route else {}),
            }
        )


def _way(route: Route) -> dict[str, object]:
    """What the ledger keeps of a Router's way, by column."""
    trail = [step.model_dump(exclude_defaults=True) for step in route.trail]
    return {
        "task": route.task or None,
        "promise": route.promise or None,
        "trail": json.dumps(trail, ensure_ascii=False, separators=(",", ":")) if trail else None,
        "audit_share": route.audit_share,
        "audited": route.audited,
    }
