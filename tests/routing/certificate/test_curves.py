"""The frontier: a looser limit keeps at least as much, and each point is the certificate of its limit alone."""

from __future__ import annotations

import numpy as np
from fixtures.certificates import cascade

from smallfirst.routing.certificate.curves import MAX_ERRORS, frontier
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import NEVER_ACCEPT, CascadeData, with_foreign
from smallfirst.routing.certificate.threshold_search import search_cascade


def drawn(n: int) -> CascadeData:
    """Rows whose most confident share k is wrong 0.4 k^2 / 3 of the time."""
    draw = np.random.default_rng(3)
    confidence = draw.random((1, n))
    return cascade(confidence, draw.random((1, n)) > 0.4 * (1 - confidence) ** 2)


def test_a_looser_limit_keeps_at_least_as_much() -> None:
    found = frontier(drawn(400))
    assert [one.max_error for one in found] == list(MAX_ERRORS)
    kept = [one.n_accepted for one in found]
    assert kept == sorted(kept)
    assert kept[-1] == 400
    strictest = found[0]  # 599 rows without an error are needed for 0.5 %
    assert (strictest.issued, strictest.threshold, strictest.share.value) == (False, NEVER_ACCEPT, 0.0)


def test_each_point_is_the_certificate_of_its_limit_alone() -> None:
    rows = drawn(400)
    for one in frontier(rows, confidence=0.9):
        alone = search_cascade(rows, Guarantee(max_error=one.max_error, confidence=0.9))
        assert (one.issued, one.threshold) == (alone.issued, alone.thresholds[-1])
        assert one.share.value == rows.outcome(alone.thresholds).n_accepted / 400


def test_foreign_rows_about_which_nothing_is_promised_do_not_bend_the_frontier() -> None:
    rows = drawn(400)
    foreign = with_foreign(rows, [np.linspace(0.5, 1, 60).tolist()], 0.0)
    assert frontier(foreign) == frontier(rows)
    certified = search_cascade(foreign, Guarantee(max_error=0.1))
    assert foreign.outcome(certified.thresholds).n_accepted < frontier(rows)[6].n_accepted  # it keeps them out
