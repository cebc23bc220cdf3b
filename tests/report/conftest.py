"""Small reports whose figures can be checked by hand, and one of each kind of task that looks like a real run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from smallfirst.evaluation.evaluation import EvaluatedRow, Evaluation
from smallfirst.gate import Gate, GateLine, Verdict, check, smallest_passing
from smallfirst.report.findings import Ceiling, LeakEffect, LearningPoint, Suspect
from smallfirst.report.page import PromiseHeld, ReportData, TrainingSummary
from smallfirst.routing.certificate import Certificate, Promise, ThresholdPoint, certify
from smallfirst.stats import Estimate, wilson
from smallfirst.tasks.answer import Answer
from smallfirst.tasks.chat import Chat
from smallfirst.tasks.classify import Classify
from smallfirst.tasks.task import Part

GOLD = ("card", "card", "card", "card", "fee", "fee", "fee", "fee")


def evaluation(
    candidate: str, answers: str, *, cost_usd_per_1k: float, confidences: tuple[float, ...] = ()
) -> Evaluation:
    """An evaluation whose answers are given as letters: c = card, f = fee, - = none."""
    said = {"c": "card", "f": "fee", "-": None}
    rows = tuple(
        EvaluatedRow(
            key=f"row{i}",
            text=f"question {i}",
            gold=gold,
            answer=said[letter],
            correct=said[letter] == gold,
            confidence=confidences[i] if confidences else None,
            stage=candidate,
            certified=False,
            latency_ms=10.0,
            cost_usd=cost_usd_per_1k / 1000,
        )
        for i, (gold, letter) in enumerate(zip(GOLD, answers, strict=True))
    )
    right = sum(row.correct for row in rows)
    return Evaluation(
        candidate=candidate,
        model=f"{candidate}-model",
        task="tickets",
        split="test",
        dataset_fingerprint="aaaabbbbccccdddd",
        rows=rows,
        accuracy=wilson(right, len(rows)),
        measures={"macro_f1": Estimate(value=0.8125, low=0.4375, high=0.9375, n=8)},
        cost_usd_per_1k=cost_usd_per_1k,
        p50_ms=12.0,
        p95_ms=30.0,
        requests_per_s=None if candidate == "large" else 100.0,
    )


def routed_from(small: Evaluation, large: Evaluation, *, threshold: float) -> Evaluation:
    """The routed path by hand: sure rows stay small, the rest costs draft and large answer."""
    rows = tuple(
        s.model_copy(update={"stage": "small", "certified": True})
        if (s.confidence or 0.0) >= threshold
        else b.model_copy(update={"stage": "large", "cost_usd": s.cost_usd + b.cost_usd})
        for s, b in zip(small.rows, large.rows, strict=True)
    )
    right = sum(row.correct for row in rows)
    return small.model_copy(
        update={
            "candidate": "routed",
            "model": "small first",
            "rows": rows,
            "accuracy": wilson(right, len(rows)),
            "cost_usd_per_1k": sum(row.cost_usd for row in rows) / len(rows) * 1000,
        }
    )


def verdict(candidate: str, *, passed: bool) -> Verdict:
    """A verdict of one line."""
    line = GateLine(
        bar="accuracy at least 0.700",
        measured="0.875 [0.529, 0.978] n=8",
        passed=passed,
        advice="" if passed else "label 40 more rows",
        found=wilson(7, 8),
    )
    return Verdict(candidate=candidate, lines=(line,), passed=passed, evaluation_fingerprint="eeee")


def certificate(**changes: object) -> Certificate:
    """An issued certificate with a curve of three points."""
    curve = tuple(
        ThresholdPoint(
            threshold=threshold,
            n_kept=kept,
            errors_kept=errors,
            error_bound=bound,
            routed_accuracy=accuracy,
            routed_cost_usd_per_1k=cost,
        )
        for threshold, kept, errors, bound, accuracy, cost in (
            (0.95, 40, 0, 0.072, 0.96, 1.25),
            (0.80, 70, 1, 0.066, 0.97, 0.65),
            (0.50, 100, 9, 0.152, 0.91, 0.05),
        )
    )
    values: dict[str, Any] = {
        "issued": True,
        "why": "At 95 % confidence at most 10 % of kept answers are wrong.",
        "promised_error": 0.1,
        "confidence": 0.95,
        "threshold": 0.80,
        "n_labels": 100,
        "n_kept": 70,
        "errors_kept": 1,
        "error_bound": 0.066,
        "coverage": wilson(70, 100),
        "below": "escalate",
        "below_why": "Below it the large model is right more often.",
        "below_difference": None,
        "temperature": 1.1,
        "curve": curve,
        "model_fingerprint": "1111222233334444",
        "dataset_fingerprint": "5555666677778888",
    }
    return Certificate(**{**values, **changes})


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    """A function that returns an evaluation of eight rows."""
    return evaluation


@pytest.fixture
def make_verdict() -> Callable[..., Verdict]:
    """A function that returns a verdict of one line."""
    return verdict


@pytest.fixture
def make_certificate() -> Callable[..., Certificate]:
    """A function that returns a certificate, with any field changed."""
    return certificate


@pytest.fixture
def make_report() -> Callable[..., ReportData]:
    """A function that returns a report, with any field changed."""
    confidences = (0.99, 0.97, 0.9, 0.6, 0.98, 0.95, 0.85, 0.7)
    small = evaluation("small", "cccfffff", cost_usd_per_1k=0.05, confidences=confidences)
    large = evaluation("large", "ccccfffc", cost_usd_per_1k=2.0)
    routed = routed_from(small, large, threshold=0.8)

    def make(**changes: object) -> ReportData:
        values: dict[str, Any] = {
            "title": "Support tickets",
            "task": "tickets",
            "evaluations": (small, large, routed),
            "verdicts": (verdict("small", passed=True),),
            "smallest_passing": "small",
            "certificate": certificate(),
            "training": TrainingSummary(
                base="SmolLM2-135M-Instruct",
                method="full",
                epochs=2,
                seconds=600,
                tokens_per_s=500,
                train_rows=900,
                cost_usd=3.9,
                loss_curve=((1, 2.0), (2, 1.0), (3, 0.5)),
                validation_curve=((1.0, 0.8), (2.0, 0.875)),
            ),
            "requests_per_month": 10_000,
            "list_prices": (("hosted-mini", 0.25, 2.0),),
            "large_prompt_tokens": 400.0,
            "large_completion_tokens": 5.0,
            "promise_held": PromiseHeld.on(routed),
            "made_at": datetime(2026, 11, 25, 9, 30),
            "versions": {"smallfirst": "0.1.0"},
        }
        return ReportData(**{**values, **changes})

    return make


LABELS = ("refund", "card_lost", "fee", "transfer_late", "top_up_failed", "login", "other")
ASKED = {
    "refund": ("I want my money back for the order of {day}.", "When does the refund of {n} euros arrive?"),
    "card_lost": (
        "My card is gone since {day}.",
        "Somebody stole my wallet with the card in it on {day}, please block it.",
    ),
    "fee": ("Why was I charged {n} euros for a withdrawal?", "What is this fee of {n} on my statement of {day}?"),
    "transfer_late": ("The transfer of {n} euros is still not there.", "Sent on {day}, has not arrived."),
    "top_up_failed": ("Topping up with {n} euros failed.", "My top-up of {day} was declined, but the money is gone."),
    "login": ("I cannot log in since {day}.", "The code never comes, I have tried {n} times."),
    "other": ("Do you sell gift cards?", "Hello, is anybody there on {day}?"),
}
DAYS = ("Monday", "Tuesday", "Friday", "1 March", "the 24th")
NAMES = ("Ada Byron", "Jean Perrin", "Rosa Levi", "Ömer Şahin", "Li Wei", "Ines O'Brien")
CITIES = ("Porto", "Lyon", "Kraków", "São Paulo", "Delft")
SKILL = {"words": 0.55, "encoder": 0.72, "base": 0.2, "small": 0.9, "large": 0.93}
USD_PER_1K = {"words": 0.0004, "encoder": 0.004, "base": 0.06, "small": 0.045, "large": 1.9}
P50_MS = {"words": 0.4, "encoder": 6.0, "base": 55.0, "small": 48.0, "large": 900.0}


def question(kind: str, i: int) -> tuple[str, str]:
    """What row i asks and its right answer."""
    draw = random.Random(f"{kind}{i}")
    day, n = draw.choice(DAYS), draw.randint(3, 400)
    if kind == "classify":
        label = LABELS[min(int(draw.expovariate(0.5)), len(LABELS) - 1)]
        return draw.choice(ASKED[label]).format(day=day, n=n), label
    who, city = draw.choice(NAMES), draw.choice(CITIES)
    if kind == "extract":
        gold: dict[str, Any] = {
            "guest": {"name": who, "city": city},
            "nights": draw.randint(1, 9),
            "arrival": f"2026-0{draw.randint(1, 9)}-1{draw.randint(0, 9)}",
            "extras": draw.sample(["breakfast", "parking", "cot", "late check-out"], draw.randint(0, 2)),
        }
        if draw.random() < 0.4:
            gold["price"] = {"amount": n, "currency": "EUR"}
        price = f" The price agreed was {n} EUR." if "price" in gold else ""
        text = (
            f"Dear all, {who} from {city} arrives on {gold['arrival']} and stays for {gold['nights']} nights.{price} "
            f"Please note: {', '.join(gold['extras']) or 'nothing else'}. " + "Kind regards from the desk. " * (i % 9)
        )
        return text, json.dumps(gold, ensure_ascii=False)
    if kind == "answer":
        context = f"{who} was born in {city} in 18{n % 90 + 10}. " + "The town had a harbour and two mills. " * (i % 7)
        asked = (f"Where was {who} born?", city) if i % 2 else (f"When was {who} born?", f"18{n % 90 + 10}")
        return f"{context}\n\n{asked[0]}", asked[1]
    text = f"My parcel to {city} ordered on {day} has not come. What now? {who}"
    return text, f"Dear {who}, we are sorry. Your parcel to {city} is on its way and will be there within two days."


def mistaken(kind: str, gold: str, i: int, candidate: str) -> str | None:
    """A wrong answer that a model may well give; None for none."""
    draw = random.Random(f"{kind}{i}{candidate}wrong")
    if draw.random() < 0.04:
        return None
    if kind == "classify":
        near = {"fee": "refund", "refund": "fee", "transfer_late": "top_up_failed", "top_up_failed": "transfer_late"}
        return near.get(gold) if gold in near and draw.random() < 0.7 else draw.choice([x for x in LABELS if x != gold])
    if kind == "extract":
        said = json.loads(gold)
        what = draw.choice(["city", "nights", "extras", "price", "price", "arrival"])
        if what == "city":
            said["guest"]["city"] = draw.choice([c for c in CITIES if c != said["guest"]["city"]])
        elif what == "nights":
            said["nights"] += 1
        elif what == "extras":
            said["extras"] = [] if said["extras"] else ["breakfast"]
        elif what == "price":
            said = (
                {k: v for k, v in said.items() if k != "price"}
                if "price" in said
                else {**said, "price": {"amount": 80, "currency": "EUR"}}
            )
        else:
            said["arrival"] = said["arrival"].replace("2026", "2025")
        return json.dumps(said, ensure_ascii=False)
    if kind == "answer":
        return draw.choice([f"in {gold} or nearby", "the harbour", "unknown"])
    return gold[: draw.randint(12, 60)] if draw.random() < 0.6 else "Please call us."


def scored(kind: str, gold: str, answer: str | None) -> float:
    """How right an answer is: by the task, but for JSON the share of top-level fields that are equal."""
    if kind == "extract":
        there, said = json.loads(gold), json.loads(answer or "{}")
        return float(sum(there.get(k) == said.get(k) for k in {*there, *said}) / len({*there, *said}))
    return float(TASKS[kind].score((gold,), answer))


TASKS: dict[str, Any] = {
    "classify": Classify(name="tickets", labels=LABELS, other="other"),
    "answer": Answer(name="births", right_from=0.8),
    "chat": Chat(name="replies", scorers=("token_f1",), right_from=0.6),
}
RIGHT_FROM = {"classify": 1.0, "extract": 1.0, "answer": 0.8, "chat": 0.6}
FIELDS = ("guest", "nights", "arrival", "extras", "price")


def field_parts(rows: tuple[EvaluatedRow, ...]) -> tuple[Part, ...]:
    """Counts by top-level field, counted plainly."""
    made = []
    for name in FIELDS:
        pairs = [(json.loads(r.gold).get(name) or None, json.loads(r.answer or "{}").get(name) or None) for r in rows]
        made.append(
            Part(
                name=name,
                n_gold=sum(gold is not None for gold, _ in pairs),
                n_said=sum(said is not None for _, said in pairs),
                n_right=sum(gold is not None and gold == said for gold, said in pairs),
                n_missing=sum(gold is not None and said is None for gold, said in pairs),
                n_invented=sum(gold is None and said is not None for gold, said in pairs),
            )
        )
    return tuple(made)


def row_of(kind: str, candidate: str, i: int) -> EvaluatedRow:
    """What a candidate makes of row i: hard rows are missed more often, and the sure ones are right more often."""
    draw = random.Random(f"{candidate}{kind}{i}")
    text, gold = question(kind, i)
    hard = random.Random(f"hard{kind}{i}").random()
    likely = 1 / (1 + math.exp(-14 * (SKILL[candidate] - hard)))
    answer = gold if draw.random() < likely else mistaken(kind, gold, i, candidate)
    score = scored(kind, gold, answer)
    confidence = min(0.999, max(0.02, likely + draw.gauss(0, 0.05)))
    by_field = {name: min(1.0, confidence + 0.01 * k) for k, name in enumerate(FIELDS)} if kind == "extract" else {}
    return EvaluatedRow(
        key=f"{kind}{i}",
        text=text,
        gold=gold,
        answer=answer,
        score=score,
        correct=score >= RIGHT_FROM[kind],
        confidence=None if candidate == "large" else confidence,
        stage=candidate,
        certified=False,
        latency_ms=P50_MS[candidate] * draw.lognormvariate(0, 0.35),
        cost_usd=USD_PER_1K[candidate] / 1000 * draw.uniform(0.7, 1.3),
        field_confidence=by_field if candidate == "small" else {},
    )


def evaluated(kind: str, candidate: str, places: range, *, split: str = "test") -> Evaluation:
    """A candidate's evaluation on some of the rows."""
    rows = tuple(row_of(kind, candidate, i) for i in places)
    waits = sorted(row.latency_ms for row in rows)
    parts = field_parts(rows) if kind == "extract" else TASKS[kind].parts([r.answered for r in rows])
    measures = {} if kind == "extract" else TASKS[kind].measures([r.answered for r in rows])
    if kind == "extract":
        right, there, said = (sum(getattr(p, name) for p in parts) for name in ("n_right", "n_gold", "n_said"))
        share = wilson(right, there)
        f1 = 2 * right / (there + said)
        measures = {
            "field_f1": Estimate(value=f1, low=f1 - 0.02, high=min(1.0, f1 + 0.02), n=len(rows)),
            "field_recall": share,
        }
    return Evaluation(
        candidate=candidate,
        model={"large": "hosted-large-2026", "small": "tiny-135M fine-tuned"}.get(candidate, f"{candidate} model"),
        task=kind,
        split=split,
        dataset_fingerprint=f"{kind}-{split}",
        rows=rows,
        accuracy=wilson(sum(row.correct for row in rows), len(rows)),
        measures=measures,
        parts=parts,
        cost_usd_per_1k=1000 * sum(row.cost_usd for row in rows) / len(rows),
        p50_ms=waits[len(waits) // 2],
        p95_ms=waits[int(len(waits) * 0.95)],
        requests_per_s=None if candidate == "large" else 1000 / P50_MS[candidate] * 2,
        note="recorded on 3 November 2026" if candidate == "large" else "",
    )


BARS = {
    "classify": (Gate(accuracy_at_least=0.8, not_worse_than_large_by=0.1), 0.1),
    "extract": (Gate(accuracy_at_least=0.87, not_worse_than_large_by=0.08, measures_at_least={"field_f1": 0.9}), 0.04),
    "answer": (Gate(accuracy_at_least=0.97, not_worse_than_large_by=0.02), 0.05),
    "chat": (Gate(measures_at_least={"token_f1": 0.8}), 0.1),
}
"""What is asked of each kind: the gate, and how many kept answers may be wrong."""


def sample(kind: str, *, n: int = 400) -> ReportData:
    """A whole report of one kind of task, made by the gate and the certificate themselves."""
    ladder = ("words", "encoder", "small", "large") if kind == "classify" else ("base", "small", "large")
    test = {name: evaluated(kind, name, range(n)) for name in ladder}
    before = {name: evaluated(kind, name, range(1000, 1400), split="calibration") for name in ("small", "large")}
    issued = certify(
        before["small"], before["large"], Promise(at_most_wrong=BARS[kind][1]), model_fingerprint="1111222233334444"
    )
    routed = routed_from(test["small"], test["large"], threshold=issued.threshold)
    gate = BARS[kind][0]
    verdicts = tuple(
        check(gate, e, large=test["large"], comparisons_made=len(ladder)) for e in (*test.values(), routed)
    )
    wrong = [row for row in test["small"].rows if not row.correct and row.answer]
    return ReportData(
        title={"classify": "Bank tickets", "extract": "Hotel bookings", "answer": "Births", "chat": "Replies"}[kind],
        task={"classify": "tickets", "extract": "bookings", "answer": "births", "chat": "replies"}[kind],
        kind=kind,
        right_from=RIGHT_FROM[kind],
        evaluations=(*test.values(), routed),
        validation_evaluations=(before["small"],),
        verdicts=verdicts,
        smallest_passing=smallest_passing(verdicts),
        certificate=issued,
        promise_held=PromiseHeld.on(routed),
        training=TrainingSummary(
            base="tiny-135M",
            method="full",
            epochs=3,
            seconds=1260,
            tokens_per_s=810,
            train_rows=4000,
            cost_usd=0.035,
            loss_curve=tuple(
                (step, 2.5 * math.exp(-step / 90) + 0.2 + 0.05 * math.sin(step)) for step in range(1, 376)
            ),
            validation_curve=((1.0, 0.81), (2.0, 0.86), (3.0, 0.874)),
        ),
        requests_per_month=500_000,
        list_prices=(("hosted-large", 2.5, 10.0), ("hosted-mini", 0.15, 0.6)),
        large_prompt_tokens=740.0,
        large_completion_tokens=8.0,
        probes_ms={name: tuple(row.latency_ms for row in test[name].rows[:120]) for name in ladder if name != "large"},
        learning_curve=tuple(
            LearningPoint(rows, name, wilson(round(n * share), n))
            for name, shares in (("words", (0.4, 0.5, 0.58, 0.62)), ("small", (0.55, 0.7, 0.81, 0.87)))
            for rows, share in zip((250, 1000, 2000, 4000), shares, strict=True)
            if name in ladder
        ),
        suspects=tuple(
            Suspect(
                key=r.key,
                text=r.text,
                gold=r.gold,
                said=r.answer or "",
                confidence=r.confidence,
                agrees=("small", "encoder"),
            )
            for r in sorted(wrong, key=lambda r: -(r.confidence or 0))[:20]
        ),
        suspects_export=f"smallfirst suspects {kind}.yaml --to suspects.csv",
        ceiling=Ceiling(itself=wilson(186, 200), gold=wilson(225, 240), note="200 rows asked twice at temperature 0."),
        leaks=LeakEffect(
            n_leaked=1,
            n_test=n,
            accuracy_with=test["small"].accuracy,
            accuracy_without=wilson(sum(r.correct for r in test["small"].rows[1:]), n - 1),
        ),
        notes=("Rows: 4,000 to train on, 400 to choose by, 400 to certify, 400 to test, touched once.",),
        made_at=datetime(2026, 11, 25, 9, 30),
        versions={"smallfirst": "0.1.0", "python": "3.11.9"},
    )


@pytest.fixture(scope="session")
def samples() -> dict[str, ReportData]:
    """A whole report of each kind of task."""
    return {kind: sample(kind) for kind in RIGHT_FROM}
