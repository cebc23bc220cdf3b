"""The ladder: every candidate with all its measures, and the paired differences between them.

Several candidates compared on the same rows give several chances to be lucky, so p-values are corrected after Holm
over all pairs shown. The price is that a small true difference needs more rows to be seen.
"""

from __future__ import annotations

from smallfirst.evaluation.evaluate import compare
from smallfirst.evaluation.results import Comparison, Evaluation
from smallfirst.records import Record
from smallfirst.report.data import ReportData
from smallfirst.stats.intervals import Estimate, holm, paired_mean_difference


class PairedCandidates(Record):
    """Two candidates on the same rows."""

    comparison: Comparison
    """Right answers of the first minus the second."""
    p_holm: float
    """Its p-value corrected for all pairs shown."""
    score: Estimate | None
    """Mean score of the first minus the second; None where answers are just right or wrong."""


class CandidateTable(Record):
    """Every candidate side by side."""

    measures: tuple[str, ...]
    """Names of all measures, in the order the task gives them."""
    against: str | None
    """Candidate that the others are compared with; None if there is nothing to compare."""
    pairs: tuple[PairedCandidates, ...]
    """All pairs, those with `against` first."""

    def pair(self, candidate: str) -> PairedCandidates | None:
        """The pair of a candidate with `against`, or None."""
        return next(
            (p for p in self.pairs if (p.comparison.first, p.comparison.second) == (candidate, self.against)), None
        )


def candidate_table(data: ReportData) -> CandidateTable:
    """All measures and all pairs: each candidate against the large model (else the first), then those handed over."""
    names: dict[str, None] = {}
    for evaluation in data.evaluations:
        names.update(dict.fromkeys(evaluation.measures))
    reference = data.evaluation("large") or data.evaluations[0]
    found: dict[tuple[str, str], Comparison] = {}
    for evaluation in data.evaluations:
        if evaluation is not reference:
            between = difference(data, evaluation.candidate, reference.candidate)
            if between is not None:
                found[between.first, between.second] = between
    for comparison in data.comparisons:
        found.setdefault((comparison.first, comparison.second), comparison)
    corrected = holm([c.p_value for c in found.values()])
    pairs = tuple(
        PairedCandidates(
            comparison=c, p_holm=float(p), score=_score(data.evaluation(c.first), data.evaluation(c.second))
        )
        for c, p in zip(found.values(), corrected, strict=True)
    )
    return CandidateTable(measures=tuple(names), against=reference.candidate if found else None, pairs=pairs)


def difference(data: ReportData, first: str, second: str) -> Comparison | None:
    """The comparison handed over, else counted on the rows both have; None if they share no row."""
    if (given := data.comparison(first, second)) is not None:
        return given
    a, b = data.evaluation(first), data.evaluation(second)
    if a is None or b is None:
        return None
    counted = compare(a, b)
    return counted if counted.difference.n else None


def _score(first: Evaluation | None, second: Evaluation | None) -> Estimate | None:
    if first is None or second is None:
        return None
    both = [(row, second.by_key[row.key]) for row in first.rows if row.key in second.by_key]
    if not any(0 < row.score < 1 for pair in both for row in pair):
        return None
    return paired_mean_difference([a.score for a, _ in both], [b.score for _, b in both])
