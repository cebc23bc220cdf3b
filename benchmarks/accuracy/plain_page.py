"""The page of `plain_runs.py`: what went live in each case, and how it answered the rows that the run never had."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.plain_sets import MAX_GIVEN, MAX_HELD_BACK, SAMPLED, SEED, case_names
from benchmarks.datasets import RESULTS
from smallfirst.stats.intervals import Estimate, wilson

PAGE = RESULTS / "plain_runs.md"
CANDIDATES = ("words", "encoder", "tuned")
LIVE_KINDS = ("small alone", "small first")

HEAD = """# Plain runs: what goes live for a user who sets data, gate and ladder

`python -m benchmarks.accuracy.plain_runs`, {dates}, {machine}, shared with other work, so minutes are upper bounds. Each case is one file
of labelled rows and a task.yaml with `data`, `ladder: [words, encoder, tuned]` and `gate: {{accuracy_at_least: …}}`; the run splits the file
itself, and the default guarantee applies. Gates were fixed by rule before anything was measured: 0.80 for samples, 0.90 for sets in full, 0.85 for those
with 100 labels or more. Rows held back were never given to the run: official test rows, for samples also training rows that were not drawn;
copies of given texts are left out, at most {held_sample:,} rows ({held_full:,} for sets in full).

Samples are plain draws (seed {seed}) from {sampled}: banking77 15 labels, clinc150 two domains, snips its 7 intents, tool_calls four services. Of sets in full at
most {given:,} rows are given. `tool_calls`: a row is what assistant and user said last before a call, its label the function; dialogues are never on both sides.
`hosted_banking77` is banking77 with a hosted model's recorded answers as `large`, with the models fitted for banking77; no other case has a large model.

*Live on test rows*: accuracy of what goes live on the run's own test rows. *Live, held back*: the same on held-back rows; a request that is refused as out of scope counts as wrong, one that is left to a person is not counted. *Promised*: share of
held-back rows answered under the promise. Intervals are at 95 % (Wilson; Clopper and Pearson for wrong answers). A candidate in bold went live.
"""


def write(runs: Path, labels: Sequence[str]) -> Path:
    """Write the page from the results RUNS/LABEL/CASE.json; return its path."""
    results = {label: read_results(runs / label) for label in labels}
    PAGE.write_text(page(results), encoding="utf-8")
    return PAGE


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of a label by case, in the order of the cases."""
    paths = ((name, folder / f"{name}.json") for name in case_names())
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths if path.exists()}


def page(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> str:
    """Return the page; `results` are by label, then by case."""
    every = [found for by_case in results.values() for found in by_case.values()]
    machine = f"{os.cpu_count()} {_vendor()} cores, no GPU, Python {platform.python_version().rpartition('.')[0]}"
    lines = [
        HEAD.format(
            dates=", ".join(sorted({found["checkout"]["date"] for found in every})),
            machine=machine,
            held_sample=MAX_HELD_BACK["sample"],
            held_full=MAX_HELD_BACK["full"],
            given=MAX_GIVEN,
            seed=SEED,
            sampled=", ".join(SAMPLED),
        )
    ]
    commits = {label: sorted({f["checkout"]["commit"] for f in found.values()}) for label, found in results.items()}
    for label, found in commits.items():
        missing = [name for name in case_names() if name not in results[label]]
        lines.append(f"- {label}: commit {', '.join(found)}" + (f"; not run: {', '.join(missing)}" if missing else ""))
    lines.append("")
    lines += ["## In sum", "", *summary(results), "", "## Case by case", ""]
    lines += [
        "| case | rows, labels | gate | | verdict | live on test rows | live, held back | "
        "words / encoder / tuned, held back | promised | wrong among promised | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in case_names():
        found = {label: by_case[name] for label, by_case in results.items() if name in by_case}
        lines += [_row(one, label, first=i == 0) for i, (label, one) in enumerate(found.items())]
    lines += ["", "## What was said", ""]
    for name in case_names():
        for label, by_case in results.items():
            if name in by_case:
                one = by_case[name]
                way = "" if one["way"] == "anew" else f" ({one['way']})"
                lines.append(f"- **{name}**, {label}{way}, exit code {one['exit_code']}: {one['verdict']}")
    return "\n".join(lines) + "\n"


def summary(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> list[str]:
    """Return a table with a row for each label, over samples and over sets in full."""
    titles = [
        "cases",
        *LIVE_KINDS,
        "nothing live",
        "small alone, below its gate on held-back rows",
        "nothing live, though a candidate reaches the gate on held-back rows",
        "small alone behind the best candidate, in points on held-back rows (mean; worst)",
        "of which by the choice of the candidate, without what is refused (mean; worst)",
        "cases with a promise",
        "promised of all held-back rows",
        "wrong among promised",
    ]
    lines = [f"| | | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for part, is_full in (("samples", False), ("in full", True)):
        for label, by_case in results.items():
            found = [one for name, one in by_case.items() if name.endswith("-full") == is_full]
            if found:
                lines.append(f"| {part} | {label} | {' | '.join(_sums(found))} |")
    return lines


def _sums(found: Sequence[dict[str, Any]]) -> list[str]:
    live = [one for one in found if one["kind"] in LIVE_KINDS]
    alone = [one for one in live if one["kind"] == "small alone"]
    below = [one for one in alone if _live(one).value < one["gate"]]
    missed = [one for one in found if one not in live and _best(one) >= one["gate"]]
    behind = [100 * (_best(one) - _live(one).value) for one in alone]
    chosen = [100 * (_best(one) - _held(one, one["candidate"])["value"]) for one in alone]
    promised = [one["held_back"]["live"] for one in live if one["held_back"]["live"].get("promised", {}).get("value")]
    n_promised = sum(one["promised_wrong"]["n"] for one in promised)
    n_wrong = sum(one["n_promised_wrong"] for one in promised)
    kinds = [sum(one["kind"] == kind for one in found) for kind in LIVE_KINDS]
    return [
        str(len(found)),
        *map(str, kinds),
        str(len(found) - len(live)),
        f"{len(below)} of {len(alone)}",
        f"{len(missed)} of {len(found) - len(live)}",
        *(f"{sum(points) / len(points):.1f}; {max(points):.1f}" if points else "–" for points in (behind, chosen)),
        str(len(promised)),
        f"{n_promised:,} of {sum(one['n_held_back'] for one in found):,}",
        f"{n_wrong:,} of {n_promised:,}",
    ]


def _row(one: dict[str, Any], label: str, *, first: bool) -> str:
    live = one["held_back"].get("live", {})
    verdict = f"{one['kind']}: {one['candidate']}" if one["kind"] in LIVE_KINDS else one["kind"]
    held = []
    for name in CANDIDATES:
        value = _held(one, name)
        said = f"{value['value']:.3f}" if value else "–"
        held.append(f"**{said}**" if name == one["candidate"] else said)
    n = one["n_held_back"]
    cells = [one["case"], f"{one['n_given']:,}, {one['n_labels']}", f"{one['gate']:.2f}"] if first else ["", "", ""]
    wrong = live.get("promised_wrong", {})
    cells += [
        label,
        verdict,
        _estimate(one["test"]["live"]),
        f"{_estimate(_live(one).model_dump())}{_not_answered(live)}" if live else "–",
        f"{' / '.join(held)}, n={n:,}",
        f"{live['promised']['value']:.3f}" if wrong.get("n") else "0",
        f"{live['n_promised_wrong']} of {wrong['n']:,}: {_ends(wrong)}" if wrong.get("n") else "–",
        f"{one['minutes']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _live(one: Mapping[str, Any]) -> Estimate:
    """Return the share of right answers of the live path on held-back rows, without those left to a person."""
    live = one["held_back"]["live"]
    n_right = round(live["accuracy"]["value"] * live["accuracy"]["n"])
    return wilson(n_right, sum(live["stages"].values()) - live["stages"].get("person", 0))


def _not_answered(live: Mapping[str, Any]) -> str:
    said = {"out_of_scope": "refused", "person": "left to a person", "large": "by the large model"}
    n = sum(live["stages"].values())
    return "".join(f"; {live['stages'][k] / n:.3f} {what}" for k, what in said.items() if k in live["stages"])


def _held(one: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return the accuracy on held-back rows; empty if there is none."""
    found: Mapping[str, Any] = one["held_back"].get(name, {}).get("accuracy", {})
    return found


def _best(one: Mapping[str, Any]) -> float:
    return max((_held(one, name).get("value", 0.0) for name in CANDIDATES), default=0.0)


def _estimate(found: Mapping[str, Any] | None) -> str:
    return f"{found['value']:.3f} {_ends(found)}, n={found['n']:,}" if found else "–"


def _ends(found: Mapping[str, Any]) -> str:
    return f"[{found['low']:.3f}, {found['high']:.3f}]"


def _vendor() -> str:
    info = Path("/proc/cpuinfo")
    return "Intel" if info.exists() and "GenuineIntel" in info.read_text(encoding="utf-8") else platform.machine()
