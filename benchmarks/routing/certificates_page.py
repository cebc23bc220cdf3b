"""The result page of `certificates.py`: tables and how to read them."""

from __future__ import annotations

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.datasets import RESULTS
from smallfirst.stats.intervals import clopper_pearson

RESULT = RESULTS / "certificates.md"
DRAWS = "## New rules beside the old ones"
"""Heading of the section that `certificates_draws.py` writes."""
TRAPS = "## Repeats, groups, policies and looks"
"""Heading of the last section, which `certificates_traps.py` writes."""

HEAD = "| method | guarantee | issued | broken (truth) | broken (fresh) | stay small |\n|---|---|---|---|---|---|\n"


def table(found: list[dict[str, Any]]) -> str:
    lines = []
    for one in found:
        kept = "-" if one["kept"] is None else f"{one['kept']:.3f}"
        if one["first"] is not None and "before" in one["method"]:
            kept += f" (words {one['first']:.3f})"
        cells = [one["method"], one["guarantee"], f"{one['issued'] / one['repeats']:.3f}"]
        fresh = _share(one["fresh"] or 0, one["repeats"], one["fresh_issued"])
        if one.get("scatter") is not None:
            fresh += f", {one['scatter']:.3f} by scatter"
        fresh = "-" if one["fresh"] is None or "MAPIE" in one["method"] else fresh
        cells += [_share(one["true"], one["repeats"], one["issued"]), fresh, kept]
        lines.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


def _share(hits: int, n: int, issued: int) -> str:
    return f"{clopper_pearson(hits, n)} ({hits} of {issued})"


def write(folder: Path, titles: dict[str, str]) -> None:
    """The page, from all parts that are there."""
    page = [PAGE.format(today=date.today(), mapie=version("mapie"))]
    for name, title in titles.items():
        path = folder / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            note = NOTES[name].format(repeats=found[0]["repeats"])
            page.append(f"\n## {title}\n\n{note}\n\n{table(found)}")
    before = RESULT.read_text(encoding="utf-8")
    others = before.partition(DRAWS if DRAWS in before else TRAPS)[1:]
    RESULT.write_text("".join((*page, "\n" if others[0] else "", *others)), encoding="utf-8")


PAGE = """# Certificates: do they hold?

`python -m benchmarks.routing.certificates FOLDER --large FILE`, {today}, 2 shared cores, Zen 5, 24 GB. Recorded answers
are resampled; each certificate is made from calibration rows alone and judged on rows it has not seen.
**Broken** is the share of all draws in which a certificate was issued and does not hold, with its exact 95 %
interval; in brackets their share of the issued ones. Guaranteed: at most 0.05 of all draws. **Truth**
draws calibration rows with replacement, so that the whole pool is the truth. **Fresh** cuts the pool in two
without replacement and judges on the other part, which shows the true rate only up to its own scatter: a
guarantee that holds narrowly then looks broken more often than it is («by scatter»: how often fresh rows
would look so if the true rates were those of the first judge). **Stay small** is the mean share of
all requests that stay small, over issued certificates.

The plain threshold is the lowest one at which the same calibration rows show no more errors than guaranteed.
MAPIE {mapie} controls precision (accepted answers that are right) by `BinaryClassificationController`: with its
defaults (100 equidistant thresholds, Bonferroni and Holm) and along our sequence (fixed sequence over 100
quantiles, from where half of the rows are accepted); its p-values are those of Hoeffding and Bentkus, ours are
exact. It was judged by the truth only.
"""
NOTES = {
    "banking77": (
        "3,874 rows (calibration and test of one run), 800 drawn, about 3,070 left. The plain threshold "
        "breaks its guarantee every second time."
    ),
    "gsm8k": (
        "Mixtral's answers (64 % right) before GPT-4's (86 %). The confidence is a logistic regression on "
        "words of question and answer, lengths, and sums in the answer that do not compute, fitted on 40 % of "
        "the rows, which are not used again; 788 rows are the pool. The search begins where half of the rows "
        "are accepted, and these are wrong 17 % of the time: at 15 % every issued certificate is a lucky draw and "
        "broken, which is why their share of all draws is what counts. The surest tenth is wrong about 13 % "
        "of the time, so 10 % is out of reach."
    ),
    "null": (
        "All thresholds are then wrong as often as all rows (Banking77 6 %, GSM8K 36 %), so any certificate "
        "about wrong answers would be broken. A small random share may still be accepted without being more than "
        "5 points below the large model: that certificate is issued, and holds."
    ),
    "several": (
        "{repeats} resamplings. The level is shared out over the limits and, with two stages, over three "
        "paths of thresholds. Cost at $0.6 and $30 per million written tokens. The words model in front takes "
        "a part of the requests at a tenth of the small model's price; about as much stays small in all as "
        "without it."
    ),
    "large": (
        "Small and large model on a random part of calibration and test rows; as many are drawn as there are. "
        "The recording is the one that `benchmarks/routing/routed.py record` makes. What so few rows cannot show "
        "is refused."
    ),
}
