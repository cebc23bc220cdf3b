"""The cases of `plain_runs.py`: public sets in full, and samples of them as small as real first sets are.

A row is a text, its label and its group; rows of a group (the turns of a dialogue) are never on both sides of a split.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from benchmarks.datasets import data_folder, read_lines

SEED = 0
N_SAMPLES = (150, 300, 600)
"""Labelled rows of a sample in all, from which a run takes its validation and test rows as well."""
SAMPLED = ("banking77", "clinc150", "snips", "tool_calls")
FULL = ("xsid", "banking77", "hosted_banking77", "snips", "clinc150", "tool_calls")
"""Sets in full, in the order in which they run."""
HOSTED = "hosted_"
"""What stands before the name of a source that has a hosted model's answers."""
MAX_GIVEN = 5_000
"""Rows given of a set in full, drawn with the seed, so that five fine-tunes take an hour on two busy cores."""
MAX_HELD_BACK = {"sample": 1_000, "full": 2_000}
"""Rows held back, drawn with the seed: official test rows first, for samples then training rows that were not given."""
MANY_LABELS = 100
"""Labels from which a full set's gate is 0.85 instead of 0.90."""
SAMPLE_GATE, FULL_GATE, MANY_LABELS_GATE = 0.80, 0.90, 0.85


class Row(NamedTuple):
    """A labelled text."""

    text: str
    label: str
    group: str


class Case(NamedTuple):
    """What one run is given, and what it never sees."""

    name: str
    source: str
    gate: float
    """Accuracy that its gate asks for; fixed by rule before anything was measured."""
    given: list[Row]
    held_back: list[Row]


def case_names() -> list[str]:
    """Return the names of all cases: the samples, then the sets in full."""
    return [f"{source}-{n}" for source in SAMPLED for n in N_SAMPLES] + [f"{source}-full" for source in FULL]


def read_case(name: str) -> Case:
    """Return the case of this name, such as `snips-150` or `xsid-full`."""
    source, _, size = name.rpartition("-")
    train, test = read_source(source)
    if size == "full":
        given = draw(train, MAX_GIVEN, seed=name.removeprefix(HOSTED))[0]
        n_labels = len({row.label for row in given})
        gate = MANY_LABELS_GATE if n_labels >= MANY_LABELS else FULL_GATE
        unseen = fresh(shuffled(test, source.removeprefix(HOSTED)), given)
        return Case(name, source, gate, given, unseen[: MAX_HELD_BACK["full"]])
    wanted = sampled_part(source, train)
    train, test = [row for row in train if wanted(row)], [row for row in test if wanted(row)]
    given, rest = draw(train, int(size), seed=name)
    unseen = fresh([*shuffled(test, name), *rest], given)
    return Case(name, source, SAMPLE_GATE, given, unseen[: MAX_HELD_BACK["sample"]])


def draw(rows: list[Row], n: int, *, seed: str) -> tuple[list[Row], list[Row]]:
    """Draw groups by chance until there are `n` rows; return them and the rows of all other groups, in drawn order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    order = sorted(groups)
    random.Random(f"{SEED} {seed}").shuffle(order)
    drawn: list[Row] = []
    n_groups = next((i for i in count() if i == len(order) or len(drawn) >= n or drawn.extend(groups[order[i]])), 0)
    return drawn[:n], [row for group in order[n_groups:] for row in groups[group]]


def shuffled(rows: list[Row], seed: str) -> list[Row]:
    return random.Random(f"{SEED} {seed}").sample(rows, len(rows))


def fresh(rows: Iterable[Row], given: Iterable[Row]) -> list[Row]:
    """Return the rows whose text was not given, ignoring case and white space."""
    known = {_folded(row.text) for row in given}
    return [row for row in rows if _folded(row.text) not in known]


def sampled_part(source: str, train: list[Row]) -> Callable[[Row], bool]:
    """Return which rows of a source its samples are drawn from: 7 to 30 labels, chosen with the seed."""
    rng = random.Random(f"{SEED} {source}")
    if source == "clinc150":
        domains = json.loads((data_folder(source) / "domains.json").read_text(encoding="utf-8"))
        labels = {label for domain in rng.sample(sorted(domains), 2) for label in domains[domain]}
    elif source == "banking77":
        labels = set(rng.sample(sorted({row.label for row in train}), 15))
    elif source == "tool_calls":
        services = set(rng.sample(sorted({row.group.split("/")[0] for row in train}), 4))
        return lambda row: row.group.split("/")[0] in services
    else:
        return lambda row: True
    return lambda row: row.label in labels


def read_source(source: str) -> tuple[list[Row], list[Row]]:
    """Return the training rows of a source, its validation rows among them, and its official test rows."""
    if source == "tool_calls":
        return _tool_calls()
    folder = data_folder({"snips": "snips_slots"}.get(source, source.removeprefix(HOSTED)))
    parts = (("en.valid",), ("en.test",)) if source == "xsid" else (("train", "validation"), ("test",))
    numbers = count()
    train, test = (
        [
            Row(value["text"], value.get("label") or value["target"]["intent"], str(next(numbers)))
            for part in names
            for value in read_lines(folder / f"{part}.jsonl")
            if value.get("label") != "oos"
        ]
        for names in parts
    )
    return train, test


def _tool_calls() -> tuple[list[Row], list[Row]]:
    """Return a row for each call of a function: what assistant and user said last, and the function.

    The set has no official test rows: 30 % of the dialogues, drawn with the seed, stand in for them.
    """
    rows: list[Row] = []
    for file in sorted((data_folder("tool_calls")).glob("*.jsonl.gz")):
        service = file.name.partition(".")[0]
        for value in read_lines(file):
            calls = value["response"]["choices"][0]["message"].get("tool_calls")
            said = [m for m in value["request"]["messages"] if m["role"] in ("user", "assistant") and m.get("content")]
            if calls:
                text = "\n".join(f"{m['role']}: {m['content']}" for m in said[-2:])
                rows.append(Row(text, calls[0]["function"]["name"], f"{service}/{value['dialogue']}"))
    return draw(rows, round(0.7 * len(rows)), seed="tool_calls")


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
