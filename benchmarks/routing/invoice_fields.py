"""Invoices read by a linear ranker of candidate values, every layout by a model that has not seen it.

    python -m benchmarks.routing.invoice_fields OUT_FOLDER     # seconds to minutes, no weights needed

For each field the candidates are the dates, amounts, codes, names and currencies found in the text (and null); a
logistic regression on the words around them gives each the probability of being right, and the best one is the answer,
its confidence being that probability's share among all candidates. `new`: all 24 templates, those of the training file
in five folds of four templates, those of the validation file by a model of the other 20. `known`: rows of the 20
training templates by a model that learnt from other rows of theirs. A line of OUT_FOLDER/hosted_invoices.jsonl is like
those of `field_tables`; `large` is what the hosted model answered and cost.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier

from benchmarks.datasets import data_folder
from smallfirst.records import fingerprint

LEARNT_ROWS = 40
"""Rows of a template that a model learns from."""
FOLDS = 5
_MONTHS = {
    m: i for i, m in enumerate(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1)
}
_DATE = re.compile(
    r"(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)|(?P<d2>\d{1,2})[ -](?P<M>[A-Z][a-z]{2})[a-z]*[ -](?P<y2>\d{4})"
    r"|(?P<M3>[A-Z][a-z]{2})[a-z]* (?P<d3>\d{1,2}),? (?P<y3>\d{4})|(?P<a>\d\d)[./](?P<b>\d\d)[./](?P<y4>\d{4})"
)
_DAYS = re.compile(r"\b(?:[Nn]et|within|in|due) ?(\d{1,3})\b|\b(\d{1,3}) days")
_AMOUNT = re.compile(r"(?<![\w.,/-])\d{1,3}(?:[ .,'’]\d{3})*[.,]\d\d(?![\w/-])|(?<![\w.,/-])\d+[.,]\d\d(?![\w/-])")
_CODE = re.compile(r"(?<![\w@./-])(?=[\w/-]*\d)[A-Z0-9][A-Z0-9/-]{4,}(?![\w@])")
_NAME = re.compile(
    r"(?:[A-Z][\w&'-]* ){1,4}(?:Ltd|LLC|Inc\.?|GmbH|S\.A\.|Corp\.?|plc|AG|B\.V\.|Co\.|Sp\. z o\.o\.|SARL|Limited)"
)
_CURRENCIES = {"EUR": "€", "USD": "$", "GBP": "£", "CHF": "Fr.", "PLN": "zł"}
FIELDS = {
    "vendor_name": "name", "invoice_number": "code", "invoice_date": "date", "due_date": "due", "currency": "currency",
    "total_amount": "amount", "tax_amount": "amount", "po_number": "code",
}  # fmt: skip
NULLABLE = {"due_date", "tax_amount", "po_number"}
Candidate = tuple[Any, dict[str, float]]


def dates(text: str) -> Iterator[tuple[str, int, int]]:
    us = "MM/DD" in text
    for match in _DATE.finditer(text):
        g = match.groupdict()
        year, month, day = g["y"] or g["y2"] or g["y3"] or g["y4"], g["m"], g["d"] or g["d2"] or g["d3"]
        if g["a"]:
            month, day = (g["a"], g["b"]) if us else (g["b"], g["a"])
        month = month or _MONTHS.get((g["M"] or g["M3"] or "").lower())
        try:
            yield date(int(year), int(month or 0), int(day)).isoformat(), match.start(), match.end()
        except ValueError:
            continue


def amount(said: str) -> float:
    digits = re.sub(r"\D", "", said)
    return int(digits) / 100


def candidates(text: str, kind: str) -> list[Candidate]:
    found: list[Candidate] = []
    spans: list[tuple[Any, int, int]]
    if kind == "currency":
        return [(c, {f"{c} n": min(3, text.count(c)), f"sign {s}": min(3, text.count(s)), "any": text.count(c) + text.count(s) > 0})
                for c, s in _CURRENCIES.items()]  # fmt: skip
    if kind in ("date", "due"):
        spans = list(dates(text))
    elif kind == "amount":
        spans = [(amount(m[0]), m.start(), m.end()) for m in _AMOUNT.finditer(text)]
    else:
        spans = [(m[0], m.start(), m.end()) for m in (_CODE if kind == "code" else _NAME).finditer(text)]
    for i, (value, start, end) in enumerate(spans):
        found.append(
            (value, around(text, start, end) | {f"place {min(i, 5)}": 1.0, f"from end {min(len(spans) - i, 4)}": 1.0})
        )
    if kind == "due":
        for base, start, end in dates(text):
            for match in _DAYS.finditer(text):
                later = date.fromisoformat(base) + timedelta(days=int(match[1] or match[2]))
                features = around(text, start, end, "base ") | around(text, match.start(), match.end(), "days ")
                found.append((later.isoformat(), features | {"computed": 1.0}))
    return found


def around(text: str, start: int, end: int, name: str = "") -> dict[str, float]:
    line = text[text.rfind("\n", 0, start) + 1 : start]
    before = re.findall(r"\w+|[^\w\s]", text[max(0, start - 60) : start].lower())[-4:]
    after = re.findall(r"\w+|[^\w\s]", text[end : end + 40].lower())[:3]
    shape = re.sub(r"[a-z]", "x", re.sub(r"[A-Z]", "X", re.sub(r"\d", "9", text[start:end])))
    features = {f"{name}line {word}": 1.0 for word in re.findall(r"\w+", line.lower())[-6:]}
    features |= {f"{name}before {len(before) - i} {word}": 1.0 for i, word in enumerate(before)}
    features |= {f"{name}near {word}": 1.0 for word in before} | {f"{name}after {word}": 1.0 for word in after}
    share = f"{name}at {int(5 * start / max(1, len(text)))}"
    return features | {f"{name}shape {shape[:3]}": 1.0, share: 1.0, f"{name}first of line": float(not line.strip())}


def all_candidates(text: str, field: str) -> list[Candidate]:
    found = candidates(text, FIELDS[field])
    best: dict[Any, dict[str, float]] = {}
    for value, features in found:  # one candidate a value, with the features of all its places
        best[value] = best.get(value, {}) | features
    if field in NULLABLE:
        words = set(re.findall(r"[a-z]{2,}", text.lower()))
        best[None] = {f"has {word}": 1.0 for word in words} | {"null": 1.0, f"of {min(8, len(best))}": 1.0}
    return list(best.items())


class Ranker:
    """One logistic regression a field."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.hasher = FeatureHasher(2**18)
        self.models = {field: self._fit(rows, field) for field in FIELDS}

    def _fit(self, rows: list[dict[str, Any]], field: str) -> SGDClassifier:
        features, right = [], []
        for row in rows:
            for value, given in all_candidates(row["text"], field):
                features.append(given)
                right.append(value == row["target"][field])
        model = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=15, tol=None, random_state=0)
        return model.fit(self.hasher.transform(features), right)

    def answer(self, text: str, field: str) -> tuple[Any, float]:
        """Return the best candidate and its share of the probability; null and 0 without candidates."""
        found = all_candidates(text, field)
        if not found:
            return None, 0.0
        scores = self.models[field].decision_function(self.hasher.transform([given for _, given in found]))
        chances = 1 / (1 + np.exp(-scores))
        best = int(chances.argmax())
        return found[best][0], float(chances[best] * chances[best] / chances.sum())


def line(ranker: Ranker, row: dict[str, Any], part: str) -> dict[str, Any]:
    fields = {}
    for field in FIELDS:
        value, confidence = ranker.answer(row["text"], field)
        fields[field] = {"confidence": confidence, "correct": value == row["target"][field]}
    hosted = json.loads(row["answer"]) if row["answer"].strip().startswith("{") else {}
    large = {"correct": all(hosted.get(f) == row["target"][f] for f in FIELDS), "cost_usd": row["cost_usd"]}
    return {
        "key": fingerprint([part, row["text"]]), "part": part, "group": row["template"], "template": row["template"],
        "confidence": min(one["confidence"] for one in fields.values()),
        "correct": all(one["correct"] for one in fields.values()), "fields": fields, "large": large, "gold": row["target"],
    }  # fmt: skip


def main() -> None:
    out = Path(sys.argv[1])
    folder = data_folder("restaurant8k").parent / "hosted_invoices"
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in ("train", "validation"):
        with gzip.open(folder / f"{part}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows[part] = [json.loads(text) for text in file]
    by_template: dict[str, list[dict[str, Any]]] = {}
    for row in rows["train"]:
        by_template.setdefault(row["template"], []).append(row)
    templates = sorted(by_template)

    def learnt(names: list[str]) -> Ranker:
        return Ranker([row for name in names for row in by_template[name][:LEARNT_ROWS]])

    lines = []
    for fold in range(FOLDS):
        held_out = templates[fold::FOLDS]
        ranker = learnt([name for name in templates if name not in held_out])
        lines += [line(ranker, row, "new") for name in held_out for row in by_template[name]]
        print(f"fold {fold}: {np.mean([one['correct'] for one in lines]):.3f} of {len(lines)} rows right", flush=True)
    ranker = learnt(templates)
    lines += [line(ranker, row, "new") for row in rows["validation"]]
    lines += [line(ranker, row, "known") for name in templates for row in by_template[name][LEARNT_ROWS:]]
    with (out / "hosted_invoices.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
    for part in ("new", "known"):
        own = [one for one in lines if one["part"] == part]
        fields = {f: np.mean([one["fields"][f]["correct"] for one in own]).round(3) for f in FIELDS}
        print(f"{part}: {len(own)} rows, {np.mean([one['correct'] for one in own]):.3f} right; {fields}")


if __name__ == "__main__":
    main()
