"""What a run of so many minutes tries, leaves out and reaches, and whether it ends in time.

    python -m benchmarks.accuracy.minutes FOLDER [--set hosted_banking77] [--minutes 5 20] [--page]

Runs the whole path of a set of `benchmarks.routing.verdict_sets` without a ladder of its own for each number of minutes,
and keeps the figures in FOLDER; --page only writes benchmarks/results/ladder.md from them. Candidates and settings are
chosen on selection rows, the accuracy is that on test rows.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS
from benchmarks.routing.verdict_sets import task_file
from smallfirst.pipeline import run as pipeline
from smallfirst.progress import Progress
from smallfirst.project.candidates import get_candidate
from smallfirst.project.run_folder import RunFolder

HEAD = """# What a run reaches in so many minutes

`python -m benchmarks.accuracy.minutes FOLDER --set {sets} --minutes {minutes}` on {machine}, {date}; other work ran beside it. The time is
that of the whole run: check, fitting, measuring, gate, certificate and report. Candidates, their settings and the one that goes live are
chosen on selection rows; accuracies are those on test rows, with 95 % intervals.
"""


def measure(name: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Run the set once and return its figures."""
    file = task_file(name, folder).model_copy(
        update={"ladder": None, "name": f"{name}_{minutes:g}min".replace(".", "_")}
    )
    began = time.monotonic()
    summary, error = pipeline.try_run(file.with_minutes(minutes), progress=Progress())
    took = (time.monotonic() - began) / 60
    fitted = RunFolder.latest(file.name).fitted()
    assert fitted is not None
    paths = {
        path: (str(found.accuracy), found.accuracy.n, found.cost_usd_per_1k) for path, found in summary.paths.items()
    }
    return {
        "set": name,
        "minutes": minutes,
        "took": took,
        "fitted": fitted.minutes,
        "left_out": fitted.left_out,
        "paths": paths,
        "live": summary.promoted.candidate if summary.promoted else None,
        "error": str(error).splitlines()[0] if error else "",
    }


def page(found: list[dict[str, Any]]) -> str:
    """Return the page of what was measured."""
    sets, minutes = dict.fromkeys(one["set"] for one in found), dict.fromkeys(f"{one['minutes']:g}" for one in found)
    machine = f"{os.cpu_count()} shared cores, Zen 5, 24 GB"
    lines = [HEAD.format(sets=" ".join(sets), minutes=" ".join(minutes), machine=machine, date=date.today())]
    for one in found:
        lines.append(f"\n## {one['set']}, {one['minutes']:g} minutes: {one['took']:.1f} used\n")
        lines.append(
            "| candidate | fitted in | accuracy on test rows | n | per 1,000 requests | |\n|---|---|---|---|---|---|"
        )
        for name, took in one["fitted"].items():
            accuracy, n, usd = one["paths"].get(name, ("not measured", 0, 0.0))
            live = "goes live" if name == one["live"] else ""
            title = get_candidate(name).title
            lines.append(f"| {title} | {took:.1f} min | {accuracy} | {n:,} | ${usd:.2g} | {live} |")
        for name in ("routed", "large"):
            if name in one["paths"]:
                accuracy, n, usd = one["paths"][name]
                lines.append(f"| {name} | – | {accuracy} | {n:,} | ${usd:.2g} | |")
        lines += ["", *(f"- `{name}` left out: {why}" for name, why in one["left_out"].items())]
        if one["error"]:
            lines.append(f"- ended with: {one['error']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", dest="sets", nargs="+", default=["hosted_banking77"])
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 20])
    parser.add_argument("--page", action="store_true")
    wanted = parser.parse_args()
    folder = wanted.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SMALLFIRST_HOME", str(folder / "home"))
    if not wanted.page:
        for name in wanted.sets:
            for minutes in wanted.minutes:
                found = measure(name, minutes, folder)
                (folder / f"{name}-{minutes:g}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*-*.json")]
    kept.sort(key=lambda one: (one["set"], one["minutes"]))
    (RESULTS / "ladder.md").write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
