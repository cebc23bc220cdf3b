"""The gate and promotion stages: which candidates pass, which one goes live."""

from __future__ import annotations

from datetime import UTC, datetime

from smallfirst.gate.gate import check
from smallfirst.gate.verdict import Verdict, override_candidate, smallest_passing
from smallfirst.pipeline.diagnostics import find_split_leaks
from smallfirst.pipeline.parity import parity_stage
from smallfirst.pipeline.retention import measure_retention
from smallfirst.project.candidate_registry import FINE_TUNED, promotable_names
from smallfirst.project.project import Project
from smallfirst.project.run_folder import GateVerdicts, Promotion, RunFolder
from smallfirst.project.task_file import SMALLEST
from smallfirst.registry import versions


def gate_stage(project: Project, run_folder: RunFolder) -> GateVerdicts:
    """Check every candidate that could go live against the gate, on test rows, corrected for their number."""
    evaluations = run_folder.evaluations("test", promotable_names())
    large = run_folder.evaluation("large", "test")
    leaks, retention = find_split_leaks(project, run_folder), measure_retention(project, run_folder)
    verdicts = tuple(
        check(
            project.file.gate,
            evaluation,
            large=large,
            comparisons_made=len(evaluations),
            leaks=leaks,
            retention=retention if evaluation.candidate == FINE_TUNED else None,
        )
        for evaluation in evaluations
    )
    passing = ", ".join(verdict.candidate for verdict in verdicts if verdict.passed) or "none"
    project.progress.log(f"gate: passing {passing}")
    return _saved(verdicts, run_folder)


def override_stage(project: Project, run_folder: RunFolder, candidate: str, *, by: str, because: str) -> GateVerdicts:
    """Let a person sign for `candidate` although it failed the gate. Raise ConfigError as `override_candidate` does."""
    verdicts = override_candidate(run_folder.verdicts().verdicts, candidate, by=by, because=because)
    project.progress.log(f"gate: {candidate} overridden by {by}: {because}")
    return _saved(verdicts, run_folder)


def chosen_candidate(project: Project, verdicts: GateVerdicts) -> str:
    """Return the candidate that `routing.small` names; for `smallest`, the smallest one that passes."""
    wanted = project.file.routing.small
    return (verdicts.smallest or FINE_TUNED) if wanted == SMALLEST else wanted


def promote_stage(project: Project, run_folder: RunFolder) -> Promotion:
    """Register the chosen candidate, ask it over HTTP, and make it champion.

    Raise GateFailed if its verdict did not pass, or if the server's answers differ from the measured ones.
    """
    verdicts = run_folder.verdicts()
    candidate = chosen_candidate(project, verdicts)
    version = versions.register(
        run_folder.model_folder(candidate),
        verdicts.of(candidate),
        name=project.file.register_to,
        run_id=run_folder.mlflow_run_id(),
        tags={"task": project.file.name, "run": run_folder.path.name},
    )
    parity_stage(project, run_folder, version, candidate)
    versions.promote(version.name, version.version)
    promotion = Promotion(
        name=version.name,
        version=version.version,
        candidate=candidate,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    promotion.save(run_folder.path / "promoted.json")
    project.progress.log(f"promoted {promotion.name} version {promotion.version} @champion ({candidate})")
    return promotion


def _saved(verdicts: tuple[Verdict, ...], run_folder: RunFolder) -> GateVerdicts:
    result = GateVerdicts(verdicts=verdicts, smallest=smallest_passing(verdicts))
    result.save(run_folder.path / "verdicts.json")
    return result
