"""Write benchmarks/results/takeover.md from what the three parts of this benchmark have measured.

python -m benchmarks.serving.takeover_page FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import RESULTS
from benchmarks.serving.takeover import MACHINE
from benchmarks.serving.takeover_changes import CHANGE_AT, MOST
from smallfirst.base.stats.intervals import clopper_pearson

QUIET_USD = 0.00046 / 1000
"""Cost of a draft of the candidate `encoder` alone on a quiet machine."""

HEAD = """# From an empty store to a task that is taken over

{date}, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11; other work ran beside (load 8 to 11), so minutes and latencies are upper
bounds. Traffic: the 13,083 Banking77 messages with the answers, bills and latencies of deepseek-v4.1-flash (recorded 2026-09-26; its own
accuracy is 0.738 on the training rows and 0.758 on the test rows), in an order drawn by chance, through OpenAI's SDK: 48 requests at a
time until the take-over, 16 after it. Ladder: words, encoder. Own costs are times at $0.10 an hour, 30 % of it
used; a draft measured alone costs $0.00046 per 1,000.
Nobody labelled anything unless it is said. Right is what the hosted model answered, byte for byte, unless gold is named.
"""


REDRAWS = """
## Redraws: is the promise kept?

`python -m benchmarks.serving.takeover_redraws FOLDER --rows N`: the candidate `encoder` alone on cached vectors, the same
rule for the certificate. Broken: more than 5 % of the kept answers differ, over all recorded requests that were not learnt
from; the promise allows this in 5 % of the draws. Shares are medians over the issued certificates with 2.5 and 97.5 %.

| requests learnt from | draws | certificate issued | promise broken, of all draws | kept of the next 3,000 | of these different | agreement of all drafts |
|---|---|---|---|---|---|---|"""
CHANGES = f"""
## Silent changes

`python -m benchmarks.serving.takeover_changes FOLDER`: the task above at share 1; after {CHANGE_AT:,} requests one thing
changes. Unnamed model: the upstream answers gold from then on, which differs from the recorded answers on 26 % of the rows.
Wrong: a small answer that differs from what the upstream would have said at that moment. Medians with the smallest and the
largest of the repetitions; {MOST:,} requests after the change at most. `nothing` counts false steps back. Traffic: only the
15 intents on which the hosted model is wrong most often; 4 to 5 % of the kept answers differ there, so the promise holds.

| change | audited | repetitions | stepped back | requests until then | small answers meanwhile | of these wrong | cause |
|---|---|---|---|---|---|---|---|"""


def share(found: list[float]) -> str:
    k, n, value, low, high = found
    return f"{value:.3f} [{low:.3f}, {high:.3f}], {int(k):,} of {int(n):,}"


def way_lines(title: str, found: dict[str, Any], command: str) -> list[str]:
    tried = "; ".join(
        f"{a['requests']:,} ({a['minutes']:.1f} min, {'learnt' if a['exit'] == 0 else 'not yet'})"
        for a in found["attempts"]
    )
    minutes = found["minutes_of_learning"]
    paid = minutes / 60 * MACHINE["usd_per_hour"]
    n = int(found["share_small"][1])
    unpaid = found["usd_not_paid"] - found["usd_audits"]

    def saved(drafts: float) -> str:
        left = unpaid - drafts
        after = f"{paid / left * n:,.0f} requests" if left > 0 else "never"
        shown = f"${found['usd_not_paid']:.4f} - ${drafts:.4f} - ${found['usd_audits']:.4f} = ${left:.4f}"
        return f"{shown}; learning is paid after {after}"

    rows = [
        ("promise", found["learnt"]["promise"]),
        ("attempts: requests until then", tried),
        ("requests until take-over", f"{found['requests_until_take_over']:,}"),
        ("answered small, of the requests after it", share(found["share_small"])),
        ("of these different from the hosted model", share(found["differ_from_large"])),
        ("of these wrong by gold", share(found["wrong_by_gold"])),
        ("accuracy by gold of all answers after it", share(found["accuracy"])),
        ("the hosted model's own on the same rows", share(found["accuracy_large"])),
        (
            "p50 before, after, of small answers",
            f"{found['p50_before_ms']:.0f} ms, {found['p50_after_ms']:.0f} ms, {found['p50_small_ms'] or 0:.0f} ms",
        ),
        ("bill of the hosted model", f"${found['usd_of_large_per_1k']:.4f} per 1,000"),
        ("learning, all attempts", f"{minutes:.1f} min, ${paid:.4f}"),
        ("bill not paid, less drafts, less audits: drafts as measured alone", saved(n * QUIET_USD)),
        ("the same with drafts as they waited on the busy machine", saved(found["usd_drafts"])),
    ]
    return [f"\n## {title}\n", f"`{command}`\n", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]


def redraw_lines(folder: Path) -> list[str]:
    lines = [REDRAWS]
    for path in sorted(folder.glob("redraws-*.json"), key=lambda p: int(p.stem.split("-")[1])):
        draws = json.loads(path.read_text())
        issued = [one for one in draws if one["issued"]]
        broken = clopper_pearson(sum(one["differs_of_all"] > 0.05 for one in issued), len(draws))
        spread = {name: np.percentile([one[name] for one in issued], [50, 2.5, 97.5]) for name in ("share", "differs")}
        alone = statistics.mean(one["agreement_alone"] for one in draws)
        cells = [f"{int(path.stem.split('-')[1]):,}", str(len(draws)), f"{len(issued)} of {len(draws)}"]
        cells += [f"{broken.value:.3f} [{broken.low:.3f}, {broken.high:.3f}]"]
        cells += [f"{mid:.3f} ({low:.3f} to {high:.3f})" for mid, low, high in spread.values()]
        lines.append("| " + " | ".join([*cells, f"{alone:.3f}"]) + " |")
    return lines


def change_lines(results: list[dict[str, Any]]) -> list[str]:
    lines = [CHANGES]
    for change, audited in dict.fromkeys((one["change"], one["audit_share"]) for one in results):
        mine = [one for one in results if (one["change"], one["audit_share"]) == (change, audited)]
        back = [one for one in mine if "stepped_back_at" in one]
        cells = [change, f"{audited:.0%}", str(len(mine)), f"{len(back)} of {len(mine)}"]
        for name in ("stepped_back_at", "small", "wrong"):
            values = [one.get(name, MOST) for one in (back if name == "stepped_back_at" else mine)]
            cells.append(f"{statistics.median(values):,.0f} ({min(values):,} to {max(values):,})" if values else "–")
        cells.append(", ".join(sorted({one["cause"] for one in back})) or "–")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    lines = [HEAD.format(date=date.today().isoformat())]
    found = json.loads((folder / "way-1.json").read_text())
    lines += way_lines("Without a label from a person", found, "python -m benchmarks.serving.takeover FOLDER")
    corrected = folder / "way-1-500.json"
    if corrected.exists():
        command = (
            "python -m benchmarks.serving.takeover FOLDER --corrections 500 --max-error 0.2 --first 4000 --test-rows"
        )
        lines += way_lines("With 500 people's corrections", json.loads(corrected.read_text()), command)
    lines += redraw_lines(folder)
    if (folder / "changes.json").exists():
        lines += change_lines(json.loads((folder / "changes.json").read_text()))
    (RESULTS / "takeover.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
