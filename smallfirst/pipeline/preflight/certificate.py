"""What the calibration rows can certify, before anything is trained.

The threshold search judges a model that is right on every calibration row. How many rows it takes counts the next look
at them, which spends its part of the level alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

from smallfirst.data.dataset import sample_rows
from smallfirst.data.quality.findings import Finding, make_finding
from smallfirst.paths import state_folder
from smallfirst.pipeline.joined_rows import LOOKS
from smallfirst.pipeline.preflight.more_rows import MoreRows, more_rows
from smallfirst.project.project import Project
from smallfirst.records import Record
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.looks import next_look, text_fingerprints
from smallfirst.routing.certificate.outcomes import CascadeData
from smallfirst.routing.certificate.threshold_search import search_cascade, start_rows
from smallfirst.routing.certificate.units.per_group import certify_per_group

MAX_ROWS = 20_000
"""No more calibration rows than this are suggested."""


class CertificateForecast(Record):
    """What the calibration rows can show of the guarantee."""

    guarantee: str
    n_rows: int
    """Calibration rows that count."""
    look: int
    """Number of the next certificate tried on them, at its share of the error probability (`next_look`)."""
    reachable: bool
    """False if it is refused even without an error."""
    n_most_confident: int | None = None
    """Half of the rows, those of highest confidence, or as many as it takes without an error; None if several limits or
    stages share the level. Selection rows may choose another start."""
    n_wrong: int | None = None
    """Most of these that may be wrong for a certificate to be issued."""
    missing: MoreRows | None = None
    """Rows that would do without an error; None if it is reachable or no number does."""

    @property
    def in_words(self) -> str:
        if not self.reachable:
            how = "even without an error" if self.missing else "nor can any number of rows like these"
            return f"{self.n_rows:,} calibration rows cannot show {self.guarantee}, {how}"
        start = f"{self.n_rows:,} calibration rows show {self.guarantee}"
        if self.n_most_confident is None or self.n_wrong is None:
            return f"{start} if the model is good enough"
        most = f"{self.n_most_confident:,} most confident answers are"
        if not self.n_wrong:
            return f"{start} if, say, the {most} all right"
        return f"{start} if, say, at most {self.n_wrong:,} of the {most} wrong"


def forecast_certificate(project: Project) -> CertificateForecast | None:
    """Return what the calibration rows can certify; None where people's answers to some of them certify alone.

    None too where the guarantee limits fields alone.
    """
    file, rows = project.file, project.rows.calibration
    (guarantee, _), n = file.routing.guarantee.split_level(), len(rows)
    if file.data.gold is not None or not guarantee.limits:
        return None
    known = text_fingerprints(example.text for example in rows.examples)
    look = next_look(state_folder() / "tasks" / file.name / LOOKS, known)
    if not look.share:
        return CertificateForecast(guarantee=guarantee.in_words, n_rows=n, look=look.number, reachable=False)
    tested = guarantee.at_share(look.share)
    level = 1 - tested.confidence

    def shown(n_rows: int) -> bool:
        data = _perfect_cascade(project, n_rows)
        found = search_cascade(data, tested, steps=20)
        if not guarantee.grouped_by:
            return found.issued
        return any(one.certified for one in certify_per_group(data, tested, found))

    found = CertificateForecast(guarantee=guarantee.in_words, n_rows=n, look=look.number, reachable=n > 0 and shown(n))
    if not found.reachable:
        enough = _fewest(shown, n)
        missing = more_rows(project, "calibration", enough - n) if enough else None
        return found.model_copy(update={"missing": missing})
    if set(guarantee.limits) == {"error"} and not guarantee.grouped_by and not file.routing.ahead:
        first, _ = start_rows(n, guarantee.limits["error"], level, ((0.5, 1.0),))[0]
        return found.model_copy(update={"n_most_confident": first, "n_wrong": _most_wrong(guarantee, first, level)})
    return found


def certificate_findings(forecast: CertificateForecast | None) -> Iterator[Finding]:
    """Yield a finding if no model can be certified with these rows."""
    if forecast is not None and not forecast.reachable:
        advice = f"add {forecast.missing.in_words}; or change" if forecast.missing else "change"
        yield make_finding("fix", f"certificate: {forecast.in_words}", f"{advice} routing.guarantee", n=1)


def _perfect_cascade(project: Project, n: int) -> CascadeData:
    """Return stages that are right on `n` rows, at once and for nothing, with labels in today's proportions."""
    file, rows = project.file, project.rows.calibration
    names = (*file.routing.ahead, file.goes_live)
    large = file.large
    asked = np.zeros(n, dtype=bool)
    if large is not None:
        asked[: len(sample_rows(rows, large.sample_calibration)) if large.sample_calibration else n] = True
    answers = np.array([example.answer for example in rows.examples] or [""], dtype=object)
    everywhere = (len(names), n)
    return CascadeData(
        names=names,
        confidence=np.broadcast_to(1 - np.arange(n) / (2 * max(1, n)), everywhere),
        right=np.ones(everywhere, dtype=bool),
        answer=np.broadcast_to(np.resize(answers, n), everywhere),
        cost_usd=np.zeros((len(names) + 1, n)),
        asked=asked,
        large_right=asked,
        labels="gold",
    )


def _fewest(shown: Callable[[int], bool], n: int) -> int | None:
    """Return the fewest rows above `n` at which `shown`; None if MAX_ROWS do not do."""
    enough = max(2 * n, 32)
    while not shown(enough):
        n, enough = enough, 2 * enough
        if n >= MAX_ROWS:
            return None
    return n + 1 + bisect_left(range(n + 1, enough), True, key=shown)


def _most_wrong(guarantee: Guarantee, n: int, level: float) -> int:
    """Return how many of `n` accepted answers may be wrong: the exact binomial test of the search."""
    wrong = np.arange(n + 1)
    return int((special.bdtr(wrong, n, guarantee.limits["error"]) <= level).sum()) - 1
