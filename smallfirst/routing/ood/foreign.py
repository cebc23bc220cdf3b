"""Foreign rows: requests that are not a task's, half of them to fit its score on and half to certify it with."""

from __future__ import annotations

from pathlib import Path

from smallfirst.data.dataset import Dataset, Example, Message, sample_share

BUNDLED = Path(__file__).with_name("open_requests.txt")
"""Generic requests that people send to any assistant, one a line."""


def foreign_rows(open_ended: Dataset | None) -> tuple[Dataset, Dataset]:
    """Return the foreign rows to fit on and those to certify with; without `open_ended` both are bundled requests.

    Those of a task file are like what its users send, so with them the bundled ones are for fitting alone.
    """
    bundled = bundled_requests()
    if open_ended is None:
        return split_foreign(bundled)
    fitting, certifying = split_foreign(open_ended)
    return fitting.subset("foreign", (*fitting.examples, *bundled.examples)), certifying


def split_foreign(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Return two halves by content hash."""
    return sample_share(rows, 0.5, "domain")


def bundled_requests() -> Dataset:
    """Return the generic requests that the package brings."""
    lines = BUNDLED.read_text(encoding="utf-8").splitlines()
    return Dataset(
        name="open requests",
        examples=tuple(
            Example(messages=(Message(role="user", content=text),), answer="", shape="text", path=BUNDLED.name, line=i)
            for i, text in enumerate(lines, 1)
        ),
    )
