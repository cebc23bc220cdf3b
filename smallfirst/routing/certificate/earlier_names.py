"""Certificates as they were first written, read under today's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smallfirst.records import fingerprint

# Field names in certificates of version 0.1.0's first months.
_COUNTS = {"n_kept": "n_accepted", "errors_kept": "n_errors", "errors": "n_errors"}
_CERTIFICATE = {**_COUNTS, "promised_error": "max_error", "promise": "guarantee"}
_GUARANTEE = {
    "at_most_wrong": "max_error",
    "at_most_below_large": "max_accuracy_loss",
    "at_most_usd_per_1k": "max_usd_per_1k",
    "p95_under_ms": "max_p95_ms",
    "at_most_escalated": "max_escalation_rate",
}
_PARTS = {"stages": _COUNTS, "curve": _COUNTS, "classes": _COUNTS, "bands": {"then": "action"}}
_RISKS = {"wrong": "error", "regret": "accuracy_loss", "late": "latency", "escalated": "escalation"}


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a certificate's values under today's names, with the fingerprint by which ledgers know the old one."""
    found = _renamed(values, _CERTIFICATE)
    if found.get("guarantee") is not None:
        found["guarantee"] = _renamed(found["guarantee"], _GUARANTEE)
    for name, names in _PARTS.items():
        found[name] = [_renamed(part, names) for part in found.get(name, ())]
    found["risks"] = [{**part, "risk": _RISKS.get(part["risk"], part["risk"])} for part in found.get("risks", ())]
    return {**found, "earlier_fingerprint": fingerprint(values)}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
