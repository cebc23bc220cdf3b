"""RouteLLM's recorded answers, its published figures, and the measures of a router: the data of quality.py.

PGR at a share of calls is the part of the gap between weak and strong accuracy that is recovered; APGR is its mean over
all shares, CPT(x) the share at which it first reaches x (Ong et al. 2024, arXiv:2406.18665; interpolated
linearly between ten equal steps, as in their program).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smallfirst.stats.intervals import Estimate

STEPS, RESAMPLES = 10, 1000
LEVELS = (0.5, 0.8, 0.95)
WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
PRICE_RATIO = 0.24 / 24.7
"""Weak over strong, USD per million tokens, as RouteLLM gives them."""
GSM8K_LEFT_OUT = (0, 1, 2, 18, 67, 147, 233, 269, 285, 364, 530, 932)
MTBENCH_LEFT_OUT = (81, 88, 91, 92, 101, 104, 120, 122)
"""Rows and questions that RouteLLM leaves out, being in its training data (its contaminated_prompts.jsonl)."""

PUBLISHED = {
    "GSM8K": (
        ("BERT", "Arena", 0.438, 58.78, 83.84),
        ("Llama 3 8B", "Arena", 0.461, 56.09, 83.56),
        ("matrix factorisation", "Arena", 0.475, 53.59, 85.24),
        ("similarity-weighted ranking", "Arena", 0.475, 54.43, 82.11),
        ("BERT", "Arena and judge", 0.531, 44.76, 79.09),
        ("matrix factorisation", "Arena and judge", 0.565, 38.82, 72.62),
        ("similarity-weighted ranking", "Arena and judge", 0.568, 41.21, 72.20),
        ("Llama 3 8B", "Arena and judge", 0.622, 33.64, 63.26),
    ),
    "MT-Bench": (
        ("BERT", "Arena", 0.391, 78.09, 87.64),
        ("Llama 3 8B", "Arena", 0.573, 28.82, 77.53),
        ("matrix factorisation", "Arena", 0.580, 25.32, 74.26),
        ("similarity-weighted ranking", "Arena", 0.610, 37.85, 58.99),
        ("Llama 3 8B", "Arena and judge", 0.679, 31.50, 48.75),
        ("BERT", "Arena and judge", 0.751, 19.58, 34.02),
        ("similarity-weighted ranking", "Arena and judge", 0.759, 23.21, 36.04),
        ("matrix factorisation", "Arena and judge", 0.802, 13.40, 31.31),
    ),
}
"""Tables 1 and 3 of arXiv:2406.18665, without intervals there: router, training data, APGR, CPT 50 % and 80 % in %."""

ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")


class Table(NamedTuple):
    """One recorded benchmark; a row is a question with all its turns."""

    name: str
    texts: list[str]
    weak: np.ndarray
    strong: np.ndarray
    best: float
    """The highest score there is."""

    @property
    def gain(self) -> np.ndarray:
        """What the strong model adds, by row."""
        return self.strong - self.weak

    @property
    def outcomes(self) -> dict[str, list[float]]:
        """Learning targets: how well each model does, in [0, 1]."""
        return {"small": (self.weak / self.best).tolist(), "large": (self.strong / self.best).tolist()}


def gsm8k(folder: Path) -> Table:
    rows = _rows(folder / "routellm_gsm8k" / "test.jsonl")
    rows = [row for i, row in enumerate(rows) if i not in GSM8K_LEFT_OUT]
    weak, strong = (np.array([float(row[f"{who}_correct"]) for row in rows]) for who in ("weak", "strong"))
    return Table("GSM8K", [r["prompt"] for r in rows], weak, strong, 1.0)


def mtbench(folder: Path) -> Table:
    """As RouteLLM has it, the first turn decides for both."""
    questions: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(folder / "routellm_mtbench" / "test.jsonl"):
        if row["id"] not in MTBENCH_LEFT_OUT:
            questions.setdefault(row["id"], []).append(row)
    turns = list(questions.values())
    weak, strong = (np.array([np.mean([t["scores"][who] for t in each]) for each in turns]) for who in (WEAK, STRONG))
    return Table("MT-Bench", [each[0]["prompt"] for each in turns], weak, strong, 10.0)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curve(need: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return PGR at 0, 10, … 100 % of calls; rows of equal need are averaged over their order."""
    order = np.argsort(-need, kind="stable")
    _, first, inverse, size = np.unique(-need[order], return_index=True, return_inverse=True, return_counts=True)
    level = np.add.reduceat(gain[order], first) / size
    whole = np.concatenate([[0.0], np.cumsum(level[inverse])])
    shares = np.linspace(0, 1, STEPS + 1)
    pgr: np.ndarray = np.interp(shares, np.arange(len(whole)) / len(gain), whole) / whole[-1]
    return pgr


def apgr(pgr: np.ndarray) -> float:
    return float((pgr[1:] + pgr[:-1]).sum() / (2 * STEPS))


def calls_for(level: float, pgr: np.ndarray) -> float:
    """Return CPT, the share of calls at which the interpolated PGR first reaches `level`."""
    at = int(np.argmax(pgr >= level))
    return (at - (pgr[at] - level) / (pgr[at] - pgr[at - 1])) / STEPS


def figures(need: np.ndarray, gain: np.ndarray, *, resamples: int = RESAMPLES) -> list[Estimate]:
    """Return APGR and calls for each level, means over the seeds, with 95 % percentile intervals from resampled rows.

    The intervals hold the fitted scores fixed: they cover chance in the judged rows, not in the fitting.
    """

    def measured(rows: np.ndarray) -> np.ndarray:
        curves = [curve(one[rows], gain[rows]) for one in need]
        return np.mean([[apgr(each), *(calls_for(level, each) for level in LEVELS)] for each in curves], axis=0)

    draw, n = np.random.default_rng(0), len(gain)
    value = measured(np.arange(n))
    low, high = np.quantile([measured(draw.integers(0, n, n)) for _ in range(resamples)], [0.025, 0.975], axis=0)
    return [Estimate(value=v, low=a, high=b, n=n) for v, a, b in zip(value, low, high, strict=True)]


def published(name: str) -> str:
    """RouteLLM's own lines, as Markdown."""
    data = {"Arena": "65,000 votes of people", "Arena and judge": "the same, 120,000 verdicts of GPT-4"}
    return "".join(
        f"| RouteLLM: {who} | {data[what]} | {mean:.3f} | {half:.2f} | {most:.2f} | | |\n"
        for who, what, mean, half, most in PUBLISHED[name]
    )
