"""The page of benchmarks/robustness/abuse.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from benchmarks.paths import RESULTS
from benchmarks.robustness.abuse_judge import Found

RESULT = RESULTS / "abuse.md"


def write_page(
    seed: int, rows: Sequence[Any], found: Sequence[Found], wrong: Sequence[str], states: Mapping[str, Any]
) -> None:
    """Write the page. `rows` are (group, results, seconds, state)."""
    n_right = sum(not one.wrong for one in found)
    lines = [
        "# Abuse: hostile requests against a running server",
        "",
        f"`python -m benchmarks.robustness.abuse FOLDER`, seed {seed}, {date.today().isoformat()}. {len(found):,} requests over",
        "sockets, four at once (slow ones all at once), to one process with default settings: a tiny",
        "Llama, a model that floods, five keys.",
        "",
        f"**{n_right:,} of {len(found):,} as required.** Required of each: no 5xx (except 503 with Retry-After), an",
        "answer or the end of the connection in time, a status that is right, an error in OpenAI's form, nothing of",
        "paths, traces, keys or another tenant's text; the log and the ledger are searched as well. After each group a",
        "valid request must be answered. Memory is counted from its level after the largest allowed requests.",
        "",
        "| group | requests | statuses (0 = closed without one) | slowest s | wrong | RSS MiB | threads | files |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, results, _, state in rows:
        statuses = Counter(s for one in results for s in (one.answer.statuses or (0,)))
        shown = " ".join(f"{s}×{n}" for s, n in sorted(statuses.items()))
        slowest, n_wrong = max(one.answer.seconds for one in results), sum(bool(one.wrong) for one in results)
        held = f"{state.rss_mib:.0f} | {state.n_threads} | {state.n_files}"
        lines.append(f"| {group} | {len(results)} | {shown} | {slowest:.1f} | {n_wrong} | {held} |")
    for when, state in ((name, states[name]) for name in ("before", "at rest")):
        held = f"{state.rss_mib:.0f} MiB, {state.n_threads} threads, {state.n_files} files"
        lines += ["", f"{when.capitalize()}: {held}."]
    failed = [f"- {one.attack.group} / `{one.attack.name!r}`: {what}" for one in found for what in one.wrong]
    failed += [f"- {what}" for what in wrong]
    lines += ["", "## Wrong", "", *failed] if failed else []
    RESULT.write_text("\n".join(lines) + "\n")
