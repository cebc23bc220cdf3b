"""The certificate of the rows that a sampling plan chose, for the model that it was made for."""

from __future__ import annotations

from itertools import takewhile

from smallfirst.data.dataset import Example
from smallfirst.pipeline.confidence_heads import ConfidenceHeads
from smallfirst.pipeline.planned_labels.drafts import heads_fingerprint, model_fingerprint
from smallfirst.project.planned_rows import load_plan, read_planned
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.sampling_plan import SamplingPlan, with_sampled_labels


def certified_by_plan(
    project: Project, run_folder: RunFolder, candidate: str, heads: ConfidenceHeads, certificate: Certificate
) -> Certificate:
    """Return the certificate with what the rows of `data.label_plan` show; as it is for any other model."""
    if project.file.data.label_plan is None:
        return certificate
    path = project.file.path(project.file.data.label_plan)
    plan = load_plan(path)
    made_for = (plan.candidate, plan.model_fingerprint, plan.heads_fingerprint)
    if made_for != (candidate, model_fingerprint(run_folder, candidate), heads_fingerprint(heads)):
        project.progress.log(
            f"the rows of {path.name} were chosen for {plan.candidate} of run {plan.run} and say nothing about this "
            "model: calibration rows certify it; smallfirst label-plan makes a new plan"
        )
        return certificate
    labels = read_planned(
        path, plan, project.task, shape=project.rows.train.examples[0].shape, columns=project.file.data.columns
    )
    return with_sampled_labels(certificate, plan, right_above(project, plan, labels))


def right_above(project: Project, plan: SamplingPlan, labels: list[Example | str | None]) -> list[bool]:
    """Return whether the small model is right on each row above the cuts, in order, up to the first without a label."""
    above = [(row, label) for row, label in zip(plan.rows, labels, strict=True) if row.stratum == "above"]
    filled = takewhile(lambda pair: pair[1] is not None, above)
    return [is_right(project, label, row.answer) for row, label in filled]


def is_right(project: Project, label: Example | str | None, answer: str | None) -> bool:
    """Return True if the task scores an answer as right; never where no answer of the task is."""
    if not isinstance(label, Example):
        return False
    golds = [project.task.parse(gold) or gold for gold in label.golds]
    return project.task.score(golds, answer) >= project.task.pass_score
