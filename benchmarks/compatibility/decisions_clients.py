"""Ask typed questions by the clients of OpenAI and TypeSafe, unmodified, and compare each answer with the known one.

    python decisions_clients.py BASE_URL exact|labels        # in an environment with openai and typesafe-sdk

prints one JSON object: by client the requests, the questions and the differences. Run by `benchmarks.compatibility.decisions`.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

REQUESTS = 100
Case = tuple[Any, list[tuple[str, list[str]]]]
"""A state, and kind and options of each question."""
TICKET: Case = (
    "Ticket 4711: I was charged twice for one transfer, and nobody answers my messages!",
    [("predicate", ["true", "false"]), ("choice", ["billing", "cards", "other"]), ("score", ["low", "medium", "high"])],
)


def shares(state: Any, n: int) -> list[float]:
    """Return the probabilities of `n` options; they sum to 1."""
    text = state if isinstance(state, str) else json.dumps(state, sort_keys=True)
    digest = hashlib.sha512(f"{n}:{text}".encode()).digest()
    weights = [1 + digest[i % 64] + 300 * (digest[0] % n == i) for i in range(n)]
    return [weight / sum(weights) for weight in weights]


def cases(seed: int = 0) -> Iterator[Case]:
    """Yield the ticket, then requests of one to twelve questions about texts and objects."""
    rng = random.Random(seed)
    yield TICKET
    for i in range(REQUESTS - 1):
        text = f"Ticket {i}: {rng.random()}" + (" refuse" if i % 20 == 7 else "")
        questions = []
        for _ in range(rng.randint(1, 12)):
            kind = rng.choice(["predicate", "choice", "score"])
            n = 2 if kind == "predicate" else rng.randint(2, 77 if kind == "choice" else 10)
            questions.append((kind, ["true", "false"] if kind == "predicate" else [f"option {j}" for j in range(n)]))
        yield ({"ticket": text, "tier": "gold"} if i % 3 == 0 else text), questions


def expected(case: Case, exact: bool) -> list[list[float] | None]:
    """Return the probabilities that each question must come back with; None for a refusal."""
    state, questions = case
    found: list[list[float] | None] = [shares(state, len(options)) for _, options in questions]
    if not exact:
        found = [[float(p == max(one)) for p in one] for one in found if one]
    if "refuse" in str(state) and REFUSES:
        found[0] = None
    return found


def openai_answers(client: Any, case: Case) -> list[list[float] | None]:
    """Ask by OpenAI's client."""
    state, questions = case
    asked = []
    for i, (kind, options) in enumerate(questions):
        one: dict[str, Any] = {"type": kind, "name": f"question {i}", "instructions": f"What is {i}?"}
        if kind == "choice":
            one["choices"] = [{"value": option, "description": f"It is {option}"} for option in options]
        elif kind == "score":
            one["levels"] = [{"label": option} for option in options]
        asked.append(one)
    given = state if isinstance(state, str) else [{"role": "user", "content": [{"type": "input_json", "data": state}]}]
    decision = client.decisions.create(model="judge", input=given, questions=asked)
    assert [answer.name for answer in decision.answers] == [one["name"] for one in asked]
    return [_openai_shares(answer) for answer in decision.answers]


def _openai_shares(answer: Any) -> list[float] | None:
    if answer.type == "refusal":
        return None
    if answer.type == "predicate":
        return [answer.probability, 1 - answer.probability]
    found = [one.probability for one in answer.probabilities]
    best = answer.probabilities[found.index(max(found))]
    assert answer.type != "choice" or answer.choice == best.value
    assert 0 <= answer.confidence <= 1
    return found


def typesafe_answers(client: Any, case: Case) -> list[list[float] | None]:
    """Ask by TypeSafe's client."""
    from typesafe_sdk import Choice, Noul, Score

    state, questions = case
    asked: dict[str, Any] = {}
    for i, (kind, options) in enumerate(questions):
        what = f"What is {i}?"
        if kind == "predicate":
            asked[f"question {i}"] = Noul(instructions=what)
        elif kind == "choice":
            asked[f"question {i}"] = Choice(instructions=what, criteria={one: f"It is {one}" for one in options})
        else:
            asked[f"question {i}"] = Score(instructions=what, criteria=options)
    response = client.system_one(state=state, questions=asked, model="judge")
    assert response.request_id
    return [_typesafe_shares(response.answers.get(name)) for name in asked]


def _typesafe_shares(answer: Any) -> list[float] | None:
    if answer is None:  # the client leaves out refusals, which its shape does not know
        return None
    if answer.type == "noul":
        return [answer.noul, 1 - answer.noul]
    found = list(answer.probabilities.values())
    assert answer.type != "choice" or answer.choice == max(answer.probabilities, key=answer.probabilities.get)
    assert answer.type != "score" or len(answer.legend) == len(found)
    return found


def alike(found: list[float] | None, wanted: list[float] | None) -> bool:
    """Return whether probabilities are equal but for rounding."""
    if found is None or wanted is None:
        return found is wanted
    return len(found) == len(wanted) and max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 1e-9


def errors(openai_client: Any, typesafe_client: Any) -> list[str]:
    """Return what both clients make of a limited and of an invalid request."""
    import openai
    import typesafe_sdk

    found = []
    question = {"type": "predicate", "name": "a", "instructions": "?"}
    for body in (
        {"input": "overload", "questions": [question]},
        {"input": "x", "questions": [{**question, "more": 1}]},
    ):
        try:
            openai_client.decisions.create(model="judge", **body)
        except openai.APIStatusError as error:
            found.append(f"openai: {type(error).__name__}, {error.message[:200]}")
    for state, asked in (
        ("overload", {"a": {"type": "noul", "instructions": "?"}}),
        ("x", {"a": {"type": "score", "criteria": ["a"] * 11}}),
    ):
        try:
            typesafe_client.system_one(state=state, questions=asked, model="judge")
        except typesafe_sdk.TypeSafeAPIError as error:
            found.append(f"typesafe-sdk: {type(error).__name__}, {error}"[:230])
    return found


def main() -> None:
    """Print the comparison."""
    import openai
    from typesafe_sdk import TypeSafeClient

    base_url, exact = sys.argv[1], sys.argv[2] == "exact"
    ours = openai.OpenAI(base_url=f"{base_url}/v1", api_key="k", max_retries=0)
    theirs = TypeSafeClient(base_url=base_url, api_key="k")
    result: dict[str, Any] = {"errors": errors(ours, theirs)}
    for name, ask, client in (("openai", openai_answers, ours), ("typesafe-sdk", typesafe_answers, theirs)):
        n, different, refused = 0, [], 0
        for case in cases():
            found = ask(client, case)
            for i, (one, wanted) in enumerate(zip(found, expected(case, exact), strict=True)):
                n, refused = n + 1, refused + (one is None)
                if not alike(one, wanted):
                    different.append(f"{case[1][i][0]} of {len(case[1][i][1])}: {one} for {wanted}"[:300])
        result[name] = {"requests": REQUESTS, "questions": n, "refusals": refused, "different": different}
    print(json.dumps(result))


REFUSES = len(sys.argv) < 4 or sys.argv[3] == "refuses"
"""False where the upstream's shape knows no refusals."""

if __name__ == "__main__":
    main()
