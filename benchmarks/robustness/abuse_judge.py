"""Rules for an answer to a hostile request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.robustness.abuse_wire import Answer, Attack, bodies

_LEAKS = (
    rb"Traceback",
    rb'File "',
    rb"site-packages",
    rb"smallfirst/serving",
    rb"\.py\b",
    rb"/(?:home|root|tmp|work)/",
    rb"sqlite",
    rb"pydantic",
)


class Found(NamedTuple):
    """One attack and what came of it."""

    attack: Attack
    answer: Answer
    wrong: tuple[str, ...]


def judged(attack: Attack, answer: Answer, keys: Mapping[str, str], secret: str) -> Found:
    """An answer and everything wrong with it."""
    wrong = []
    if not answer.in_time and attack.group != "leaving":
        wrong.append(f"nothing after {answer.seconds:.0f} s")
    wrong += [f"status {s}" for s in answer.statuses if s >= 500 and not _is_honest_overload(s, answer.content)]
    seen = set(answer.statuses) or {0}
    if attack.allowed is not None and (odd := {s for s in seen - attack.allowed - {503} if s < 500}):
        wrong.append(f"answered {sorted(odd)}, right were {sorted(attack.allowed)}")
    if len(answer.statuses) > attack.most_answers:
        wrong.append(f"{len(answer.statuses)} answers")
    wrong += [
        f"told {found[0]!r}"
        for leak in _LEAKS
        if (found := re.search(leak, _without_own_words(answer.content, attack)))
    ]
    wrong += ["told another's secret" for secret in _secrets(keys, secret) if secret in answer.content]
    if re.search(rb"(?im)^x-injected|^INJECTED", answer.content.partition(b"\r\n\r\n")[0]):
        wrong.append("a header was injected")
    wrong += [
        f"{status} not in OpenAI's form: {body[:80]!r}"
        for status, body in bodies(answer.content)
        if status >= 400 and not _is_openai(body)
    ]
    return Found(attack, answer, tuple(wrong))


def _without_own_words(content: bytes, attack: Attack) -> bytes:
    """Return the response without paths and names that the client itself sent, which an error may repeat."""
    sent = b"".join(step for step in attack.sent if isinstance(step, bytes))
    for word in (b"/etc/passwd", *(b"/%b/" % name for name in (b"home", b"root", b"tmp"))):
        if word in sent:
            content = content.replace(word, b"")
    return content


def _secrets(keys: Mapping[str, str], secret: str) -> list[bytes]:
    return [secret.encode(), *(key[16:].encode() for key in keys.values())]


def _is_honest_overload(status: int, content: bytes) -> bool:
    return status == 503 and b"\r\nretry-after: " in content.lower()


def _is_openai(body: bytes) -> bool:
    try:
        return set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        return False
