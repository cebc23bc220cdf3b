"""Answers with a confidence for each field, which `field_certificates.py` certifies.

    python -m benchmarks.routing.field_tables OUT restaurant8k    # a fine-tune of some minutes
    python -m benchmarks.routing.field_tables OUT invoices        # seconds to minutes, no weights needed

A line of OUT/SET.jsonl: key, part, group, confidence, correct and, by field of the schema, confidence and correct.
Restaurant-8k: SmolLM2-135M-Instruct, upper third of its layers, one epoch of 2,000 training rows: a weak model, so that there is
something to certify. Answers to all 820 validation rows and to 900 test rows by content hash.
Invoices: a linear ranker of candidate values. For each field the candidates are the dates, amounts, codes, names and currencies
found in the text (and null); a logistic regression on the words around them gives each the probability of being right, and
the best one is the answer, its confidence being that probability's share among all candidates. `new`: all 24 templates, those of
the training file in five folds of four templates, those of the validation file by a model of the other 20. `known`: rows of
the 20 training templates by a model that learnt from other rows of theirs. `large` is what the hosted model answered.
"""

from __future__ import annotations

import asyncio
import hashlib
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

from benchmarks.datasets import data_folder, read_lines, task_file
from smallfirst.base.records import fingerprint
from smallfirst.data.dataset import Dataset, Example
from smallfirst.data.sources.load import load_rows
from smallfirst.models.catalog import find_weights
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Request
from smallfirst.registry import runs
from smallfirst.tasks.extract import Extract
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import train

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LEARNT_ROWS = 40
"""Rows of a template that a model learns from."""
FOLDS = 5
_MONTHS = {
    month: i
    for i, month in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], start=1
    )
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


def restaurant8k(out: Path) -> list[dict[str, Any]]:
    name = "restaurant8k"
    train_rows, parts, task, config = restaurant8k_setup()
    with runs.open_run("field-tables", name, params={}) as tracked:
        recipe = TaskRecipe(task, train_rows, Dataset(name=name, examples=train_rows.examples[:20]))
        found = train(recipe, config, base=(SMALL, find_weights(SMALL)), tracked=tracked, folder=out / name)
    return asyncio.run(answer_all(found.folder, task, parts))


def restaurant8k_setup() -> tuple[Dataset, dict[str, Dataset], Extract, TrainConfig]:
    file = task_file("restaurant8k", data_folder("restaurant8k"))
    columns = file.data.columns
    rows = {part: load_rows(getattr(file.data, part), columns=columns) for part in ("train", "validation", "test")}
    settings = Extract.complete_settings(
        {"name": "restaurant8k", "about": file.model_dump()["about"]}, rows["train"], []
    )
    parts = {"validation": rows["validation"], "test": hashed(rows["test"], 900)}
    config = TrainConfig(duration="1ep", learning_rate=3e-4, batch_tokens=512, method="lora")
    return hashed(rows["train"], 2000), parts, Extract(**settings), config


def hashed(rows: Dataset, n: int) -> Dataset:
    order = sorted(rows.examples, key=lambda e: hashlib.sha256(e.key.encode()).hexdigest())
    return Dataset(name=rows.name, examples=tuple(order[:n]))


async def answer_all(folder: Path, task: Extract, parts: dict[str, Dataset]) -> list[dict[str, Any]]:
    model, lines = load_model(folder), []
    busy = asyncio.Semaphore(16)

    async def ask(part: str, example: Example) -> dict[str, Any]:
        async with busy:
            completion = await model.complete(Request(messages=example.messages))
        answer = task.parse(completion.text)
        wrong = task.wrong_fields(example.golds, answer)
        confidence = completion.field_confidence
        return {
            "key": example.key, "part": part, "group": example.group, "confidence": completion.confidence,
            "correct": task.score(example.golds, answer) == 1, "gold": json.loads(example.answer),
            "fields": {
                name: {"confidence": confidence.get(name, 0.0), "correct": name not in wrong}
                for name in task.json_schema["properties"]
            },
        }  # fmt: skip

    try:
        for part, rows in parts.items():
            lines += await asyncio.gather(*(ask(part, example) for example in rows.examples))
    finally:
        await model.aclose()
    return lines


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
    large = {"correct": all(hosted.get(f) == row["target"][f] for f in FIELDS)}
    return {
        "key": fingerprint([part, row["text"]]), "part": part, "group": row["template"],
        "confidence": min(one["confidence"] for one in fields.values()),
        "correct": all(one["correct"] for one in fields.values()), "fields": fields, "large": large,
    }  # fmt: skip


def invoices(_: Path) -> list[dict[str, Any]]:
    """Return what rankers say that have not seen the layout, or not the row."""
    folder = data_folder("hosted_invoices")
    rows = {part: list(read_lines(folder / f"{part}.jsonl.gz")) for part in ("train", "validation")}
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
    ranker = learnt(templates)
    lines += [line(ranker, row, "new") for row in rows["validation"]]
    lines += [line(ranker, row, "known") for name in templates for row in by_template[name][LEARNT_ROWS:]]
    return lines


def main() -> None:
    out, name = Path(sys.argv[1]), sys.argv[2]
    lines = {"restaurant8k": restaurant8k, "invoices": invoices}[name](out)
    (out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for part in sorted({line["part"] for line in lines}):
        own = [line for line in lines if line["part"] == part]
        fields = [field["correct"] for line in own for field in line["fields"].values()]
        right = np.mean([line["correct"] for line in own])
        print(f"{part}: {len(own)} rows, all right {right:.3f}, fields right {np.mean(fields):.3f}")


if __name__ == "__main__":
    main()
