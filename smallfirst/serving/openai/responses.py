"""Completions as OpenAI's responses, chunks and headers, each with a `smallfirst` object beside OpenAI's keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from smallfirst.models.protocol import Completion, RouteStep, Token
from smallfirst.pricing.charge import Charge, total_usd


class ResponseBuilder(NamedTuple):
    """Builds the parts of one response."""

    id: str
    """`chatcmpl-…` or `cmpl-…`, also the id of the ledger row."""
    created: int
    served_name: str
    form: Literal["chat", "text"] = "chat"

    def whole(self, answers: Sequence[Completion], n: int = 1) -> dict[str, Any]:
        """Return the response to a request that is not streamed; `answers` holds `n` answers to each prompt."""
        first = answers[0]
        return {
            **self._head("chat.completion" if self.form == "chat" else "text_completion"),
            "system_fingerprint": system_fingerprint(first.answered_by),
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage(answers, n),
            "smallfirst": self.explanation(combine(answers, n)),
        }

    def opening(self, index: int = 0, *, include_usage: bool) -> dict[str, Any]:
        """Return the first chunk of a chat, which carries the role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._chunk(index, {"delta": delta, "logprobs": None}, None, include_usage)

    def piece(self, text: str, tokens: Sequence[Token] = (), *, index: int = 0, include_usage: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": text}} if self.form == "chat" else {"text": text}
        return self._chunk(index, {**said, "logprobs": self._logprobs(tokens)}, None, include_usage)

    def last(self, answer: Completion, index: int = 0, *, include_usage: bool) -> dict[str, Any]:
        """Return the last chunk of a choice, with the `smallfirst` object."""
        refusal = {"refusal": answer.text} if answer.refusal else {}
        said: dict[str, Any] = {"delta": refusal} if self.form == "chat" else {"text": refusal.get("refusal", "")}
        chunk = self._chunk(index, {**said, "logprobs": None}, answer.finish_reason, include_usage)
        chunk["system_fingerprint"] = system_fingerprint(answer.answered_by)
        chunk["smallfirst"] = self.explanation(answer)
        return chunk

    def usage_chunk(self, answers: Sequence[Completion], n: int = 1) -> dict[str, Any]:
        """Return the chunk of usage that ends a stream if the client asked for it."""
        return {
            **self._head(self._chunk_kind),
            "system_fingerprint": system_fingerprint(answers[0].answered_by),
            "choices": [],
            "usage": usage(answers, n),
        }

    def explanation(self, completion: Completion) -> dict[str, Any]:
        route = completion.route
        return {
            "route": self.stage(completion),
            "why": route.why if route else None,
            "certified": certified(completion),
            "certified_fields": list(fields) if route and (fields := route.certified_fields) is not None else None,
            "confidence": confidence(completion),
            "threshold": route.threshold if route else None,
            "task": (route.task or None) if route else None,
            "guarantee": (route.guarantee or None) if route else None,
            "steps": [step.model_dump(exclude_defaults=True) for step in route.trail] if route else [],
            "cost_usd": completion.cost_usd,
            "charges": [line.model_dump(mode="json", exclude_defaults=True) for line in completion.charges],
            "latency_ms": completion.latency_ms,
            "answered_by": completion.answered_by,
            "alternatives": [
                {"label": label, "probability": probability} for label, probability in completion.alternatives
            ],
        }

    def headers(self, completion: Completion) -> dict[str, str]:
        """Return the main fields of the `smallfirst` object as headers; an unknown confidence is left out.

        Values are as they stand, for `raw_headers`.
        """
        known, route = confidence(completion), completion.route
        fields = route.certified_fields if route else None
        steps = [f"{step.stage} {step.decision}{_compared(step)}" for step in route.trail] if route else []
        found = {
            "route": self.stage(completion),
            "certified": "true" if certified(completion) else "false",
            "certified-fields": None if fields is None else ", ".join(fields),
            "confidence": None if known is None else f"{known:.6f}",
            "cost-usd": f"{completion.cost_usd:.9f}",
            "charges": "; ".join(map(_in_words, completion.charges)) or None,
            "model": completion.answered_by,
            "why": route.why if route else None,
            "steps": "; ".join(steps) or None,
        }
        return {f"x-smallfirst-{name}": text for name, text in found.items() if text is not None}

    def stage(self, completion: Completion) -> str:
        """Return the Router's stage that answered; the served name where no Router chose."""
        return completion.route.stage if completion.route else self.served_name

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served_name}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.form == "chat" else "text_completion"

    def _choice(self, index: int, answer: Completion) -> dict[str, Any]:
        text, refusal = (None, answer.text) if answer.refusal else (answer.text, None)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": refusal, "annotations": []}
        said: dict[str, Any] = {"message": message} if self.form == "chat" else {"text": answer.text}
        logprobs = self._logprobs(answer.tokens)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def _chunk(
        self, index: int, said: dict[str, Any], finish_reason: str | None, include_usage: bool
    ) -> dict[str, Any]:
        choice = {"index": index, **said, "finish_reason": finish_reason}
        chunk = {**self._head(self._chunk_kind), "system_fingerprint": None, "choices": [choice]}
        return {**chunk, "usage": None} if include_usage else chunk

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not tokens:
            return None
        if self.form == "chat":
            content = [
                {**_token(t.text, t.logprob, t.octets), "top_logprobs": [_token(*o) for o in t.top]} for t in tokens
            ]
            return {"content": content, "refusal": None}
        offsets = [0, *accumulate(len(token.text) for token in tokens)][:-1]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.top) for token in tokens],
            "text_offset": offsets,
        }


def combine(answers: Sequence[Completion], n: int = 1) -> Completion:
    """Return the first answer with the cost, latency and tokens of all, certified if all are.

    `n` answers to a prompt read it once.
    """
    first = answers[0]
    if len(answers) == 1:
        return first
    made = list({id(answer): answer for answer in answers}.values())  # an answer sent twice was made once
    route = first.route
    if certified(first) and not all(map(certified, made)):
        without = {"certified": False, "guarantee": "", "audited": False, "audit_share": None}
        route = first.route and first.route.model_copy(update=without)
    return first.model_copy(
        update={
            "route": route,
            "charges": (charges := tuple(charge for answer in made for charge in answer.charges)),
            "cost_usd": total_usd(charges),
            "latency_ms": max(answer.latency_ms for answer in made),
            "prompt_tokens": sum(answer.prompt_tokens for answer in answers[::n]),
            "completion_tokens": sum(answer.completion_tokens for answer in answers),
            "estimated": any(answer.estimated for answer in answers),
        }
    )


def _token(text: str, logprob: float, octets: Sequence[int] = ()) -> dict[str, Any]:
    # JSON has no infinity; OpenAI writes -9999 for an impossible token.
    return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(octets or text.encode())}


def confidence(completion: Completion) -> float | None:
    """Return the confidence that the route was chosen by, or the model's own where no Router chose."""
    return completion.route.confidence if completion.route else completion.confidence


def certified(completion: Completion) -> bool:
    """Return True if a Router's certificate covers this answer."""
    return completion.route is not None and completion.route.certified


def _compared(step: RouteStep) -> str:
    """Return ` (0.412 of 0.800)`: the score and the threshold."""
    if step.score is None:
        return ""
    return f" ({step.score:.3f})" if step.threshold is None else f" ({step.score:.3f} of {step.threshold:.3f})"


def _in_words(charge: Charge) -> str:
    return f"{charge.model} {charge.purpose} {'unknown' if charge.usd is None else f'{charge.usd:.9f}'}"


def usage(answers: Sequence[Completion], n: int = 1) -> dict[str, Any]:
    """Return OpenAI's `usage` object for `n` answers to each prompt."""
    whole = combine(answers, n)
    cached = {"prompt_tokens_details": {"cached_tokens": whole.cached_tokens}} if whole.cached_tokens else {}
    return {
        **cached,
        "prompt_tokens": whole.prompt_tokens,
        "completion_tokens": whole.completion_tokens,
        "total_tokens": whole.prompt_tokens + whole.completion_tokens,
    }


@lru_cache(maxsize=256)
def system_fingerprint(answered_by: str) -> str:
    """Return `fp_` and ten hex digits that change when another model answers."""
    return f"fp_{hashlib.sha256(answered_by.encode()).hexdigest()[:10]}"


def model_entry(name: str, created: int, description: str = "") -> dict[str, Any]:
    """Return one entry of /v1/models; `description` says who answers and what is promised, where that is known."""
    entry = {"id": name, "object": "model", "created": created, "owned_by": "smallfirst"}
    return entry | ({"description": description} if description else {})


def sse_event(value: dict[str, Any] | str) -> bytes:
    """Return one server-sent event, in ASCII because some clients split lines at a bare U+2028 as well."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()
