"""The table of candidates: all their metrics, and the paired differences between them, p-values corrected by Holm."""

from __future__ import annotations

from smallfirst.evaluation.evaluate import compare
from smallfirst.evaluation.results import Comparison
from smallfirst.project.candidate_registry import FINE_TUNED, promotable_names
from smallfirst.records import Record
from smallfirst.report.data import ReportData
from smallfirst.stats.intervals import Estimate, holm, paired_difference


class PairedCandidates(Record):
    """Two candidates on the same rows."""

    comparison: Comparison
    p_holm: float
    """Its p-value corrected for all pairs shown."""
    score: Estimate | None
    """Mean score of the first minus that of the second; None where answers are just right or wrong."""


class CandidateTable(Record):
    """Every candidate side by side."""

    measures: tuple[str, ...]
    reference: str | None
    """The candidate that others are compared with; None if there is nothing to compare."""
    pairs: tuple[PairedCandidates, ...]
    """All pairs, those with `reference` first."""

    def pair(self, candidate: str) -> PairedCandidates | None:
        names = (candidate, self.reference)
        return next((p for p in self.pairs if (p.comparison.first, p.comparison.second) == names), None)


def candidate_table(data: ReportData) -> CandidateTable:
    """Return all metrics, pairs with the large model (else the first), and of the fine-tuned with promotable ones."""
    measures = dict.fromkeys(name for evaluation in data.evaluations for name in evaluation.measures)
    reference = (data.evaluation("large") or data.evaluations[0]).candidate
    more = ((FINE_TUNED, name) for name in promotable_names())
    names = dict.fromkeys([*((e.candidate, reference) for e in data.evaluations), *more])
    found = [c for first, second in names if first != second and (c := difference(data, first, second))]
    corrected = holm([c.p_value for c in found])
    pairs = tuple(
        PairedCandidates(comparison=c, p_holm=p, score=_score_difference(data, c))
        for c, p in zip(found, corrected, strict=True)
    )
    return CandidateTable(measures=tuple(measures), reference=reference if found else None, pairs=pairs)


def difference(data: ReportData, first: str, second: str) -> Comparison | None:
    """Compare two candidates on the rows both have; None if one was not measured or they share no row."""
    a, b = data.evaluation(first), data.evaluation(second)
    if a is None or b is None:
        return None
    comparison = compare(a, b)
    return comparison if comparison.difference.n else None


def _score_difference(data: ReportData, comparison: Comparison) -> Estimate | None:
    first, second = (e for name in (comparison.first, comparison.second) if (e := data.evaluation(name)))
    both = [(row, second.by_key[row.key]) for row in first.rows if row.key in second.by_key]
    if not any(0 < row.score < 1 for pair in both for row in pair):
        return None
    return paired_difference([a.score for a, _ in both], [b.score for _, b in both])
