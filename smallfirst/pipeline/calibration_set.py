"""The calibration set of a candidate: what each stage answers to the rows that certify, and who judges it; built once.

The rows that choose fit heads, gain and domain limit first. Rows that a policy places elsewhere are none of the set,
since the certificate is about the requests that reach the cascade.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.errors import DataError, StageMissing
from smallfirst.evaluation.evaluate import Evaluation, EvaluationSetup, judge_by, restrict_to_rows
from smallfirst.models.manifest import refuse_seen_rows
from smallfirst.models.protocol import Request
from smallfirst.pipeline.confidence_heads import (
    ConfidenceHeads,
    fit_gain,
    fit_heads,
    foreign_drafts,
    head_confidences,
    load_gain,
    with_confidences,
)
from smallfirst.pipeline.plans.joined_rows import JoinedRows
from smallfirst.pipeline.plans.worth import chosen_by
from smallfirst.pipeline.router_setup import (
    TrafficReference,
    cascade_stages,
    fit_profile,
    load_ood_detector,
    served_filters,
)
from smallfirst.project.candidate_registry import FINE_TUNED
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project, labelled_by, own_validation
from smallfirst.project.run_folder import RunFolder
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.certificate.outcomes import max_outside
from smallfirst.routing.domain import KEEP_SHARE
from smallfirst.routing.policies import CASCADE, apply_policies, is_conversation


class CalibrationSet(NamedTuple):
    """The rows that certify, as they are served."""

    drafts: list[Evaluation]
    """The stages' answers, cheapest first, with the confidences that are served."""
    selection: list[Evaluation] | None
    """Their answers to the rows that choose; None if one was not evaluated on them."""
    large: Evaluation | None
    """The large model's answers, on these rows or a part; None if it was not asked."""
    labels: Literal["gold", "large"]
    """Who says what is right."""
    guarantee: Guarantee
    """With what counts once."""
    foreign: list[list[float]]
    """By stage the confidences of drafts of foreign requests."""
    heads: ConfidenceHeads
    reference: TrafficReference
    tells: dict[str, Any]
    """What a certificate of these rows says beside what they show, by field."""


async def build_calibration_set(
    project: Project, run_folder: RunFolder, candidate: str, joined: JoinedRows
) -> CalibrationSet:
    """Fit what the rows that choose fit, and return the calibration set of a candidate's cascade.

    Raise StageMissing if a stage was not evaluated, DataError where a model was fitted on some of the rows.
    """
    file, names = project.file, {**{name: name for name in project.file.routing.ahead}, FINE_TUNED: candidate}
    profile = fit_profile(project, run_folder)
    stages = cascade_stages(project, run_folder, get_candidate(candidate).load(project, run_folder))
    try:
        folds = {stage: one for stage, name in names.items() if (one := run_folder.folds(name)) is not None}
        heads, held = await fit_heads(project, stages, profile, folds=folds)
        if any(policy.uses_gain for policy in file.routing.policies):
            await fit_gain(project, held, FINE_TUNED, run_folder.path)
        chosen_on = await head_confidences(heads, stages, held.rows, held.drafts, profile=profile)
        served = await head_confidences(heads, stages, joined.rows, profile=profile)
        foreign = await foreign_drafts(project, heads, stages, profile)
    finally:
        for stage in stages:
            await stage.model.aclose()
    rows, doubts, tells = await served_rows(project, run_folder, heads, joined.rows)
    for name in names.values():
        refuse_seen_rows(run_folder.model_folder(name), rows)
    drafts = [
        with_confidences(_measured_on(project, run_folder, name, rows), served.get(stage, {}))
        for stage, name in names.items()
    ]
    asked = run_folder.evaluation("large", "calibration") is not None
    large = _measured_on(project, run_folder, "large", rows) if asked else None
    small, labels = drafts[-1], labelled_by(project)
    reference = TrafficReference(large_usd=large.cost_usd_per_1k / 1000 if large else None)
    says = [project.rows.counted.in_words, joined.in_words, _label_sources(rows) if labels == "large" else ""]
    if labels == "large" and file.data.gold:  # as few as they are, people's answers bound true errors tighter
        gold, labels = gold_answers(project, small), "gold"
        drafts = [judge_by(draft, project.task, gold) for draft in drafts]
        large = judge_by(large, project.task, gold) if large else None
    tells["limits_of_validity"] = (*filter(None, says), *tells["limits_of_validity"])
    if (share := file.routing.guarantee.max_foreign_share) and foreign.confidence and foreign.confidence[0]:
        own = (sum(doubt > KEEP_SHARE for doubt in doubts), len(doubts))
        tells["max_outside"] = max_outside(share, own, (foreign.n_outside, len(foreign.confidence[0])))
    like = {e.key for e in project.rows.selection.examples} if own_validation(project) else None
    selection = selection_drafts(run_folder, names, chosen_on, like=like)
    return CalibrationSet(
        drafts, selection, large, labels, guarantee_of(project), foreign.confidence, heads, reference, tells
    )


async def served_rows(
    project: Project, run_folder: RunFolder, heads: ConfidenceHeads, rows: Dataset
) -> tuple[Dataset, list[float], dict[str, Any]]:
    """Return those of `rows` that reach the cascade when they are served, the detector's scores, and what is told.

    Policies and domain check are applied as the Router applies them; random splits are left out.
    """
    policies, own, doubts = project.file.routing.policies, [], list[float]()
    detector, gain = load_ood_detector(project.file, run_folder, heads), load_gain(run_folder.path)
    fixed = [policy for policy in policies if policy.kind != "split"]
    for example in rows.examples:
        request = Request(messages=example.messages)
        chosen = apply_policies(fixed, request, gain)
        if (chosen is not None and chosen.to != CASCADE) or (detector and is_conversation(request)):
            continue
        own.append(example)
        doubts += [(await detector.score(request)).value] if detector else []
    if detector:
        await detector.aclose()
    limits = []
    if fixed:
        passed = f"{len(own)} of {len(rows)} calibration rows did"
        limits.append(f"it holds for requests that pass the policies, as {passed}")
    for policy in policies:
        if policy.kind == "split" or getattr(policy, "tags", None):
            like = "calibration rows are not parted by it, so the other requests are taken to be like them"
            limits.append(f"a {'split' if policy.kind == 'split' else 'rule on tags'} leads to {policy.to}: {like}")
    told = {"filters": served_filters(project.file, detector), "limits_of_validity": tuple(limits)}
    return rows.subset(rows.name, tuple(own)), doubts, told


def selection_drafts(
    run_folder: RunFolder,
    candidates: Mapping[str, str],
    confidences: Mapping[str, Mapping[str, float]],
    *,
    like: set[str] | None = None,
) -> list[Evaluation] | None:
    """Return the answers of candidates by stage to the rows that choose, of these keys; None if one has none.

    Rows that not every stage has answered without having seen them are left out.
    """
    found = {stage: one for stage, name in candidates.items() if (one := chosen_by(run_folder, name)) is not None}
    if len(found) < len(candidates):
        return None
    common = set.intersection(*(set(one.by_key) for one in found.values()), *([] if like is None else [like]))
    drafts = []
    for stage, one in found.items():
        rows = tuple(row for row in one.rows if row.key in common)
        drafts.append(with_confidences(one.model_copy(update={"rows": rows}), confidences.get(stage, {})))
    return drafts


def guarantee_of(project: Project) -> Guarantee:
    """Return the guarantee of the file, which counts texts once where calibration rows repeat them."""
    guarantee = project.file.routing.guarantee
    repeats = project.rows.counted.n_repeats and not guarantee.unit
    return guarantee.model_copy(update={"unit": "text"}) if repeats else guarantee


def _label_sources(rows: Dataset) -> str:
    """Return a sentence on the rows that a model labelled; empty without any."""
    counts = Counter(example.source for example in rows.examples if example.source)
    models = ", ".join(f"{n} of {len(rows)} by {model}" for model, n in counts.most_common())
    return f"calibration labels are a model's ({models}), so it promises agreement with the model" if models else ""


def _measured_on(project: Project, run_folder: RunFolder, candidate: str, rows: Dataset) -> Evaluation:
    """Return a candidate's answers to calibration rows, and to the test rows among `rows`."""
    found = run_folder.evaluation(candidate, "calibration")
    if found is None:
        raise StageMissing(f"{candidate} was not evaluated", hint="smallfirst evaluate task.yaml")
    test = run_folder.evaluation(candidate, "test")
    answers = found.model_copy(update={"rows": (*found.rows, *(test.rows if test else ()))})
    return restrict_to_rows(answers, EvaluationSetup(project.task, rows, split="calibration"))


def gold_answers(project: Project, small: Evaluation) -> dict[str, str]:
    """Return people's answers by key of the calibration row; other validation rows are left out."""
    assert project.file.data.gold is not None
    columns, rows = project.file.data.columns.model_copy(update={"group": ""}), project.rows
    read = load_rows(project.file.data.gold, columns=columns, folder=project.file.folder)
    keys = {row.text: row.key for row in small.rows}
    unused = {e.text for part in (rows.selection, rows.calibration, rows.left_out) for e in part.examples}
    unknown = [e for e in read.examples if e.text not in keys and e.text not in unused]
    if unknown:
        raise DataError(
            f"{unknown[0].path}:{unknown[0].line}: no validation row has this text ({len(unknown)} such rows)",
            hint="data.gold holds people's answers to a random part of the validation rows",
        )
    return {keys[e.text]: project.task.parse(e.answer) or e.answer for e in read.examples if e.text in keys}
