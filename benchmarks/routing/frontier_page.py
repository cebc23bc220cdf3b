"""The page and the drawing of `frontier.py`."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS
from smallfirst.stats.intervals import clopper_pearson

OURS = "smallfirst"
ALLOWED = 0.05
"""Share of draws in which a promise at 95 % may be broken."""
UNPROVEN = ("plain threshold", "safedecide, its 90 %", "jevstiller, as a budget")
"""Methods that promise less, or nothing: they are shown, and not compared."""

HEAD = """# The frontier: share small at each promise

`python -m benchmarks.routing.frontier FOLDER --peers ENVIRONMENTS`, {date}, 2 shared cores (Zen 5), 24 GB, one thread.
Each cell: mean share of requests kept small over {draws} draws of n labelled rows (a draw that keeps nothing counts as 0),
± 1.96 standard errors; below it in how many draws the promise was broken. Rows are drawn with replacement, so the pool is
the truth. **bold**: broken in more draws than a method at 95 % may, beyond chance (exact 95 % interval above 5 %).

- **smallfirst**: `routing.certificate` as it is. A fifth of the n rows are selection rows, which choose where its search
  begins, the other 400 or 800 certify. Peers calibrate with all n.
- **oracle**: knows every error of the pool, and keeps the surest requests as far as the promise allows.
- **plain threshold**: the lowest one at which the same rows show no more errors than promised. Promises nothing.
- **MAPIE 1.6.0**: `BinaryClassificationController`, precision, defaults.
- **safedecide 0.1.0**: `calibrate_selective`, the same promise as ours (selective error, exact), at 95 %; its default is 90 %.
- **tracer-llm 0.3.3**: `_calibrate_threshold`, the last step of `tracer.fit`, at 95 %; its default is 90 %. It looks at every
  threshold on 70 % of the rows at the whole level, so its bound holds for each threshold and not for the chosen one.
- **jevstiller 0.5.3**: `fit_policy`. It promises that answered-and-wrong is at most α of *all* requests, a weaker promise
  than one about the answers kept: «as a budget» is its own promise, judged by ours; «converted» is the largest budget
  that, divided by the share answered, is α.

**Read so.** The aim, 1.2 times the peers' share at equal certified risk, is not reached with a fifth of the rows set aside for
choosing: ours keeps more than MAPIE, a little more than safedecide, and less than tracer-llm's rule and the converted jevstiller, which
use every row to calibrate. They gain at tight promises, where rows without an error are scarce; from 5 % on all are close to the oracle.
Neither proof covers the choice that they make on the same rows (tracer-llm all thresholds, the conversion all budgets), yet in these
draws neither was broken beyond chance.

tracer-llm and jevstiller mean by *wrong* a disagreement with the large model; here both are given the gold answers.
"""


def write(folder: Path) -> None:
    """Write benchmarks/results/frontier.md, and a drawing beside it, from the pools stored in `folder`."""
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = [HEAD.format(date=date.today().isoformat(), draws=stored[0]["draws"]), *_ratios(stored)]
    for pool in stored:
        lines += [f"## {pool['title']}", "", f"{pool['n_rows']:,} rows, {pool['accuracy']:.3f} right.", ""]
        for n, methods in pool["by_n"].items():
            lines += _table(pool, n, methods)
    (RESULTS / "frontier.md").write_text("\n".join(lines), encoding="utf-8")
    (RESULTS / "frontier.svg").write_text(_drawing(stored), encoding="utf-8")


def _table(pool: dict[str, Any], n: str, methods: dict[str, Any]) -> list[str]:
    alphas = pool["alpha"]
    names = [f"{100 * a:g} %" for a in alphas]
    lines = [f"| n = {n} | " + " | ".join(names) + " |", "|---" * (len(alphas) + 1) + "|"]
    lines.append("| oracle | " + " | ".join(f"{share:.3f}" for share in pool["oracle"]) + " |")
    for name, found in methods.items():
        cells = [
            f"{p['share']:.3f} ± {1.96 * p['se']:.3f}<br>{_broken(p['n_broken'], pool['draws'])}"
            for p in found["points"]
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _broken(n_broken: int, draws: int) -> str:
    text = f"{n_broken} of {draws}"
    return f"**{text}**" if clopper_pearson(n_broken, draws).low > ALLOWED else text


def _ratios(stored: list[dict[str, Any]]) -> list[str]:
    """Return our share over the best peer's at each pool, n and promise, and over each peer's mean."""
    lines = [
        "## At equal certified risk",
        "",
        "Mean share kept over all promises of a pool, and ours divided by it. Compared are methods that promise the same at 95 %"
        " and keep it: a peer broken beyond chance at one of a pool's promises is named, and left out there.",
        "",
    ]
    peers = [name for name in stored[0]["by_n"]["500"] if name not in (OURS, *UNPROVEN)]
    lines += ["| pool | n | ours | " + " | ".join(peers) + " |", "|---" * (len(peers) + 3) + "|"]
    totals: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for pool in stored:
        for n, methods in pool["by_n"].items():
            mine = _mean(methods[OURS])
            cells = []
            for name in peers:
                if name not in methods:
                    cells.append("not measured")
                    continue
                theirs = _mean(methods[name])
                worst = max(p["n_broken"] for p in methods[name]["points"])
                if clopper_pearson(worst, pool["draws"]).low > ALLOWED:
                    cells.append(f"{theirs:.3f} (broken in up to {worst} of {pool['draws']})")
                    continue
                totals[name].append((mine, theirs))
                cells.append(f"{theirs:.3f} ({mine / theirs:.2f} ×)" if theirs else "0 (–)")
            lines.append(f"| {pool['title']} | {n} | {mine:.3f} | " + " | ".join(cells) + " |")
    overall = []
    for name in peers:
        mine_sum, theirs_sum = (sum(pair[i] for pair in totals[name]) for i in (0, 1))
        overall.append(f"{mine_sum / theirs_sum:.2f} × on {len(totals[name])}" if theirs_sum else "–")
    lines += ["| all of these together | | | " + " | ".join(overall) + " |", ""]
    return lines


def _mean(found: dict[str, Any]) -> float:
    return sum(p["share"] for p in found["points"]) / len(found["points"])


COLOURS = {
    "oracle": "#999999",
    OURS: "#0a6b4f",
    "safedecide, 95 %": "#c2571a",
    "jevstiller, converted": "#7a4fa3",
    "MAPIE, its defaults": "#2f6db3",
}


def _drawing(stored: list[dict[str, Any]], n: str = "500") -> str:
    """Return the curves of every pool at `n` rows as one SVG, promises evenly spaced."""
    wide, high, gap = 250, 170, 45
    parts = []
    for i, pool in enumerate(stored):
        x0, y0 = 40 + (i % 3) * (wide + gap), 40 + (i // 3) * (high + 60)
        xs = [x0 + wide * k / (len(pool["alpha"]) - 1) for k in range(len(pool["alpha"]))]
        parts.append(f'<text x="{x0}" y="{y0 - 10}" font-weight="bold">{pool["title"]}</text>')
        parts.append(f'<path d="M{x0},{y0} V{y0 + high} H{x0 + wide}" fill="none" stroke="#444"/>')
        for share in (0, 0.5, 1):
            parts.append(f'<text x="{x0 - 6}" y="{y0 + high * (1 - share) + 4}" text-anchor="end">{share:g}</text>')
        for x, alpha in zip(xs, pool["alpha"], strict=True):
            parts.append(f'<text x="{x:.0f}" y="{y0 + high + 15}" text-anchor="middle">{100 * alpha:g}</text>')
        curves = {"oracle": pool["oracle"]}
        curves |= {name: [p["share"] for p in found["points"]] for name, found in pool["by_n"][n].items()}
        for name, colour in COLOURS.items():
            if name in curves:
                points = " ".join(f"{x:.1f},{y0 + high * (1 - s):.1f}" for x, s in zip(xs, curves[name], strict=True))
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    rows = (len(stored) + 2) // 3
    bottom = 40 + rows * (high + 60)
    for k, (name, colour) in enumerate(COLOURS.items()):
        parts.append(f'<rect x="{40 + k * 170}" y="{bottom - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{60 + k * 170}" y="{bottom - 4}">{name}</text>')
    parts.append(
        f'<text x="40" y="{bottom + 14}">x: at most so many % of the kept answers wrong; y: share small, n = {n}</text>'
    )
    size = f'width="{3 * (wide + gap) + 40}" height="{bottom + 24}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(parts) + "</svg>\n"
