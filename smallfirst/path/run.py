"""The whole path, stage by stage: check, train, evaluate, gate, promote, calibrate, report.

Each stage reads what the earlier ones left in the run folder and writes its own files there, so `run` and the single
commands of the command line do the same work.
"""

from __future__ import annotations

from pathlib import Path

from smallfirst.base.errors import DataError, GateFailed, SmallfirstError, as_full_disk
from smallfirst.base.paths import state_of
from smallfirst.base.progress import Progress
from smallfirst.base.sync import outside_event_loop
from smallfirst.measuring.outcome import Outcome
from smallfirst.measuring.verdict import format_verdict
from smallfirst.path.challenge import Champion, champion_of, contest
from smallfirst.path.check import PreflightReport, check_stage
from smallfirst.path.evaluate import evaluate_stage
from smallfirst.path.large_model import require_large
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import OUTCOME, RunFolder, only_run, refuse_second_run
from smallfirst.path.project.task_file import TaskFile, read_task_file
from smallfirst.path.release import (
    chosen_candidate,
    decide_outcome,
    gate_stage,
    may_go_alone,
    plans_stage,
    promote_stage,
    shadow_stage,
)
from smallfirst.path.report.page import report_stage
from smallfirst.path.summary import RunSummary, hint_of, next_steps, summarize_run
from smallfirst.path.train import train_stage

__all__ = ["check", "evaluate_stage", "gate_and_release", "run", "train_stage", "try_run"]


def check(task: str | Path | TaskFile) -> PreflightReport:
    """Check the rows of a task and foretell what its run needs; train nothing."""
    file = read_task_file(task)
    return outside_event_loop(lambda: check_stage(Project.read(file, Progress(quiet=True))))


def run(
    task: str | Path | TaskFile,
    *,
    progress: Progress | None = None,
    resume: bool = False,
    despite_check: bool = False,
    minutes: float | None = None,
) -> RunSummary:
    """Train, measure, gate, promote, certify, measure the Router and report; return the summary.

    `task` is a task.yaml, its folder or what `read_task_file` returned. `resume` continues an interrupted training;
    `despite_check` runs although the check refuses the rows; `minutes` is how long the run may take. Raise DataError if
    the check says NO, GateFailed if nothing may go live.
    """
    file, named = read_task_file(task), str(task.folder) if isinstance(task, TaskFile) else str(task)
    file = file if minutes is None else file.with_minutes(minutes)
    summary, error = outside_event_loop(
        lambda: try_run(file, task=named, progress=progress, resume=resume, despite_check=despite_check)
    )
    if error is not None:
        raise error
    return summary


def try_run(
    file: TaskFile,
    *,
    task: str = "task.yaml",
    progress: Progress | None = None,
    resume: bool = False,
    despite_check: bool = False,
    challenge: bool = False,
    workers: int = 1,
) -> tuple[RunSummary, BaseException | None]:
    """Do as `run`; return the summary of what was reached and the error that ended the run, if any.

    `task` is the task as the user named it, for the next steps. Ctrl-C ends a run as an error does. With `challenge`
    nothing goes live that is not shown more accurate than the champion. `workers` processes fine-tune the language
    model.
    """
    project: Project | None = None
    run_folder: RunFolder | None = None
    ended: BaseException | None = None
    progress = progress or Progress()
    began = progress.clock()
    with state_of(file.folder):
        try:
            refuse_second_run(file.name)
            project = Project.read(file, progress)._replace(n_workers=workers)
            champion = champion_of(project) if challenge else None
            _check_first(project, despite_check=despite_check)
            with only_run(file.name):
                run_folder = train_stage(project, resume=resume, began=began)
                evaluate_stage(project, run_folder, resume=resume)
                gate_and_release(project, run_folder, champion)
        except (Exception, KeyboardInterrupt) as error:
            ended = as_full_disk(error) or error
        steps = next_steps(project, run_folder, ended, task=task)
        if isinstance(ended, SmallfirstError):
            ended.hint = hint_of(ended, steps)
        return summarize_run(file, run_folder, ended).model_copy(update={"next_steps": steps}), ended


def _check_first(project: Project, *, despite_check: bool) -> None:
    """Log what the check finds. Raise before anything is trained if it says NO, or the large model cannot be asked."""
    found = check_stage(project)
    stops, fixes = ([one for one in found.rows.findings if one.level == level] for level in ("stop", "fix"))
    what = "; ".join(finding.what for finding in stops)
    if stops and not despite_check:
        raise DataError(
            f"check: NO, so nothing was trained: {what}",
            hint="mend what is marked stop, or label more rows; --despite-check runs all the same",
        )
    warning = f"; run despite it: {what}" if stops else ""
    estimate = f"; the fine-tune takes {found.needs.short_summary}" if found.needs else ""
    log = project.progress.log
    log(f"check: {found.verdict} ({len(project.rows.train)} rows to train on){warning}{estimate}")
    for finding in fixes:
        log(f"to fix: {finding.what}: {finding.rule}")
    require_large(project.file, found.large)
    if found.large is not None and found.large.n:
        log(f"large model, after training: {found.large.in_words}")


def gate_and_release(project: Project, run_folder: RunFolder, champion: Champion | None = None) -> None:
    """Run every stage after the evaluation. Raise GateFailed, with the report written, if nothing goes live.

    A candidate that passes the gate of task.yaml goes live alone, unless a plan is worth more. Else a part of the
    requests may still stay small. Where there is a `champion`, it has to be beaten.
    """
    verdicts = gate_stage(project, run_folder)
    alone = verdicts.of(chosen_candidate(project, verdicts))
    trials = plans_stage(project, run_folder, alone)
    if any(trial.passed for trial in trials) or may_go_alone(project, alone):
        live = next((trial for trial in trials if trial.passed), alone)
        if champion is not None and (stays := contest(project, run_folder, champion, live)):
            report_stage(project, run_folder)
            raise GateFailed(stays, hint=f"label or harvest more rows; read {run_folder.path / 'report.html'}")
        promote_stage(project, run_folder)
    else:
        again = project.file.routing.second_look_after is not None
        decide_outcome(project, run_folder, shadow=shadow_stage(project, run_folder) if again else None)
    outcome = run_folder.read(Outcome, OUTCOME, next_command="smallfirst promote task.yaml")
    project.progress.log(outcome.sentence)
    report_stage(project, run_folder)
    if not outcome.live_as:
        why = "\n".join([outcome.sentence, *(format_verdict(one) for one in (alone, *trials))])
        raise GateFailed(why, hint=f"read {run_folder.path / 'report.html'}")
