"""Foretold and realised: the share of a task's requests that can move, before and after a model is trained.

    python -m benchmarks.traffic.foretold [--collection report] [--draws 40]

Discovers the tasks of a log of `benchmarks.traffic.mixed_log` and of one without tasks. For each task of labels the
candidate `encoder` (MiniLM, frozen, with a linear head) then learns the drafted rows; thresholds come from the drafted
validation rows by the certificate's own search, and the share is that of the test rows, which nothing has seen. The search is repeated on bootstrap draws of the validation rows; the first draw is the rows themselves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.paths import RESULTS
from benchmarks.traffic.mixed_log import mixed_log, noise_log
from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.threshold_search import choose_starts, search_threshold
from smallfirst.stats.intervals import wilson
from smallfirst.tasks.classify import Classify
from smallfirst.traffic.discovery.discover import discover
from smallfirst.traffic.discovery.found import Discovery, FoundTask
from smallfirst.traffic.discovery.outlook import LIMITS

PAGE = RESULTS / "foretold_share.md"
_SELECTING = 0.2


class Realised(NamedTuple):
    """What a trained model keeps at one limit."""

    share: float
    """Of the test rows, with the validation rows as they are."""
    mean: float
    """The mean over draws of the validation rows."""
    low: float
    high: float
    disagreement: tuple[int, int]
    """Kept test answers that differ from the large model's, and all kept ones."""


class Learnt(NamedTuple):
    """Confidence and rightness of a model on the rows of a part."""

    confidence: np.ndarray
    right: np.ndarray


def learn(folder: Path) -> tuple[Learnt, Learnt]:
    """Return the answers of the candidate `encoder` on the drafted validation and test rows."""
    parts = [load_rows(folder / f"{name}.jsonl", folder=folder) for name in ("rows", "validation", "test")]
    labels = tuple(sorted({answer for part in parts for answer in part.labels()}))
    task = Classify(name="task", labels=labels)
    model = LinearClassifier.fit("encoder", parts[0], task)
    validation, test = (_answers(model, part, labels) for part in parts[1:])
    return validation, test


def _answers(model: LinearClassifier, part: Dataset, labels: tuple[str, ...]) -> Learnt:
    logs = np.array([row.log_probabilities for row in model.score([example.text for example in part.examples])])
    right = [labels[i] == example.answer for i, example in zip(logs.argmax(axis=1), part.examples, strict=True)]
    return Learnt(np.exp(logs.max(axis=1)), np.array(right))


def realise(validation: Learnt, test: Learnt, limit: float, draws: int) -> Realised:
    """Return the share of the test rows that stays small at a limit."""
    rng, guarantee = np.random.default_rng(0), Guarantee(max_error=limit)
    n = len(validation.right)
    selecting = rng.permutation(n) < _SELECTING * n
    certifying = np.flatnonzero(~selecting)
    starts = choose_starts(
        validation.confidence[selecting], validation.right[selecting], len(certifying), limit, 1 - guarantee.confidence
    )
    shares, kept = [], np.zeros(0, dtype=bool)
    for draw in range(draws):
        rows = certifying if draw == 0 else rng.choice(certifying, size=len(certifying))
        found = search_threshold(
            validation.confidence[rows].tolist(), validation.right[rows].tolist(), guarantee, starts
        )
        accepted = test.confidence >= found.threshold
        kept = accepted if draw == 0 else kept
        shares.append(float(accepted.mean()))
    low, high = np.quantile(shares, (0.025, 0.975))
    wrong = int((kept & ~test.right).sum())
    return Realised(shares[0], float(np.mean(shares)), float(low), float(high), (wrong, int(kept.sum())))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--collection", default="report")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    began = time.perf_counter()
    truth = {}
    entries = mixed_log(given.collection)
    truth = {entry.truth.id: entry.truth.task for entry in entries}
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        found = discover((entry.exchange for entry in entries), out=out, log=print)
        found_s = time.perf_counter() - began
        del entries
        for task in found.tasks:
            lines += _rows(task, out, truth, given.draws)
            print("\n".join(lines[-4:]), flush=True)
    noise = discover((entry.exchange for entry in noise_log()), log=print)
    text = _page(given.collection, found, found_s, noise, lines, given.draws, time.perf_counter() - began)
    given.out.write_text(text, encoding="utf-8")


def _rows(task: FoundTask, out: Path, truth: dict[str, str], draws: int) -> list[str]:
    """Return the lines of a task's table: foretold, and realised where a model was trained."""
    first = json.loads((out / task.name / "rows.jsonl").read_text().splitlines()[0]) if task.folder else {"id": ""}
    name = truth.get(first["id"], "") or task.name
    head = f"| {name} | {task.kind} | {task.n_requests:,} "
    if not task.outlook.shares:
        return [f"{head}| – | not foretold: {task.why} | | | |"]
    if task.kind != "labels" or not (out / task.name / "test.jsonl").exists():
        return [
            f"{head}| {at.max_error:.0%} | {_share(at.share, at.low, at.high)} | | | |" for at in task.outlook.shares
        ]
    validation, test = learn(out / task.name)
    lines = []
    for limit in LIMITS:
        at, real = task.outlook.at(limit), realise(validation, test, limit, draws)
        inside = "yes" if at.low <= real.share <= at.high else "**no**"
        wrong, kept = real.disagreement
        differ = wilson(wrong, kept)
        lines.append(
            f"{head}| {limit:.0%} | {_share(at.share, at.low, at.high)} | {real.share:.2f}; "
            f"{_share(real.mean, real.low, real.high)} | {inside} | "
            + (f"{differ.value:.3f} [{differ.low:.3f}, {differ.high:.3f}], n = {kept} |" if kept else "– |")
        )
    return lines


def _share(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _page(
    collection: str, found: Discovery, found_s: float, noise: Discovery, lines: list[str], draws: int, all_s: float
) -> str:
    moving = [task.name for task in noise.tasks if task.verdict == "moves"]
    at = found.moving
    return "\n".join(
        [
            "# Which share can move: foretold and realised",
            "",
            f"`python -m benchmarks.traffic.foretold --collection {collection}`, 2026-11-27, {all_s:.0f} s on 2 shared cores "
            f"(Zen 5), 24 GB, no GPU, Python 3.11, beside other work; {found_s:.0f} s of it for the discovery.",
            "",
            f"The log: {found.n_exchanges:,} requests of `benchmarks.traffic.mixed_log`. Discovery saw nothing of the truth. "
            "Foretold: estimate and 95 % interval from a cheap model, cross-validated, under the certificate's search. "
            "Realised: the candidate `encoder` learns the drafted rows (half), the certificate's search takes its "
            "threshold from the drafted validation rows, and the share is that of the 15 % of the cases that test; behind it "
            f"mean and 95 % range over {draws} bootstrap draws of the validation rows. The last column is what the kept test "
            "answers differ by, with Wilson's interval.",
            "",
            "| task | answers | requests | may differ | foretold | realised; over draws | inside | kept answers that differ |",
            "|---|---|---:|---:|---|---|---|---|",
            *lines,
            "",
            f"In all: {at.share:.0%} of the bill foretold to move at 5 % [{at.low:.0%}, {at.high:.0%}].",
            "",
            "## Noise",
            "",
            f"{noise.n_exchanges:,} requests without a task (`noise_log`): {len(noise.tasks)} recurring prompts, of which "
            f"{len(moving)} are said to move{': ' + ', '.join(moving) if moving else ''}.",
            *(f"- {task.name}: {task.verdict}, {task.why}" for task in noise.tasks),
            "",
        ]
    )


if __name__ == "__main__":
    main()
