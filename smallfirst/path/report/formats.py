"""Figures and names as a person reads them: money, time, shares, differences, the paths in plain words."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup, escape

from smallfirst.base.stats.intervals import Estimate
from smallfirst.path.project.candidate_registry import CANDIDATES

_NAMES = {"routed": "routed: small first", "large": "large model"}
_EXPLANATIONS = {
    "routed": "the small model answers what it is sure of, the large one the rest",
    "large": "the model that the others are compared with",
}
MEASURES = {
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "in_scope_accuracy": "accuracy within scope",
    "other_recall": "recall of “other”",
    "field_f1": "field F1",
    "field_precision": "field precision",
    "field_recall": "field recall",
    "missing": "fields missing",
    "invented": "fields invented",
    "valid": "valid answers",
    "token_f1": "token F1",
    "exact_match": "exact match",
    "micro_f1": "micro-F1",
    "exact": "all labels right",
    "other_precision": "precision of “other”",
    "answerable_f1": "token F1 where there is an answer",
    "abstain_precision": "right when it says “no answer”",
    "abstain_recall": "“no answer” found",
}
LOWER_IS_BETTER = ("missing", "invented")
MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"


def ms(value: float) -> str:
    """Format a latency: two digits below 10 ms, whole ms below a second, then seconds."""
    if value >= 1000:
        return f"{value / 1000:.3g}{SPACE}s"
    return f"{value:.2g}{SPACE}ms" if value < 10 else f"{value:.0f}{SPACE}ms"


def percent(share: float, *, digits: int = 1) -> str:
    """Format a share as a percentage: 0.931 → 93.1 %."""
    return f"{share * 100:.{digits}f}{SPACE}%"


def axis_percent(span: float) -> Callable[[float], str]:
    """Return a formatter of shares for an axis that covers `span`: one decimal on a narrow one."""
    return lambda share: percent(share, digits=0 if span >= 0.045 else 1)


def signed(share: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    return f"{share * 100:+.1f}".replace("-", MINUS)


def accurate(estimate: Estimate) -> str:
    """Format a share with its interval: `93.1 % (92.2 to 94.0)`."""
    return f"{percent(estimate.value)} ({estimate.low * 100:.1f} to {estimate.high * 100:.1f})"


def count(n: int | None) -> str:
    """Format a whole number with thousands separated; `never` for None."""
    return "never" if n is None else f"{n:,}"


def measure_name(name: str) -> str:
    """Return the name of a metric for the page, with a note where lower is better."""
    words = MEASURES.get(name, name.replace("_", " "))
    return f"{words} (lower is better)" if name in LOWER_IS_BETTER else words


def path_name(candidate: str) -> str:
    """Return a candidate's name in plain words; the candidate itself if it has none."""
    return CANDIDATES.get(candidate).title if candidate in CANDIDATES.names() else _NAMES.get(candidate, candidate)


def path_explanation(candidate: str) -> str:
    """Return what a path does, in a line for readers who know no models; empty if it is unknown."""
    if candidate in CANDIDATES.names():
        return CANDIDATES.get(candidate).explanation
    return _EXPLANATIONS.get(candidate, "")


def capitalize_first(words: str) -> str:
    """Return the words with the first letter in upper case; the others stay."""
    return words[:1].upper() + words[1:]


def breakable(name: str) -> Markup:
    """Escape a label or field path and allow line breaks after `_`, `.` and `]`."""
    words = escape(name)
    for sign in ("_", ".", "]"):
        words = words.replace(sign, Markup(f"{sign}<wbr>"))
    return words


def question_and_context(text: str) -> tuple[str, str]:
    """Split a text into the question, which is last after a blank line, and its context."""
    context, _, question = text.strip().rpartition("\n\n")
    return question.strip(), context.strip()
