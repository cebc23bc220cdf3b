"""Whether a guarantee held on test rows; it is broken when the error's whole interval lies above the maximum."""

from __future__ import annotations

from typing import Literal

from smallfirst.evaluation.results import Evaluation
from smallfirst.records import Record
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import Estimate, clopper_pearson


class GuaranteeCheck(Record):
    """Errors among the accepted answers against the guaranteed maximum."""

    state: Literal["held", "inconclusive", "broken"]
    """`inconclusive`: no answer was accepted, or more were wrong than guaranteed, but chance could explain it."""
    max_error: float
    """The guaranteed maximum, in (0, 1)."""
    n_errors: int
    """Wrong answers among the accepted ones."""
    error: Estimate
    """Error of the accepted answers with the exact two-sided 95 % interval (Clopper and Pearson 1934)."""


def check_guarantee(certificate: Certificate | None, routed: Evaluation | None) -> GuaranteeCheck | None:
    """Compare the error of certified answers with the guarantee; None without one that limits errors."""
    if certificate is None or routed is None or not certificate.issued or certificate.max_error >= 1:
        return None
    accepted = [row for row in routed.rows if row.certified]
    n_errors = sum(not row.correct for row in accepted)
    error = clopper_pearson(n_errors, len(accepted))
    state: Literal["held", "inconclusive", "broken"] = "held"
    if error.low > certificate.max_error:
        state = "broken"
    elif not accepted or error.value > certificate.max_error:
        state = "inconclusive"
    return GuaranteeCheck(state=state, max_error=certificate.max_error, n_errors=n_errors, error=error)
