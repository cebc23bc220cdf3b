"""Cases of public sets as tasks of an application: what is asked about, the right answer, and what a large model said."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from benchmarks.datasets import data_folder, read_lines

Kind = Literal["label", "json", "short", "text"]
Json = dict[str, Any]
BOOKING = ("date", "time", "people", "first_name", "last_name")
RESTAURANT = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")


class Recorded(NamedTuple):
    """The answer of a hosted large model, with its bill."""

    answer: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_usd: float
    latency_ms: float


class Case(NamedTuple):
    """One case of a task."""

    fields: dict[str, str]
    """Texts that a prompt asks about, by name."""
    gold: Any
    """The right answer: a label or text, or a dict for JSON."""
    recorded: Recorded | None = None


class TaskCases(NamedTuple):
    """A task with its cases."""

    name: str
    kind: Kind
    cases: list[Case]
    labels: tuple[str, ...] = ()
    """All labels of a task with closed answers."""
    errors: float = 0.0
    """Share of cases that the simulated teacher gets wrong; 0 where answers are recorded."""


@cache
def rows(name: str, *parts: str) -> list[Json]:
    found: list[Json] = []
    for part in parts:
        plain = data_folder(name) / f"{part}.jsonl"
        found += read_lines(plain if plain.exists() else plain.with_suffix(".jsonl.gz"))
    return found


def _recorded(row: Json) -> Recorded:
    return Recorded(*(row[field] for field in Recorded._fields))


def _asked(row: Json, *fields: str) -> dict[str, str]:
    return {field: row[field] for field in fields or ("text",)}


def _labelled(name: str, errors: float, found: list[Case]) -> TaskCases:
    return TaskCases(name, "label", found, tuple(sorted({case.gold for case in found})), errors)


def _filled(name: str, errors: float, fields: Sequence[str]) -> TaskCases:
    """Return a task of JSON with these fields, null where the text has none."""
    read = rows(name, "train", "test")
    found = [Case(_asked(r), {field.replace(" ", "_"): r["target"].get(field) for field in fields}) for r in read]
    return TaskCases(name, "json", found, errors=errors)


def _hosted_banking77() -> TaskCases:
    read = rows("hosted_banking77", "train", "test")
    found = [Case(_asked(r), r["label"].replace("_", " "), _recorded(r)) for r in read]
    return _labelled("hosted_banking77", 0.0, found)


def _hosted_invoices() -> TaskCases:
    read = rows("hosted_invoices", "train", "validation")
    found = [Case({"text": r["text"].strip()}, r["target"], _recorded(r)) for r in read]
    return TaskCases("hosted_invoices", "json", found)


def _banking_card() -> TaskCases:
    """Is a message of Banking77 about a card? A question with two answers, of the names of its intents."""
    read = rows("banking77", "train", "test")
    return _labelled("banking_card", 0.06, [Case(_asked(r), "card" if "card" in r["label"] else "other") for r in read])


def _clinc_domain() -> TaskCases:
    read = [r for r in rows("clinc150", "train", "test") if r.get("domain")]
    return _labelled("clinc_domain", 0.05, [Case(_asked(r), r["domain"]) for r in read])


def _clinc_intent() -> TaskCases:
    read = rows("clinc150", "train", "validation")
    return _labelled("clinc_intent", 0.1, [Case(_asked(r), r["label"]) for r in read])


def _snips() -> TaskCases:
    targets = ((r, r["target"]) for r in rows("snips_slots", "train", "test"))
    firsts = ((r, t["intent"], {name: value[0] for name, value in t["slots"].items()}) for r, t in targets)
    return TaskCases("snips", "json", [Case(_asked(r), {"intent": i, **slots}) for r, i, slots in firsts], errors=0.12)


def _pubmedqa() -> TaskCases:
    read = rows("pubmedqa", "train", "validation", "test")
    return _labelled("pubmedqa", 0.2, [Case(_asked(r, "question", "context"), r["answer"]) for r in read])


def _xquad() -> TaskCases:
    found = [Case(_asked(r, "question", "context"), _first(r["answer"])) for r in rows("xquad_en", "test")]
    return TaskCases("xquad", "short", found, errors=0.1)


def _medquad() -> TaskCases:
    read = rows("medquad_short", "train", "test")
    return TaskCases("medquad", "text", [Case({"text": r["question"]}, _first(r["answer"])) for r in read])


def _first(answer: Any) -> str:
    return str(answer[0] if isinstance(answer, list) else answer)


TASKS: dict[str, Callable[[], TaskCases]] = {
    "hosted_banking77": _hosted_banking77, "hosted_invoices": _hosted_invoices, "banking_card": _banking_card,
    "clinc_domain": _clinc_domain, "clinc_intent": _clinc_intent, "snips": _snips,
    "restaurant8k": partial(_filled, "restaurant8k", 0.1, BOOKING),
    "e2e_restaurants": partial(_filled, "e2e_restaurants", 0.15, RESTAURANT), "pubmedqa": _pubmedqa, "xquad": _xquad,
    "medquad": _medquad,
}  # fmt: skip
"""Tasks by name: ten of nine public sets with narrow answers, and medquad, whose answers are free text."""


def open_prompts() -> list[tuple[str, str]]:
    """Return requests that belong to no task, each with the answer it got, empty where none is on record."""
    found = [(r["prompt"], r.get("reference", "")) for r in rows("self_instruct_seed", "train")]
    found += [(r["prompt"], "") for r in rows("ifeval", "test")]
    found += [(r["question"], _first(r["answer"])) for r in rows("nq_open", "train", "test")]
    found += [(r["prompt"], r["strong_response"]) for r in rows("routellm_gsm8k", "test")]
    return found


def conversations() -> list[list[str]]:
    return [r["turns"] for r in rows("mt_bench", "test")]


def wrong(task: TaskCases, gold: Any, rng: random.Random) -> Any:
    """Return a wrong answer such as a large model gives: another label, a field off, other words of the text."""
    if task.labels:
        same = [label for label in task.labels if label != gold and label.split("_")[0] == gold.split("_")[0]]
        return rng.choice(same or [label for label in task.labels if label != gold])
    if isinstance(gold, dict):
        name = rng.choice(list(gold))
        other = rng.choice(task.cases).gold.get(name)
        return {**gold, name: None if other == gold[name] and gold[name] is not None else other}
    return _first(rng.choice(task.cases).gold)
