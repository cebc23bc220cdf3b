"""Promises from dirty logs, held against clean answers: how often a certificate is broken, and what it says then.

    python -m benchmarks.traffic.dirty_promises OUT.jsonl [--draws 200]          # a run that was stopped goes on
    python -m benchmarks.traffic.dirty_promises OUT.jsonl --page                 # write benchmarks/results/dirty_promises.md

A draw is a log of banking77 (`dirt.dirty_log`), a ridge regression on words learnt from two thirds of it, and `certify`
on the other third, as recorded and with the systematic findings settled as a person who knows would (`with_settlements`).
Broken: of all rows of the set outside the log, the accepted ones are wrong against clean answers more often than promised.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import linalg

from benchmarks.datasets import RESULTS, processor, read_lines
from benchmarks.traffic.dirt import Row, clean_cases, dirty_log
from smallfirst.base.stats.intervals import wilson
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.measuring.data_issues import SYSTEMATIC, DataIssue, find_issues
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.path.diagnostics import recorded_row
from smallfirst.path.project.rows import Rows
from smallfirst.path.project.settlements import Settlement, with_settlements
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.certificate.certify import certify

SET, LIMITS = "banking77", (0.1, 0.2, 0.3)
AT_RANDOM = (("", 0.0), ("random", 0.05), ("random", 0.1), ("random", 0.2), ("swapped", 0.1))
BY_SYSTEM = (("tenant", 0.2), ("renamed", 0.5), ("rule", 0.2), ("by_class", 0.2))
N_ROWS = {True: 1_500, False: 2_000}
"""Of a log with systematic and with random dirt."""
_DECISIONS = {"versions": "map", "rule": "old", "tenant": "drop"}


@cache
def _pool() -> tuple[dict[str, int], Any, list[str]]:
    """Return the row of each text, the features of all, and their right answers."""
    cases = dict(clean_cases(SET))
    return (
        {text: i for i, text in enumerate(cases)},
        TfidfFeatures.fit([*cases]).matrix([*cases]).tocsr(),
        [*cases.values()],
    )


def measure(kind: str, rate: float, seed: int) -> dict[str, Any]:
    systematic, started = (kind, rate) in BY_SYSTEM, time.process_time()
    log = dirty_log(SET, kind, rate, N_ROWS[systematic], seed)
    new = {row.right: row.answer for row in log if row.kind == "renamed"}
    certifies = np.random.default_rng(seed).permutation(len(log)) < len(log) // 3
    examples = [_example(row) for row in log]
    parts = {
        name: Dataset(name=name, examples=tuple(e for e, own in zip(examples, certifies, strict=True) if own == which))
        for name, which in (("train", False), ("calibration", True))
    }
    none = Dataset(name="none", examples=())
    rows = Rows(**parts, selection=none, test=none, open_ended=None)
    issues = [i for i in find_issues([recorded_row(e) for e in examples] if systematic else ()) if i.kind in SYSTEMATIC]
    found = {"recorded": _promises(rows, new, log)}
    if issues:
        found["settled"] = _promises(with_settlements(rows, [_settled(issue) for issue in issues]), new, log)
    named = [issue.kind for issue in issues]
    return {"kind": kind, "rate": rate, "seed": seed, "named": named, "seconds": time.process_time() - started} | found


def _example(row: Row) -> Example:
    asked = (Message(role="user", content=row.text),)
    return Example(messages=asked, answer=row.answer, shape="label", at=row.at.isoformat(), tenant=row.tenant)


def _settled(issue: DataIssue) -> Settlement:
    shared = {name: getattr(issue, name) for name in ("id", "kind", "what", "n", "names", "since", "tenant")}
    return Settlement(**shared, decision=_DECISIONS[issue.kind], at=datetime.now(UTC))


def _promises(rows: Rows, new: dict[str, str], log: Sequence[Row]) -> list[dict[str, Any]]:
    """Return for each limit whether it is promised, and what of all other rows is accepted and wrong."""
    place, features, right = _pool()
    learnt, kept = rows.train.examples, rows.calibration.examples
    at, own = ([place[e.text] for e in part] for part in (learnt, kept))
    others = np.setdiff1d(np.arange(len(right)), [place[row.text] for row in log])
    labels, given = np.unique([e.answer for e in learnt], return_inverse=True)
    targets = np.eye(len(labels))[given]
    kernel = (features[at] @ features[at].T).toarray() + np.eye(len(at))
    dual = features[at].T @ linalg.solve(kernel, targets - targets.mean(axis=0), assume_a="pos")
    scores = {name: features[part] @ dual + targets.mean(axis=0) for name, part in (("own", own), ("others", others))}
    said = {name: labels[table.argmax(axis=1)] for name, table in scores.items()}
    confidence = {name: np.clip(table.max(axis=1), 0, 1) for name, table in scores.items()}
    agrees = np.array([a == e.answer for a, e in zip(said["own"], kept, strict=True)])
    wrong = np.array([a not in (right[i], new.get(right[i])) for a, i in zip(said["others"], others, strict=True)])
    n, found = len(kept), []
    unasked = np.zeros(n, dtype=bool)
    data = CalibrationSet(confidence["own"][None], agrees[None], np.zeros((2, n)), unasked, unasked)
    for limit in LIMITS:
        made = certify(data, Guarantee(max_error=limit), model_fingerprint="words")
        accepted = confidence["others"] >= made.threshold
        issued = made.issued and bool(accepted.any())
        error = float(wrong[accepted].mean()) if issued else None
        found.append({"issued": issued, "share": float(accepted.mean()), "error": error})
    return found


def write_page(lines: Sequence[dict[str, Any]]) -> None:
    cells = [
        (cell, own)
        for cell in (*AT_RANDOM, *BY_SYSTEM)
        if (own := [x for x in lines if (x["kind"], x["rate"]) == cell])
    ]
    body = [
        "# Promises from dirty logs, against clean answers",
        "",
        f"`python -m benchmarks.traffic.dirty_promises OUT.jsonl`, {date.today()}, {processor()}, shared with other work. "
        f"Logs of {N_ROWS[True]:,} rows of {SET}, of {N_ROWS[False]:,} with dirt at random; a ridge regression on words",
        "learns from two thirds, `certify` promises on the other third, and all rows outside the log say what is true. "
        "*Issued*: draws with a promise. *Broken*: of all draws, those in which",
        "more of the accepted answers are wrong against clean answers than promised (Wilson, 95 %). *Named*: draws with a "
        "systematic finding, looked for where dirt is systematic. *Settled*: a person who knows",
        "what happened maps, drops or chooses what was found. Every certificate says that right is what the labels say, "
        "and one of a log that they are the large model's: dirt by class is told by that alone.",
        "",
        "| dirt | rate | draws | named | promise | issued | accepted | broken | settled: draws | issued | accepted | broken |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (kind, rate), own in cells:
        named = f"{sum(bool(x['named']) for x in own)} of {len(own)}" if (kind, rate) in BY_SYSTEM else ""
        settled = [x["settled"] for x in own if "settled" in x]
        for k, limit in enumerate(LIMITS):
            start = [kind or "none", f"{rate:.0%}", str(len(own)), named]
            both = [
                *_kept([x["recorded"][k] for x in own], limit),
                str(len(settled)),
                *_kept([x[k] for x in settled], limit),
            ]
            body.append("| " + " | ".join([*start, f"{limit:.0%}", *both]) + " |")
    (RESULTS / "dirty_promises.md").write_text("\n".join(body) + "\n", encoding="utf-8")


def _kept(made: Sequence[dict[str, Any]], limit: float) -> list[str]:
    issued = [one for one in made if one["issued"]]
    if not issued:
        return ["0", "", ""]
    at = wilson(sum(one["error"] > limit for one in issued), len(made))
    share = np.mean([one["share"] for one in issued])
    return [str(len(issued)), f"{share:.0%}", f"{at.value:.1%} [{at.low:.1%}, {at.high:.1%}]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    lines = list(read_lines(options.out)) if options.out.exists() else []
    done = {(line["kind"], line["rate"], line["seed"]) for line in lines}
    for seed in range(1, options.draws + 1) if not options.page else ():
        for kind, rate in (*AT_RANDOM, *BY_SYSTEM):
            if (kind, rate, seed) not in done:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(measure(kind, rate, seed)) + "\n")
    if options.page:
        write_page(lines)


if __name__ == "__main__":
    main()
