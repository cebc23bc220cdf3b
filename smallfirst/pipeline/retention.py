"""What a fine-tune has forgotten: the same general questions before and after it, kept with the run.

Asked for by a bar (`gate.retention_at_least`), by questions of your own (`gate.retention_prompts`) or by
`small.retention`. It costs one reading of 72 short questions a model, some seconds; the base model's answers are kept
in the state folder, so a base is asked once however often it is fine-tuned.
"""

from __future__ import annotations

import time

from smallfirst.evaluation.ability_probe import Probe, ProbeResult, model_fingerprint, read_probe, run_probe
from smallfirst.evaluation.retention import Retention, retention_from_probes
from smallfirst.models.catalog import find_weights
from smallfirst.paths import home
from smallfirst.project.candidates import FINE_TUNED
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import TaskFile
from smallfirst.records import Record
from smallfirst.registry import runs
from smallfirst.stats.intervals import Estimate

FILE_NAME = "retention.json"
"""Name of the file in a run's folder."""


class RetentionRecord(Record):
    """The answers behind a Retention, question by question."""

    before: ProbeResult
    """The untouched base model."""
    after: ProbeResult
    """The fine-tuned one."""
    retention: Retention
    """What is left."""


def requested_probe(file: TaskFile) -> Probe | None:
    """The questions to measure with, None if nobody asks for the figure. Raises DataError naming every bad one."""
    gate = file.gate
    if gate.retention_at_least is None and gate.retention_prompts is None and not file.small.retention:
        return None
    return read_probe(file.path(gate.retention_prompts) if gate.retention_prompts else None)


def measure_retention(project: Project, run_folder: RunFolder) -> Retention | None:
    """What the fine-tuned model has kept, measured once a run and shown in its MLflow run; None if not asked for."""
    probe = requested_probe(project.file)
    if probe is None:
        return None
    folder, path = run_folder.model_folder(FINE_TUNED), run_folder.path / FILE_NAME
    if path.exists():
        known = RetentionRecord.load(path)
        if known.after.model_fingerprint == model_fingerprint(folder) and _same(known, probe):
            return known.retention
    began = time.monotonic()
    before = _of_base(project, probe)
    after = run_probe(probe, folder, name=f"{project.file.name}-{FINE_TUNED}")
    measured = RetentionRecord(before=before, after=after, retention=retention_from_probes(probe, before, after))
    measured.save(path)
    _log(run_folder, measured)
    project.progress.log(f"general ability: {in_words(measured.retention)} ({time.monotonic() - began:.0f} s)")
    return measured.retention


def saved_retention(run_folder: RunFolder) -> Retention | None:
    """What was measured earlier in a run, None if nothing was."""
    path = run_folder.path / FILE_NAME
    return RetentionRecord.load(path).retention if path.exists() else None


def in_words(retention: Retention) -> str:
    """One line for a terminal."""
    right = f"{retention.right_before.value:.3f} right before, {retention.right_after.value:.3f} after"
    if retention.kept is None:
        return f"{right}; no better than guessing before, so there is nothing to keep"
    return f"{right}; kept {retention.kept} of what is above guessing, n={retention.kept.n}"


def _same(known: RetentionRecord, probe: Probe) -> bool:
    return {known.before.probe_fingerprint, known.after.probe_fingerprint} == {probe.fingerprint()}


def _of_base(project: Project, probe: Probe) -> ProbeResult:
    """The base model's answers, asked for once for all its fine-tunes."""
    name = project.file.small.base
    folder = find_weights(name, log=project.progress.log)
    path = home() / "retention" / f"{model_fingerprint(folder)}-{probe.fingerprint()}.json"
    if path.exists():
        return ProbeResult.load(path)
    found = run_probe(probe, folder, name=name)
    found.save(path)
    return found


def _log(run_folder: RunFolder, measured: RetentionRecord) -> None:
    """Nothing back; figures and answers are in the MLflow run of the fine-tune."""
    tracked = runs.TrackedRun(runs.client(), run_folder.mlflow_run_id())
    found = measured.retention
    figures: dict[str, float | None] = {"retention/before": found.before, "retention/after": found.after}
    for name in ("kept", "difference", "right_before", "right_after"):
        estimate: Estimate | None = getattr(found, name)
        if estimate is not None:
            ends = {"": estimate.value, ".low": estimate.low, ".high": estimate.high}
            figures |= {f"retention/{name}{end}": value for end, value in ends.items()}
    tracked.log_metrics(0, figures)
    tracked.flush()
    tracked.log_json("retention", measured)
