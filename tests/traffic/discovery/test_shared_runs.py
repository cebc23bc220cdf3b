"""Prompts that share a wording, told apart by the text that they share."""

from __future__ import annotations

import random

import numpy as np

from smallfirst.traffic.discovery.templates import runs_of, wordings
from smallfirst.traffic.wire import Prompt, Turn

RNG = random.Random(0)
WORDS = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
LABELS = (
    "Answer with one of these labels and nothing else: card arrival, card lost, top up failed, refund, age limit.\n"
)


def case():
    return " ".join(RNG.choices(WORDS, k=12))


def groups(texts):
    prompts = [Prompt("", (Turn("user", text),)) for text in texts]
    return sorted(sorted(members.tolist()) for members in wordings(prompts, 10))


def test_wordings_are_groups_and_what_shares_nothing_is_in_none():
    sort = [f"Sort the customer's message by its intent.\n{LABELS}\nMessage: {case()}" for _ in range(30)]
    judge = [f"{case()}\n\nIs the mail above friendly in tone? Answer yes or no, in lower case." for _ in range(30)]
    assert groups([*sort, *(case() for _ in range(40)), *judge]) == [list(range(30)), list(range(70, 100))]


def test_versions_that_share_most_are_groups_of_their_own():
    old = [f"Sort the customer's message by its intent, please. {LABELS}{case()}" for _ in range(30)]
    new = [
        f"You are a clerk at the counter of a bank and file what people write to you. {LABELS}{case()}"
        for _ in range(30)
    ]
    assert groups(old + new) == [list(range(30)), list(range(30, 60))]


def test_layouts_of_cases_are_no_wordings():
    layouts = [
        f"Dear {WORDS[i]} team of {WORDS[i + 20]}, {' '.join(WORDS[i * 15 : i * 15 + 15])} yours" for i in range(20)
    ]
    texts = [f"Read this mail and note what it is about. {LABELS}{RNG.choice(layouts)} {case()}" for _ in range(300)]
    assert groups(texts) == [list(range(300))]


def test_prompts_that_differ_in_dates_alone_share_all_runs():
    texts = ["Filed on 3 May 2026 by you", "Filed on 12 June 2025 by you", "Filed with care by you"]
    runs = runs_of([Prompt("", (Turn("user", text),)) for text in texts])
    first, second, third = (set(runs.hashes[runs.prompts == i].tolist()) for i in range(3))
    assert first == second
    assert not first & third
    assert len(runs.hashes) == len(np.unique(np.stack([runs.hashes, runs.prompts.astype(np.uint64)]), axis=1).T)
