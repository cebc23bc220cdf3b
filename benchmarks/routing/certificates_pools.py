"""The recorded answers that `certificates.py` resamples, as arrays for the threshold search."""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from smallfirst.evaluation.evaluate import Evaluation
from smallfirst.project.run_folder import RunFolder
from smallfirst.routing.certificate.outcomes import CascadeData, cascade_data


def banking(candidates: tuple[str, ...] = ("small",)) -> CascadeData:
    """Return calibration and test rows of the newest run together."""
    run, found = RunFolder.latest("banking77"), []
    for candidate in candidates:
        one, two = run.evaluation(candidate, "calibration"), run.evaluation(candidate, "test")
        assert one, f"{candidate} was not evaluated"
        assert two, f"{candidate} was not evaluated"
        found.append(joined(one, two))
    return cascade_data(found, None)


def joined(one: Evaluation, two: Evaluation) -> Evaluation:
    fields = {name: getattr(one, name) for name in Evaluation.model_fields}
    rows = {row.key: row for row in (*one.rows, *two.rows)}
    return Evaluation(**{**fields, "rows": tuple(rows.values()), "probes_ms": ()})


def gsm8k() -> CascadeData:
    """Return RouteLLM's weak and strong model on the 60 % of rows that the score of the weak draft was not fitted on."""
    rows, fit = _gsm8k_rows()
    score = draft_score(rows, fit)
    kept = [i for i in np.flatnonzero(~fit).tolist()]
    right = np.array([[rows[i]["weak_correct"] for i in kept]])
    price = np.array([[len(rows[i][f"{who}_response"]) / 4 * usd for i in kept] for who, usd in PRICES.items()])
    return CascadeData(
        confidence=score[kept][None, :],
        right=right,
        cost_usd=price,
        asked=np.ones(len(kept), dtype=bool),
        large_right=np.array([rows[i]["strong_correct"] for i in kept]),
    )


def gsm8k_questions() -> list[str]:
    """Return the questions of the rows of `gsm8k()`."""
    rows, fit = _gsm8k_rows()
    return [rows[i]["prompt"] for i in np.flatnonzero(~fit).tolist()]


def _gsm8k_rows() -> tuple[list[dict[str, Any]], np.ndarray]:
    path = Path(os.environ["SMALLFIRST_DATA"]) / "routellm_gsm8k" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return rows, np.array([_hashed(row["prompt"]) < 0.4 for row in rows])


PRICES = {"weak": 0.6e-6, "strong": 30e-6}
"""USD per written token, four characters each: a ratio of 50."""


def draft_score(rows: list[dict[str, Any]], fit: np.ndarray) -> np.ndarray:
    """Return the probability that the weak answer is right, from question and answer, fitted on the rows `fit` alone."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    plain_features = np.array([_features(row["prompt"], row["weak_response"]) for row in rows], dtype=float)
    plain_features = (plain_features - plain_features[fit].mean(0)) / (plain_features[fit].std(0) + 1e-9) / 2
    words = []
    for field in ("prompt", "weak_response"):
        texts = [row[field] for row in rows]
        vectors = TfidfVectorizer(min_df=2, ngram_range=(1, 2), sublinear_tf=True)
        vectors.fit([text for text, chosen in zip(texts, fit, strict=True) if chosen])
        words.append(vectors.transform(texts))
    table = hstack([*words, plain_features]).tocsr()
    model = LogisticRegression(C=0.3, max_iter=1000).fit(
        table[fit], [row["weak_correct"] for row in np.array(rows)[fit]]
    )
    return np.asarray(model.predict_proba(table)[:, 1])


def _features(question: str, answer: str) -> list[float]:
    sums = re.findall(r"<<([^=<>]*)=([^<>]*)>>", answer)
    false = sum(not _computes(left, right) for left, right in sums)
    ends = bool(re.search(r"#### *-?[\d,]+\s*$", answer.strip()))
    lengths = [np.log(len(question)), np.log1p(len(answer)), answer.count("\n"), len(re.findall(r"\d+", question))]
    return [*lengths, len(sums), false, false > 0, ends, "####" in answer, "." in answer.rsplit("####", 1)[-1]]


def _computes(left: str, right: str) -> bool:
    signs: dict[type[ast.operator], Any] = {
        ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    }  # fmt: skip

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return float(signs[type(node.op)](value(node.left), value(node.right)))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return float(ast.literal_eval(node))

    try:
        return abs(value(ast.parse(left.strip(), mode="eval").body) - float(right.replace(",", ""))) < 0.01
    except (SyntaxError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return False


def _hashed(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def banking_with_large(recording: Path) -> CascadeData:
    """Return the rows of both splits with the smallest hashes, up to the first unrecorded one: a random part.

    Other rows of a recording, such as the least confident ones, are left out.
    """
    lines = [json.loads(line) for line in recording.read_text().splitlines()]
    said = {line["text"]: line for line in lines if "answer" in line}
    run, rows = RunFolder.latest("banking77"), []
    for split in ("calibration", "test"):
        small = run.evaluation("small", split)
        assert small, "small was not evaluated"
        ordered = sorted(small.rows, key=lambda row: hashlib.sha256(f"order{row.key}".encode()).hexdigest())
        missing = [row.text not in said for row in ordered]
        rows += ordered[: missing.index(True) if any(missing) else len(ordered)]
    fields = {name: getattr(small, name) for name in Evaluation.model_fields}
    small = Evaluation(**{**fields, "rows": tuple(rows), "probes_ms": ()})
    theirs = [
        row.model_copy(
            update={
                "answer": said[row.text]["answer"],
                "correct": said[row.text]["answer"].strip() == row.gold,
                "cost_usd": said[row.text]["cost_usd"],
            }
        )
        for row in rows
    ]
    return cascade_data([small], Evaluation(**{**fields, "candidate": "large", "rows": tuple(theirs), "probes_ms": ()}))
