"""Splits by content: where a row goes depends on its own text and nothing else.

Equal texts never stand on both sides of a split, the order of rows does not matter, and rows added
later move no other row. The price is that shares are met on average only, and a split of a few rows
may come out empty.
"""

from __future__ import annotations

import hashlib

from smallfirst.data.dataset import Dataset, Example, fold_text
from smallfirst.errors import ConfigError
from smallfirst.records import Record


class Splits(Record):
    """Three parts of one dataset, each in file order, with no text in two of them."""

    train: Dataset
    """Rows to learn from."""
    validation: Dataset
    """Rows to choose and calibrate with."""
    test: Dataset
    """Rows to touch once."""


def split(data: Dataset, *, validation: float, test: float, salt: str = "") -> Splits:
    """The rows in three parts, the shares being in [0, 1]. Another `salt` gives another split.

    The test part depends on `test` only: another validation share moves no row into or out of it.
    Raises ConfigError for shares that leave nothing to train on.
    """
    _refuse_bad_share("validation", validation)
    _refuse_bad_share("test", test)
    if validation + test >= 1:
        raise ConfigError(
            f"validation {validation} and test {test} leave no rows to train on: their sum must be below 1"
        )
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example in data.examples:
        draw = _draw("split", salt, example)
        name = "test" if draw < test else "validation" if draw < test + validation else "train"
        parts[name].append(example)
    return Splits(**{name: data.subset(f"{data.name}:{name}", tuple(rows)) for name, rows in parts.items()})


def sample_share(data: Dataset, share: float, salt: str = "") -> tuple[Dataset, Dataset]:
    """A share in [0, 1] of the rows, and the rest; equal texts go the same way.

    Independent of `split`; a second draw from the rest needs another `salt`. A larger share holds
    every row of a smaller one.
    """
    _refuse_bad_share("share", share)
    taken: list[Example] = []
    rest: list[Example] = []
    for example in data.examples:
        (taken if _draw("share", salt, example) < share else rest).append(example)
    return (
        data.subset(f"{data.name}:{share:g}", tuple(taken)),
        data.subset(f"{data.name}:rest", tuple(rest)),
    )


def sample_rows(data: Dataset, n: int | None) -> Dataset:
    """Return at most `n` rows (None: all), drawn by content hash: the same rows every time."""
    if n is None or n >= len(data):
        return data
    share = n / len(data)
    while len(taken := sample_share(data, min(1.0, share), "large")[0]) < n:
        share *= 1.05
    return data.subset(data.name, taken.examples[:n])


def _draw(purpose: str, salt: str, example: Example) -> float:
    """A number in [0, 1), the same for equal texts, and independent of other purposes' draws."""
    content = "\0".join((purpose, salt, fold_text(example.asked)))
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits are exact in a float


def _refuse_bad_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name} must be a share between 0 and 1 (got {share})")
