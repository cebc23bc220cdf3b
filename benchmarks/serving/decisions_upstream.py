"""An upstream of OpenAI's decisions that answers three questions about a bank customer's message from a recording.

    python -m benchmarks.serving.decisions_upstream PORT

The intent is the hosted model's recorded answer (`hosted_banking77`), with 0.9 of the probability; whether it is about a
card and how urgent it is follow from that intent, so that all three are as wrong as the recording is.
"""

from __future__ import annotations

import sys
from typing import Any

from aiohttp import web

from benchmarks.traffic.cases import rows as rows_of

Row = dict[str, Any]
MODEL = "judge-1"
LEVELS = ("low", "medium", "high")
_HIGH = ("lost", "stolen", "compromised", "not_recognised", "charged_twice", "blocked")
_MEDIUM = ("declined", "failed", "pending", "not_working", "not_received", "not_updated", "reverted", "unable")


def rows(split: str) -> list[Row]:
    """Return the recorded rows of a split whose answer is a label."""
    return [row for row in rows_of("hosted_banking77", split) if row["answer_label"]]


def intents() -> list[str]:
    """Return the 77 intents."""
    return sorted({row["label"] for row in rows("train")})


def questions() -> list[dict[str, Any]]:
    """Return the three questions that the application asks about each message."""
    choices = [{"value": label, "description": label.replace("_", " ")} for label in intents()]
    levels = [{"label": level} for level in LEVELS]
    return [
        {"type": "choice", "name": "intent", "instructions": "What does the customer want?", "choices": choices},
        {"type": "predicate", "name": "card", "instructions": "The message is about a card."},
        {"type": "score", "name": "urgency", "instructions": "How soon must the bank react?", "levels": levels},
    ]


def right(label: str) -> dict[str, str]:
    """Return the label of each question for a message of an intent."""
    level = "high" if any(part in label for part in _HIGH) else "medium" if any(p in label for p in _MEDIUM) else "low"
    return {"intent": label, "card": "true" if "card" in label else "false", "urgency": level}


def answer(question: dict[str, Any], label: str) -> dict[str, Any]:
    """Return the answer to a question whose right label is known."""
    kind, head = question["type"], {"type": question["type"], "name": question["name"]}
    if kind == "predicate":
        return {**head, "probability": 0.9 if label == "true" else 0.1}
    key = "value" if kind == "choice" else "label"
    options = [option[key] for option in question["choices" if kind == "choice" else "levels"]]
    shares = [0.9 if option == label else 0.1 / (len(options) - 1) for option in options]
    if kind == "choice":
        listed = [{"value": option, "probability": p} for option, p in zip(options, shares, strict=True)]
        return {**head, "choice": label, "confidence": 0.89, "probabilities": listed}
    pairs = enumerate(zip(options, shares, strict=True))
    levels = [{"value": i, "label": option, "probability": p} for i, (option, p) in pairs]
    mean = sum(i * p for i, p in enumerate(shares))
    return {**head, "score": mean, "confidence": 0.8, "probabilities": levels}


def main() -> None:
    """Serve until killed."""
    recorded = {row["text"]: row for split in ("train", "test") for row in rows(split)}

    async def decisions(request: web.Request) -> web.Response:
        body = await request.json()
        row = recorded[body["input"]]
        labels = right(row["answer_label"])
        answers = [answer(question, labels[question["name"]]) for question in body["questions"]]
        tokens = row["prompt_tokens"] * len(answers)
        usage = {
            "input_tokens": tokens,
            "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens,
        }
        return web.json_response({"answers": answers, "model": MODEL, "usage": usage})

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/decisions", decisions)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
