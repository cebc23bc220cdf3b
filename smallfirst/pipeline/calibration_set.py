"""The calibration set of a candidate: what each stage answers to the rows that certify, and who judges it; built once.

Rows that a policy places elsewhere are none of it, since the certificate is about the requests that reach the cascade.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.errors import DataError, StageMissing
from smallfirst.evaluation.evaluate import EvaluationSetup, restrict_to_rows
from smallfirst.evaluation.results import Evaluation
from smallfirst.models.protocol import Request
from smallfirst.models.trained_on import refuse_seen_rows
from smallfirst.pipeline.confidence_heads import ConfidenceHeads, load_gain, with_confidences
from smallfirst.pipeline.plans.joined_rows import JoinedRows
from smallfirst.pipeline.router_setup import TrafficReference, load_ood_detector, served_filters
from smallfirst.project.project import Project, labelled_by
from smallfirst.project.run_folder import RunFolder
from smallfirst.records import fingerprint
from smallfirst.routing.certificate.filters import RequestFilters, random_split
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.routing.policies.policy import CASCADE, apply_policies, is_conversation
from smallfirst.routing.types import OodScore


class CalibrationSet(NamedTuple):
    """The rows that certify, as they are served: what every stage answers to them, and who judges it."""

    drafts: tuple[Evaluation, ...]
    """The stages' answers, cheapest first, with the confidences that are served."""
    large: Evaluation | None
    """The large model's, on these rows or a part; None if it was not asked."""
    labels: Literal["gold", "large"]
    """Who says what is right."""
    guarantee: Guarantee
    """The guarantee of task.yaml, with what counts once."""
    doubts: tuple[float, ...]
    """By row the score of the domain check; empty without one."""
    filters: RequestFilters
    """What a request passes before it reaches the cascade."""
    reference: TrafficReference
    """What live traffic is compared with."""
    limits: tuple[str, ...]
    """What the promise rests on, a sentence each."""


async def build_calibration_set(
    project: Project,
    run_folder: RunFolder,
    joined: JoinedRows,
    candidates: Mapping[str, str],
    heads: ConfidenceHeads,
    confidences: Mapping[str, Mapping[str, float]],
) -> CalibrationSet:
    """Return the calibration set of a cascade of `candidates` by stage.

    `confidences` by stage and key are those that are served where a model's own are not. Raise StageMissing if a stage
    was not evaluated, DataError where a model was fitted on some of the rows.
    """
    rows, scores, filters = await served_rows(project, run_folder, heads, joined.rows)
    for name in candidates.values():
        refuse_seen_rows(run_folder.model_folder(name), rows)
    drafts = [
        with_confidences(_measured_on(project, run_folder, name, rows), confidences.get(stage, {}))
        for stage, name in candidates.items()
    ]
    there = run_folder.evaluation("large", "calibration") is not None
    large = _measured_on(project, run_folder, "large", rows) if there else None
    doubts, labels = tuple(score.value for score in scores), labelled_by(project)
    reference = traffic_reference(project, drafts[-1], doubts, large)
    sources = _label_sources(rows) if labels == "large" else ""
    if labels == "large" and project.file.data.gold:  # as few as they are, people's answers bound true errors tighter
        gold, labels = gold_answers(project, drafts[-1]), "gold"
        drafts = [judged_by_gold(project, draft, gold) for draft in drafts]
        large = judged_by_gold(project, large, gold) if large else None
    said = (project.rows.counted.in_words, joined.in_words, sources, *filters.limits)
    return CalibrationSet(
        drafts=tuple(drafts),
        large=large,
        labels=labels,
        guarantee=guarantee_of(project),
        doubts=doubts,
        filters=filters,
        reference=reference,
        limits=tuple(filter(None, said)),
    )


async def served_rows(
    project: Project, run_folder: RunFolder, heads: ConfidenceHeads, rows: Dataset
) -> tuple[Dataset, tuple[OodScore, ...], RequestFilters]:
    """Return those of `rows` that reach the cascade when they are served, the detector's scores, and the filters.

    Policies and domain check are applied as the Router applies them; random splits are left out. Without a detector
    there are no scores.
    """
    file = project.file
    detector, gain = load_ood_detector(file, run_folder, heads), load_gain(run_folder.path)
    policies = [policy for policy in file.routing.policies if not random_split(policy)]
    own, scores = [], []
    for example in rows.examples:
        request = Request(messages=example.messages)
        chosen = apply_policies(policies, request, gain)
        if (chosen is not None and chosen.to != CASCADE) or (detector and is_conversation(request)):
            continue
        own.append(example)
        scores += [await detector.score(request)] if detector else []
    if detector:
        await detector.aclose()
    found = served_filters(file, detector).model_copy(update={"n_rows": len(rows), "n_passed": len(own)})
    return rows.subset(rows.name, tuple(own)), tuple(scores), found


def traffic_reference(
    project: Project, small: Evaluation, doubts: Sequence[float], large: Evaluation | None
) -> TrafficReference:
    """Return the reference of the calibration rows."""
    return TrafficReference(
        confidence=tuple(row.confidence for row in small.rows if row.confidence is not None),
        doubt=tuple(doubts),
        labels=tuple(row.answer for row in small.rows if row.answer is not None) if project.task.closed else (),
        large_usd=large.cost_usd_per_1k / 1000 if large else None,
    )


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


def judged_by_gold(project: Project, measured: Evaluation, gold: Mapping[str, str]) -> Evaluation:
    """Return the evaluation on the rows with people's answers (by row key), scored by these."""
    rows = tuple(e for e in measured.rows if e.key in gold)
    scores = [project.task.score([gold[row.key]], row.answer) for row in rows]
    changed = [
        row.model_copy(
            update={
                "gold": gold[row.key],
                "also": (),
                "score": s,
                "correct": s >= project.task.pass_score,
                "wrong_fields": project.task.wrong_fields([gold[row.key]], row.answer),
            }
        )
        for row, s in zip(rows, scores, strict=True)
    ]
    return measured.model_copy(
        update={"rows": tuple(changed), "dataset_fingerprint": fingerprint([measured.dataset_fingerprint, gold])}
    )


def gold_answers(project: Project, small: Evaluation) -> dict[str, str]:
    """Return people's answers by key of the calibration row; other validation rows are left out."""
    assert project.file.data.gold is not None
    columns = project.file.data.columns.model_copy(update={"group": ""})
    read = load_rows(project.file.data.gold, columns=columns, folder=project.file.folder)
    keys = {row.text: row.key for row in small.rows}
    rows = project.rows
    unused = {e.text for part in (rows.selection, rows.calibration, rows.left_out) for e in part.examples}
    unknown = [e for e in read.examples if e.text not in keys and e.text not in unused]
    if unknown:
        first = unknown[0]
        raise DataError(
            f"{first.path}:{first.line}: no validation row has this text ({len(unknown)} such rows)",
            hint="data.gold holds people's answers to a random part of the validation rows",
        )
    return {keys[e.text]: project.task.parse(e.answer) or e.answer for e in read.examples if e.text in keys}
