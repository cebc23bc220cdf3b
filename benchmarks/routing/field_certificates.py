"""Certificates of fields and of groups: how much they keep and how often they break.

    python -m benchmarks.routing.field_tables OUT restaurant8k      # the tables, once
    python -m benchmarks.routing.field_tables OUT invoices
    python -m benchmarks.routing.field_certificates OUT [--draws 1000]

Calibration rows are drawn with replacement from a pool that is the truth; a certificate is broken if, over the whole
pool, more of what it keeps is wrong than it promises. `before` takes fields and rows of a group for
independent draws, as the rules for whole answers do; `after` is what the package does. Restaurant-8k: 300
validation rows make the confidences of fields comparable, the other rows are the pool. Invoices: whole templates are
drawn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.datasets import RESULTS, read_lines
from smallfirst.base.stats.intervals import wilson
from smallfirst.measuring.evaluate import EvaluatedRow
from smallfirst.routing.certificate.calibration_set import FieldTable
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.threshold_search import fit_curves, search_fields, search_threshold

RESULT = RESULTS / "field_certificates.md"
LEVEL = 0.05
SELECTION_ROWS = 300


class Cell(NamedTuple):
    """Thresholds of one rule over all draws, and what they keep and break on the pool."""

    name: str
    limit: float
    n: str
    kept: list[float]
    """By draw: share of the pool's parts that are kept; 0 where nothing was certified."""
    broken: list[bool]

    @property
    def line(self) -> str:
        held = wilson(sum(self.broken), len(self.broken))
        issued = sum(share > 0 for share in self.kept) / len(self.kept)
        rate = f"{100 * held.value:.1f} % [{100 * held.low:.1f}, {100 * held.high:.1f}]"
        return f"| {self.name} | {self.n} | {100 * self.limit:g} % | {issued:.2f} | {np.mean(self.kept):.3f} | {rate} |"


HEAD = "| rule | calibration | promise | issued | kept | broken (5 % allowed) |\n|---|---|---|---|---|---|"


def threshold(confidence: np.ndarray, wrong: np.ndarray, limit: float, level: float = LEVEL) -> float:
    """Return the threshold of the rule for whole answers, every element an independent draw."""
    guarantee = Guarantee(max_error=limit, confidence=1 - level)
    return search_threshold(confidence.ravel().tolist(), (~wrong).ravel().tolist(), guarantee).threshold


def outcome(
    confidence: np.ndarray, wrong: np.ndarray, weight: np.ndarray, at: float, limit: float
) -> tuple[float, bool]:
    """Return the share of the pool kept at a threshold, rows weighted, and whether more is wrong than the limit."""
    kept = (confidence >= at) * weight[:, None]
    total = float(kept.sum())
    share = total / float(np.broadcast_to(weight[:, None], confidence.shape).sum())
    return share, bool(total > 0 and float((kept * wrong).sum()) / total > limit)


def evaluated(rows: list[dict[str, Any]], *, grouped: bool = False) -> list[EvaluatedRow]:
    return [
        EvaluatedRow(
            key=f"{i}", text="", gold="", answer="", correct=row["correct"], confidence=row["confidence"],
            stage="small", certified=False, latency_ms=0, cost_usd=0,
            field_confidence={name: field["confidence"] for name, field in row["fields"].items()},
            wrong_fields=tuple(name for name, field in row["fields"].items() if not field["correct"]),
            group=row["group"] if grouped else "",
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def restaurant8k(out: Path, draws: int) -> Iterator[str]:
    rows = list(read_lines(out / "restaurant8k.jsonl"))
    choosing = [row for row in rows if row["part"] == "validation"][:SELECTION_ROWS]
    pool = [row for row in rows if row["part"] == "test"]
    pool += [row for row in rows if row["part"] == "validation"][SELECTION_ROWS:]
    table = FieldTable.of(evaluated(pool)).calibrated(fit_curves(FieldTable.of(evaluated(choosing))))
    right, fields = 1 - table.wrong.any(axis=1).mean(), 1 - table.wrong.mean()
    said = [[row["gold"].get(name) is not None for name in table.names] for row in pool]
    yield f"{len(pool):,} rows, every field right in {right:.3f}, {fields:.3f} of {table.wrong.size:,} fields right "
    yield f"({100 * np.mean(said):.0f} % of these are filled, the others rightly or wrongly left out).\n\n{HEAD}"
    own = np.array([row["confidence"] for row in pool])[:, None]
    wrong_rows = table.wrong.any(axis=1)[:, None]
    lowest = np.broadcast_to(table.confidence.min(axis=1, keepdims=True), table.confidence.shape)
    everywhere = np.ones(len(pool))
    rules: dict[str, Callable[[np.ndarray, float], tuple[float, bool]]] = {
        "whole answers, before: none of the fields wrong": lambda at, limit: outcome(
            own, wrong_rows, everywhere, threshold(own[at], wrong_rows[at], limit), limit
        ),
        "fields as independent draws, before": lambda at, limit: outcome(
            table.confidence, table.wrong, everywhere, threshold(table.confidence[at], table.wrong[at], limit), limit
        ),
        "field by field, after": lambda at, limit: outcome(
            table.confidence, table.wrong, everywhere, units(table.confidence[at], table.wrong[at], limit), limit
        ),
        "whole answers by their fields, after": lambda at, limit: outcome(
            lowest, table.wrong, everywhere, units(lowest[at], table.wrong[at], limit), limit
        ),
    }
    for n in (200, 400, 800):
        for limit in (0.02, 0.05):
            for name, rule in rules.items():
                yield cell(name, limit, f"{n} rows", draws, len(pool), n, rule).line


def units(
    confidence: np.ndarray, wrong: np.ndarray, limit: float, unit: np.ndarray | None = None, level: float = LEVEL / 2
) -> float:
    """Return the threshold of a table of fields, at half of the level as a certificate of fields has it."""
    table = FieldTable(confidence, wrong, (), np.arange(len(wrong)) if unit is None else unit)
    return search_fields(table, limit, level).threshold


def cell(
    name: str, limit: float, n_words: str, draws: int, n_pool: int, n: int, rule: Callable[..., tuple[float, bool]]
) -> Cell:
    draw = np.random.default_rng([n, round(1000 * limit)])
    found = [rule(draw.integers(0, n_pool, n), limit) for _ in range(draws)]
    return Cell(name, limit, n_words, [share for share, _ in found], [broke for _, broke in found])


def invoices(out: Path, draws: int) -> Iterator[str]:
    rows = list(read_lines(out / "invoices.jsonl"))
    known, new = ([row for row in rows if row["part"] == part] for part in ("known", "new"))
    for name, part in (("templates of the training rows", known), ("new templates", new)):
        fields = [field["correct"] for row in part for field in row["fields"].values()]
        large = np.mean([row["large"]["correct"] for row in part])
        yield (
            f"- {name}: {len(part)} rows of {len({row['group'] for row in part})} templates, every field right in "
            f"{np.mean([row['correct'] for row in part]):.3f}, {np.mean(fields):.3f} of fields right (the hosted model: "
            f"{large:.3f} of rows)"
        )
    parts = ("known", known), ("new", new)
    tables = {name: FieldTable.of(evaluated(part, grouped=True)).calibrated({}) for name, part in parts}
    yield f"\n{HEAD}"
    table = tables["new"]
    templates = sorted(set(table.unit.tolist()))
    weight = template_weights(table)
    seen = tables["known"]
    before = "fields as independent draws of known templates, served on new ones"
    for limit in (0.05, 0.1, 0.2, 0.3):
        yield cell(before, limit, "200 rows", draws, len(seen.wrong), 200, lambda at, limit: outcome(
            table.confidence, table.wrong, weight, threshold(seen.confidence[at], seen.wrong[at], limit), limit
        )).line  # fmt: skip
        for as_units in (False, True):
            name = (
                "new templates as units, after" if as_units else "new templates drawn, their rows independent, before"
            )
            rule = partial(of_templates, table, templates, weight, as_units)
            for n in (len(templates), 2 * len(templates)):
                yield cell(name, limit, f"{n} templates", draws, len(templates), n, rule).line


def template_weights(table: FieldTable) -> np.ndarray:
    """Return by row one over the rows of its template: every template counts alike."""
    names, place, counts = np.unique(table.unit, return_inverse=True, return_counts=True)
    weights: np.ndarray = 1 / counts[place] / len(names)
    return weights


def of_templates(
    table: FieldTable, templates: list[int], weight: np.ndarray, as_units: bool, drawn: np.ndarray, limit: float
) -> tuple[float, bool]:
    parts = [np.flatnonzero(table.unit == templates[i]) for i in drawn.tolist()]
    rows = np.concatenate(parts)
    unit = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    confidence, wrong = table.confidence[rows], table.wrong[rows]
    at = units(confidence, wrong, limit, unit, LEVEL) if as_units else threshold(confidence, wrong, limit)
    return outcome(table.confidence, table.wrong, weight, at, limit)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=1000)
    wanted = parser.parse_args()
    out, draws = wanted.out, wanted.draws
    written = []
    for title, make in (
        ("Restaurant-8k, five fields", restaurant8k),
        ("Invoices, eight fields, new layouts", invoices),
    ):
        lines = [f"## {title}\n"]
        for line in make(out, draws):
            print(line, flush=True)
            lines.append(line)
        written.append("\n".join(lines) + "\n")
    command = f"`python -m benchmarks.routing.field_certificates OUT --draws {draws}`"
    head = (
        f"# Certificates of fields and groups\n\n{command}, {date(2026, 11, 27)}, 2 shared cores "
        "(Zen 5), 24 GB. Kept: mean share of the pool's fields (rows) at the certified threshold, 0 where none is. "
        "Intervals: Wilson, 95 %.\n\n"
    )
    RESULT.write_text(head + "\n".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
