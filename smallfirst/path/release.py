"""The gate and promotion stages: which candidates pass, which one goes live."""

from __future__ import annotations

from datetime import UTC, datetime

from smallfirst.base.errors import ConfigError, GateFailed
from smallfirst.measuring.choice import unbeaten
from smallfirst.measuring.verdict import Verdict, nearest_to_passing, override
from smallfirst.path.calibrate import CERTIFIED, Certified, attach_certified, calibrate_stage, certify_candidate
from smallfirst.path.diagnostics import find_split_leaks, without_copies
from smallfirst.path.parity import parity_stage
from smallfirst.path.plans.outcome import answers_live, decide_outcome, gate_line, may_go_alone, small_first_stage
from smallfirst.path.plans.worth import expected_plans, fix_finalists
from smallfirst.path.project.project import Project, in_task_state, shown_as
from smallfirst.path.project.run_folder import PROMOTED, VERDICTS, GateVerdicts, Promotion, RunFolder
from smallfirst.path.project.task_file import RULES
from smallfirst.registry import versions


@in_task_state
def gate_stage(project: Project, run_folder: RunFolder) -> GateVerdicts:
    """Check the finalists on test rows, and choose among those that pass."""
    finalists, file = fix_finalists(project, run_folder), project.file
    leaks, large = find_split_leaks(project, run_folder), run_folder.evaluation("large", "test")
    verdicts = tuple(
        file.gate.check(
            evaluation,
            large=large,
            comparisons_made=1 / finalists.shares[evaluation.candidate],
            leaks=leaks,
            clean=without_copies(project, evaluation, leaks),
            beside=run_folder.evaluation(evaluation.candidate, "calibration") if file.data.one_source else None,
        )
        for evaluation in run_folder.evaluations("test", finalists.names)
    )
    found = _saved(project, run_folder, verdicts)
    passing = ", ".join(verdict.candidate for verdict in verdicts if verdict.passed) or "none"
    project.progress.log(f"gate: passing {passing}{found.how_found and f' ({found.winner}: {found.how_found})'}")
    return found


@in_task_state
def override_stage(project: Project, run_folder: RunFolder, candidate: str, *, by: str, because: str) -> GateVerdicts:
    """Let a person sign for `candidate` although it failed the gate.

    Raise ConfigError as `override` does, or where only a gate of the user's own is missing.
    """
    before = run_folder.verdicts()
    if not project.file.sets_gate and any(one.candidate == candidate and one.passed for one in before.verdicts):
        raise ConfigError(
            f"{candidate} meets the default gate, so there is nothing to sign for: task.yaml sets no gate",
            hint=f"write  {gate_line(project)}  into task.yaml, if that is good enough; then  smallfirst promote",
        )
    verdicts = override(before.verdicts, candidate, by=by, because=because)
    project.progress.log(f"gate: {candidate} overridden by {by}: {because}")
    return _saved(project, run_folder, verdicts, before.trials)


def chosen_candidate(project: Project, verdicts: GateVerdicts) -> str:
    """Return the candidate that is to go live: the one that `routing.small` names, else the one found by the rule.

    If none passes, the one that comes nearest.
    """
    if (wanted := project.file.goes_live) not in RULES:
        return wanted
    return verdicts.winner or nearest_to_passing(verdicts.verdicts).candidate


def plans_stage(project: Project, run_folder: RunFolder, alone: Verdict) -> tuple[Verdict, ...]:
    """Try the plans that are worth more than the candidate of `alone` on every request: all, if it may not go alone."""
    instead_of = alone.candidate if may_go_alone(project, alone) else ""
    if instead_of and not expected_plans(project, run_folder, instead_of=instead_of):
        return ()
    return small_first_stage(project, run_folder, instead_of=instead_of)


@shown_as("registering, and asking the served model")
def promote_stage(project: Project, run_folder: RunFolder, candidate: str | None = None) -> Promotion | None:
    """Register `candidate`, else the chosen one, with its certificate, ask it over HTTP, and make it champion.

    It is certified first, unless it is. Where a plan was confirmed it is that plan's, unless somebody signed for it. A
    version of which nothing may be answered is registered as `shadow`: it drafts beside the large model where there is
    no champion, and None is returned. Raise GateFailed if its verdict did not pass or task.yaml sets no gate, or if the
    server's answers differ from the measured ones.
    """
    verdicts = run_folder.verdicts()
    verdict = verdicts.of(candidate or chosen_candidate(project, verdicts))
    plan = verdicts.confirmed
    if plan is not None and candidate in (None, plan.candidate) and not verdict.signed_by:
        verdict = plan
    elif verdict.passed and not may_go_alone(project, verdict):
        raise GateFailed(
            f"{verdict.candidate} meets the default gate, but task.yaml sets none",
            hint=f"write  {gate_line(project)}  into task.yaml, or: smallfirst calibrate task.yaml",
        )
    if verdict.passed and not _is_certified(run_folder, verdict):
        calibrate_stage(project, run_folder, candidate=verdict.candidate)
    promotion = _register(project, run_folder, verdict)
    if not answers_live(project, run_folder):
        decide_outcome(project, run_folder, shadow=promotion)
        return None
    versions.promote(promotion.name, promotion.version)
    promotion.save(run_folder.path / PROMOTED)
    project.progress.log(f"promoted {decide_outcome(project, run_folder).live_as} ({verdict.candidate})")
    return promotion


def shadow_stage(project: Project, run_folder: RunFolder) -> Promotion | None:
    """Register the plan that was expected to keep most and could not be promised, to draft until a second look.

    None if no plan was tried.
    """
    trials = run_folder.verdicts().trials
    if not trials:
        return None
    verdict = trials[0]
    if Certified.load(run_folder.path / CERTIFIED).candidate != verdict.candidate:
        certify_candidate(project, run_folder, verdict.candidate, alone=False)  # the same look as before
    return _register(project, run_folder, verdict, only_drafts=True)


def _register(project: Project, run_folder: RunFolder, verdict: Verdict, *, only_drafts: bool = False) -> Promotion:
    """Register a certified candidate and ask it over HTTP; where it `only_drafts`, name it `shadow`."""
    version = versions.register(
        run_folder.model_folder(verdict.candidate),
        verdict,
        name=project.file.register_to,
        run_id=run_folder.mlflow_run_id(),
        tags={"task": project.file.name, "run": run_folder.path.name},
        only_drafts=only_drafts,
    )
    parity_stage(project, run_folder, version, verdict.candidate)
    promotion = Promotion(
        name=version.name,
        version=version.version,
        candidate=verdict.candidate,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=verdict.plan,
    )
    attach_certified(promotion, Certified.load(run_folder.path / CERTIFIED), run_folder)
    if only_drafts or not answers_live(project, run_folder):
        versions.name_shadow(version.name, version.version)
        project.progress.log(
            f"registered {version.name} version {version.version} @shadow: nothing of it may be answered"
        )
    return promotion


def _is_certified(run_folder: RunFolder, verdict: Verdict) -> bool:
    found = run_folder.find(Certified, CERTIFIED)
    return found is not None and (found.candidate, found.plan) == (verdict.candidate, verdict.plan)


def _saved(
    project: Project, run_folder: RunFolder, verdicts: tuple[Verdict, ...], trials: tuple[Verdict, ...] = ()
) -> GateVerdicts:
    """Save the verdicts with the first candidate that passes and is not clearly beaten by another that does."""
    leaks = find_split_leaks(project, run_folder)
    measured = [run_folder.evaluation(one.candidate, "test") for one in verdicts if one.passed]
    live = unbeaten([without_copies(project, one, leaks) for one in measured if one])
    chosen = fix_finalists(project, run_folder).names[0]
    result = GateVerdicts(verdicts=verdicts, winner=next(iter(live), None), chosen=chosen, trials=trials)
    result.save(run_folder.path / VERDICTS)
    return result
