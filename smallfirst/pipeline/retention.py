"""Retention of general ability: the same questions asked before and after the fine-tune.

Measured if the gate has a threshold (`gate.retention_at_least`) or questions (`gate.retention_prompts`), or if
`small.retention` asks for it. 72 short questions take some seconds per model; the base model's answers are cached in
the state folder.
"""

from __future__ import annotations

import time

from smallfirst.evaluation.retention import (
    Probe,
    ProbeResult,
    Retention,
    model_fingerprint,
    read_probe,
    retention_from_probes,
    run_probe,
)
from smallfirst.models.catalog import find_weights
from smallfirst.paths import home
from smallfirst.project.candidate_registry import FINE_TUNED
from smallfirst.project.candidates import fitted_candidates
from smallfirst.project.project import Project, shown_as
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import TaskFile
from smallfirst.records import Record
from smallfirst.registry import runs
from smallfirst.registry.evaluations import with_ends

FILE_NAME = "retention.json"
"""File in a run folder."""


class RetentionRecord(Record):
    """A Retention with the answers behind it."""

    before: ProbeResult
    """Answers of the base model."""
    after: ProbeResult
    """Answers of the fine-tuned model."""
    retention: Retention


def requested_probe(file: TaskFile) -> Probe | None:
    """Return the questions to ask; None if retention is not wanted. Raise DataError naming every bad question."""
    gate = file.gate
    if gate.retention_at_least is None and gate.retention_prompts is None and not file.small.retention:
        return None
    return read_probe(file.path(gate.retention_prompts) if gate.retention_prompts else None)


@shown_as("measuring general ability")
def measure_retention(project: Project, run_folder: RunFolder) -> Retention | None:
    """Measure the fine-tuned model's retention once per run and log it to MLflow; None if it is not wanted."""
    probe = requested_probe(project.file)
    if probe is None or FINE_TUNED not in [candidate.name for candidate in fitted_candidates(project, run_folder)]:
        return None
    folder, known = run_folder.model_folder(FINE_TUNED), run_folder.find(RetentionRecord, FILE_NAME)
    if known and known.after.model_fingerprint == model_fingerprint(folder) and _same(known, probe):
        return known.retention
    began = time.monotonic()
    before = _of_base(project, probe)
    after = run_probe(probe, folder, name=f"{project.file.name}-{FINE_TUNED}")
    measured = RetentionRecord(before=before, after=after, retention=retention_from_probes(probe, before, after))
    measured.save(run_folder.path / FILE_NAME)
    _log(run_folder, measured)
    project.progress.log(f"general ability: {in_words(measured.retention)} ({time.monotonic() - began:.0f} s)")
    return measured.retention


def saved_retention(run_folder: RunFolder) -> Retention | None:
    """Return the retention measured earlier in a run, or None."""
    found = run_folder.find(RetentionRecord, FILE_NAME)
    return found.retention if found else None


def in_words(retention: Retention) -> str:
    """Return one line for the terminal."""
    right = f"{retention.right_before.value:.3f} right before, {retention.right_after.value:.3f} after"
    if retention.kept is None:
        return f"{right}; no better than guessing before, so there is nothing to keep"
    return f"{right}; kept {retention.kept} of what is above guessing, n={retention.kept.n}"


def _same(known: RetentionRecord, probe: Probe) -> bool:
    return {known.before.probe_fingerprint, known.after.probe_fingerprint} == {probe.fingerprint()}


def _of_base(project: Project, probe: Probe) -> ProbeResult:
    """Return the base model's answers, asked once for all its fine-tunes."""
    name = project.file.small.base
    folder = find_weights(name, log=project.progress.log)
    path = home() / "retention" / f"{model_fingerprint(folder)}-{probe.fingerprint()}.json"
    if path.exists():
        return ProbeResult.load(path)
    found = run_probe(probe, folder, name=name)
    found.save(path)
    return found


def _log(run_folder: RunFolder, measured: RetentionRecord) -> None:
    """Log figures and answers to the MLflow run of the fine-tune."""
    tracked = runs.TrackedRun(runs.client(), run_folder.mlflow_run_id())
    found = measured.retention
    figures: dict[str, float | None] = {"retention/before": found.before, "retention/after": found.after}
    for name in ("kept", "difference", "right_before", "right_after"):
        if (estimate := getattr(found, name)) is not None:
            figures |= with_ends(f"retention/{name}", estimate)
    tracked.log_metrics(0, figures)
    tracked.flush()
    tracked.log_json("retention", measured)
