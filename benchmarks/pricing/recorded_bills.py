"""Recorded answers of hosted models priced from their tokens, against what was billed for them.

    python -m benchmarks.pricing.recorded_bills        # write benchmarks/results/recorded_bills.md

The price of the day is read from the first 100 rows of a set's training part alone (three unknowns: fresh, cached and
output tokens). All other rows are priced with it as an endpoint's answers are, through `read_usage` and `PriceBook`, and
by the price of every seller of that model in the catalogue, for that day.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import genai_prices
import numpy as np
from genai_prices.data_snapshot import get_snapshot

from benchmarks.paths import RESULTS
from smallfirst.pricing.prices import PriceBook
from smallfirst.pricing.token_price import TokenPrice
from smallfirst.pricing.tokens import TokenUsage, read_usage
from smallfirst.stats.intervals import wilson

RECORDED_AT = datetime(2026, 9, 26, 12, tzinfo=UTC)
N_FOR_PRICE = 100
EXACT = 1e-9
HEAD = """# Recorded bills of hosted models, priced again

`python -m benchmarks.pricing.recorded_bills`, {today}, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11; arithmetic alone, so load
does not matter. Answers, token counts and bills were recorded on 2026-09-26 through a hosted API (`deepseek/deepseek-v4.1-flash` on
Banking77, `deepseek/deepseek-v4-flash-0731` on invoices). The recordings do not say which seller answered, so the price of that day is
read from the bills of the first {n} training rows and applied to all others.
"""


class Sample(NamedTuple):
    """One recorded set."""

    name: str
    model: str
    held_out: str
    """Its other part."""


SETS = (
    Sample("hosted_banking77", "deepseek-v4.1-flash", "test"),
    Sample("hosted_invoices", "deepseek-v4-flash", "validation"),
)


class Row(NamedTuple):
    """One answer."""

    tokens: TokenUsage
    billed_usd: float


def rows_of(name: str, part: str) -> list[Row]:
    path = Path(os.environ["SMALLFIRST_DATA"]) / name / f"{part}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Row(_tokens(values), values["cost_usd"]) for values in map(json.loads, file)]


def _tokens(values: dict[str, Any]) -> TokenUsage:
    """Return the tokens as the answer of an OpenAI-compatible endpoint would state them."""
    details = {"cached_tokens": values["cached_tokens"]}
    usage = {name: values[name] for name in ("prompt_tokens", "completion_tokens")} | {"prompt_tokens_details": details}
    tokens = read_usage({"usage": usage}).tokens
    assert tokens is not None
    return tokens


def price_of(rows: Sequence[Row]) -> TokenPrice:
    """Return the price that fits the bills of these rows, to a hundredth of a cent per million tokens."""
    kinds = [(t.prompt_tokens - t.cached_tokens, t.cached_tokens, t.completion_tokens) for t, _ in rows]
    fitted = np.linalg.lstsq(np.array(kinds, float), np.array([row.billed_usd for row in rows]), rcond=None)[0]
    fresh, cached, output = (round(float(usd) * 1e6, 4) for usd in fitted)
    source = f"bills of {len(rows)} rows"
    return TokenPrice(input_usd_per_mtok=fresh, cached_usd_per_mtok=cached, output_usd_per_mtok=output, source=source)


def priced(price: TokenPrice, rows: Sequence[Row], *, cache: bool = True) -> np.ndarray:
    """Return the cost of each row in USD."""
    book = PriceBook(tokens={"model": price})
    tokens = (row.tokens if cache else row.tokens.model_copy(update={"cached_tokens": 0}) for row in rows)
    return np.array([book.charge("model", one, at=RECORDED_AT).usd for one in tokens])


def by_sellers(model: str, rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Yield each seller's entries of the model, and the cost of all rows at its price of that day in USD."""
    total = genai_prices.Usage(
        input_tokens=sum(row.tokens.prompt_tokens for row in rows),
        cache_read_tokens=sum(row.tokens.cached_tokens for row in rows),
        output_tokens=sum(row.tokens.completion_tokens for row in rows),
    )
    for provider in get_snapshot().providers:
        for entry in provider.models:
            tail = entry.id.rpartition("/")[2].removeprefix("databricks-")
            if tail == model or (tail.startswith(model) and tail.removeprefix(model)[1:].isdigit()):
                found = entry.calc_price(total, provider, genai_request_timestamp=RECORDED_AT)
                yield f"{provider.id}: {entry.id}", float(found.total_price)


def section(sample: Sample) -> Iterator[str]:
    train = rows_of(sample.name, "train")
    price = price_of(train[:N_FOR_PRICE])
    names = ("input_usd_per_mtok", "cached_usd_per_mtok", "output_usd_per_mtok")
    fresh, cached, output = (getattr(price, name) for name in names)
    yield f"\n## {sample.name}\n"
    yield f"Price read from {N_FOR_PRICE} rows, USD per million tokens: fresh {fresh:g}, cached {cached:g}, output {output:g}.\n"
    yield "| rows | n | cached of all prompt tokens | billed | priced | of billed | largest error of a row | exact rows (95 %) |"
    yield "|---|---|---|---|---|---|---|---|"
    for part, rows in (
        ("train, the others", train[N_FOR_PRICE:]),
        (sample.held_out, rows_of(sample.name, sample.held_out)),
    ):
        billed, ours = np.array([row.billed_usd for row in rows]), priced(price, rows)
        errors = np.abs(ours / billed - 1)
        share = sum(r.tokens.cached_tokens for r in rows) / sum(r.tokens.prompt_tokens for r in rows)
        exact = wilson(int((errors < EXACT).sum()), len(rows))
        yield (
            f"| {part} | {len(rows):,} | {share:.1%} | ${billed.sum():.6f} | ${ours.sum():.6f} | {ours.sum() / billed.sum():.4%}"
            f" | {errors.max():.1e} | {exact.value:.2%} ({exact.low:.2%} to {exact.high:.0%}) |"
        )
    uncached = priced(price, rows, cache=False).sum() / billed.sum()
    yield f"\nPriced as if nothing were cached, the {sample.held_out} rows would cost {uncached:.2f} times what was billed.\n"
    yield f"By the catalogue's prices of {RECORDED_AT.date()} (genai-prices {genai_prices.__version__}), the {sample.held_out} rows cost:\n"
    yield "| seller: model | of billed |"
    yield "|---|---|"
    for seller, usd in sorted(by_sellers(sample.model, rows), key=lambda pair: abs(np.log(pair[1] / billed.sum()))):
        yield f"| {seller} | {usd / billed.sum():.2f} |"


def main() -> None:
    """Write the page."""
    lines = [line for sample in SETS for line in section(sample)]
    head = HEAD.format(today=date.today(), n=N_FOR_PRICE)
    foot = """
## What this says

Token counts times the price in force are the bill, row for row: the arithmetic adds nothing and loses nothing. Which price is in force
is another matter: no seller's price in the catalogue for that day is the one that was billed (0.06, 0.015 and 0.18 are listed, for
another day), and sellers of one model differ by several times. So a catalogue alone would have got these bills wrong by the factors
above, in either direction. Where the answer states its own cost, that is taken first; elsewhere `prices.tokens` with `valid_from` states
the price that was agreed.
"""
    (RESULTS / "recorded_bills.md").write_text(
        "\n".join([head, *lines, foot]).replace("\n\n\n", "\n\n"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
