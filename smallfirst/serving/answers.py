"""What a client gets: a Completion as OpenAI's response, as its stream of chunks, and as headers.

Beside OpenAI's own keys each answer carries a `smallfirst` object: who answered, why, how surely,
for how much.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple
from urllib.parse import quote

from smallfirst.models.model import Completion, Step


class Reply(NamedTuple):
    """What all parts of one answer share."""

    id: str
    """`chatcmpl-…`, also the id of the ledger row."""
    created: int
    """Seconds since 1970."""
    served_name: str
    """Model name the client asked for."""

    def whole(self, completion: Completion) -> dict[str, Any]:
        """The response to a request that is not streamed."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": completion.text,
            "refusal": None,
            "annotations": [],
        }
        return {
            **self._head("chat.completion"),
            "system_fingerprint": system_fingerprint(completion.answered_by),
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": completion.finish_reason,
                }
            ],
            "usage": usage(completion),
            "smallfirst": self.explained(completion),
        }

    def opening(self, *, include_usage: bool) -> dict[str, Any]:
        """The first chunk: who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._chunk(delta, None, include_usage)

    def piece(self, text: str, *, include_usage: bool) -> dict[str, Any]:
        """A chunk of new text."""
        return self._chunk({"content": text}, None, include_usage)

    def closing(self, completion: Completion, *, include_usage: bool) -> list[dict[str, Any]]:
        """The last chunk, with the `smallfirst` object; then a chunk of usage if asked for."""
        last = self._chunk({}, completion.finish_reason, include_usage)
        last["system_fingerprint"] = system_fingerprint(completion.answered_by)
        last["smallfirst"] = self.explained(completion)
        if not include_usage:
            return [last]
        return [
            last,
            {
                **self._head("chat.completion.chunk"),
                "system_fingerprint": system_fingerprint(completion.answered_by),
                "choices": [],
                "usage": usage(completion),
            },
        ]

    def explained(self, completion: Completion) -> dict[str, Any]:
        """The `smallfirst` object: who answered and why, how surely, for how much."""
        route = completion.route
        return {
            "route": self.stage(completion),
            "why": route.why if route else None,
            "certified": certified(completion),
            "confidence": confidence(completion),
            "threshold": route.threshold if route else None,
            "task": (route.task or None) if route else None,
            "promise": (route.promise or None) if route else None,
            "steps": [step.model_dump(exclude_defaults=True) for step in route.trail] if route else [],
            "cost_usd": completion.cost_usd,
            "latency_ms": completion.latency_ms,
            "answered_by": completion.answered_by,
            "alternatives": [
                {"label": label, "probability": probability} for label, probability in completion.alternatives
            ],
        }

    def headers(self, completion: Completion) -> dict[str, str]:
        """The same as headers; a confidence that nobody has is left out."""
        sure = confidence(completion)
        return {
            "x-smallfirst-route": _header(self.stage(completion)),
            "x-smallfirst-certified": "true" if certified(completion) else "false",
            **({} if sure is None else {"x-smallfirst-confidence": f"{sure:.6f}"}),
            "x-smallfirst-cost-usd": f"{completion.cost_usd:.9f}",
            "x-smallfirst-model": _header(completion.answered_by),
            **_ways(completion),
        }

    def stage(self, completion: Completion) -> str:
        """Stage of the Router that answered; where no Router chose, the served name."""
        return completion.route.stage if completion.route else self.served_name

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served_name,
        }

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None, include_usage: bool) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {
            **self._head("chat.completion.chunk"),
            "system_fingerprint": None,
            "choices": [choice],
        }
        return {**chunk, "usage": None} if include_usage else chunk


def confidence(completion: Completion) -> float | None:
    """The confidence that the route was chosen by, or the model's own where no Router chose."""
    return completion.route.confidence if completion.route else completion.confidence


def certified(completion: Completion) -> bool:
    """True if a Router's certificate covers this answer."""
    return completion.route is not None and completion.route.certified


def _ways(completion: Completion) -> dict[str, str]:
    """Which way the answer came, in one header, and why, in another; nothing where no Router chose."""
    route = completion.route
    if route is None:
        return {}
    steps = "; ".join(f"{step.stage} {step.decision}{_compared(step)}" for step in route.trail)
    return {
        "x-smallfirst-why": _header(route.why[:300]),
        **({"x-smallfirst-steps": _header(steps[:900])} if steps else {}),
    }


def _compared(step: Step) -> str:
    """` (0.412 of 0.800)`: the score and what it was compared with."""
    if step.score is None:
        return ""
    return f" ({step.score:.3f})" if step.threshold is None else f" ({step.score:.3f} of {step.threshold:.3f})"


def usage(completion: Completion) -> dict[str, int]:
    """OpenAI's `usage` object."""
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
    }


def system_fingerprint(answered_by: str) -> str:
    """`fp_` and ten hex digits that change when another model answers."""
    return f"fp_{hashlib.sha256(answered_by.encode()).hexdigest()[:10]}"


def model_entry(name: str, created: int) -> dict[str, Any]:
    """One entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "smallfirst"}


def event(value: dict[str, Any] | str) -> bytes:
    """One server-sent event, in ASCII: some clients split lines at a bare U+2028 as well."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _header(text: str) -> str:
    """`text` fit for a header: no line break, nothing outside ASCII."""
    return quote(text, safe="/@:+ ,=();")
