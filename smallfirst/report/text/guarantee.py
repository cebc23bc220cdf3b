"""The guarantee on test rows, in words."""

from __future__ import annotations

from smallfirst.report.data import ReportData
from smallfirst.report.formats import percent
from smallfirst.routing.certificate.guarantee_check import check_guarantee


def guarantee_state(data: ReportData) -> str:
    """Return `held`, `inconclusive` or `broken`; empty if there is no guarantee of errors to check."""
    found = check_guarantee(data.certificate, data.evaluation("routed"))
    return found.state if found else ""


def guarantee_sentence(data: ReportData) -> str:
    """Say whether the guarantee held on the test rows; empty if there is none to check."""
    found = check_guarantee(data.certificate, data.evaluation("routed"))
    if found is None:
        return ""
    error = found.error
    if not error.n:
        return "No test answer was kept small, so the guarantee was not tested."
    counted = (
        f"{found.n_errors:,} of {error.n:,} kept test answers were wrong: "
        f"{percent(error.value, digits=2)} [{error.low * 100:.2f}, {error.high * 100:.2f}]"
    )
    limit = f"the guaranteed {percent(found.max_error)}"
    if found.state == "broken":
        return f"The guarantee did not hold on the test rows. {counted}, above {limit}."
    if found.state == "inconclusive":
        return f"{counted}; above {limit}, but chance could explain it."
    return f"The guarantee held on the test rows. {counted}, within {limit}."
