"""The calibration stage: the rows that certify, the certificate, the Router measured with it, and what serving needs.

The rows that choose fit scores of acceptance, gain and domain limit first. Rows that a policy places elsewhere certify
nothing, since the certificate is about the requests that reach the cascade. Everything is attached to the model's
version in the registry, so that what is served is what was certified.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from smallfirst.base.errors import StageMissing
from smallfirst.base.records import Record, fingerprint
from smallfirst.data.dataset import Dataset, fold_text
from smallfirst.measuring.evaluate import Evaluation, EvaluationSetup, restrict_to_rows
from smallfirst.models.loading import most_answers
from smallfirst.models.manifest import read_manifest, refuse_seen_rows
from smallfirst.models.protocol import Request
from smallfirst.path import router_setup
from smallfirst.path.diagnostics import systematic_doubt
from smallfirst.path.evaluate import measure_router
from smallfirst.path.finalists import LOOKS, JoinedRows, chosen_by, find_joined
from smallfirst.path.project.candidate_registry import FINE_TUNED
from smallfirst.path.project.candidates import get_candidate
from smallfirst.path.project.languages import with_languages
from smallfirst.path.project.project import Project, labelled_by, own_validation, shown_as
from smallfirst.path.project.run_folder import CERTIFICATE, Promotion, RunFolder
from smallfirst.registry import versions
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.certificate import Certificate, Guarantee
from smallfirst.routing.certificate.certify import BelowRule, certify
from smallfirst.routing.certificate.looks import LARGE, LookRequest, Portion
from smallfirst.routing.certificate.threshold_search import chance_to_show
from smallfirst.routing.gain import GainModel
from smallfirst.routing.policies import CASCADE, apply_policies, is_conversation
from smallfirst.tasks.call import Call

CERTIFIED = "certified.json"
"""File of the latest Certified in a run folder."""
MIN_CHANCE = 0.2
"""Chance to show the guarantee from which a look takes the large portion of the level."""


class Certified(Record):
    """What certifying a candidate leaves for its version in the registry."""

    candidate: str = ""
    plan: Literal["small alone", "small first"] = "small alone"
    """What it was made for: the candidate after its gate alone, or for the part that the certificate covers."""
    certificate: Certificate
    parts: router_setup.RouterParts
    """With which it is served."""
    confidence: dict[str, float] = {}
    """By key of the calibration and selection rows that a second look counts: confidence of the last stage's draft."""
    foreign: tuple[tuple[float, ...], ...] = ()
    """By stage, the confidences of drafts of foreign requests, where a second look counts them."""
    texts: frozenset[str] = frozenset()
    """Of all rows (`known_texts`), where there may be a second look: none certifies as one that traffic brought."""


class CalibratedCascade(NamedTuple):
    """The rows that certify, as they are served, and what was fitted on the rows that choose."""

    rows: CalibrationSet
    guarantee: Guarantee
    """With what counts once."""
    parts: router_setup.RouterParts
    filters: dict[str, Any]
    """What requests pass before they reach the cascade."""
    rests_on: tuple[str, ...]
    """What a certificate of these rows says beside what they show."""
    confidence: dict[str, float]
    """Of the last stage's drafts, by key of a calibration or selection row."""


async def build_calibration_set(
    project: Project, run_folder: RunFolder, candidate: str, joined: JoinedRows
) -> CalibratedCascade:
    """Fit what the rows that choose fit, and return the calibration rows of a candidate's cascade.

    Raise StageMissing if a stage was not evaluated, DataError where a model was fitted on some of the rows.
    """
    file, names = project.file, {**{name: name for name in project.file.routing.ahead}, FINE_TUNED: candidate}
    profile = router_setup.fit_profile(project, run_folder, candidate)
    stages = router_setup.cascade_stages(project, run_folder, get_candidate(candidate).load(project, run_folder))
    try:
        folds = {stage: one for stage, name in names.items() if (one := run_folder.folds(name)) is not None}
        held = await router_setup.held_out_drafts(project, stages, folds)
        parts = await router_setup.fit_acceptance(project, stages, held, profile)
        if any(policy.uses_gain for policy in file.routing.policies):
            await router_setup.fit_gain(project, held, FINE_TUNED, run_folder.path)
        chosen_on = await router_setup.accepted_confidences(parts, stages, held.rows, held.drafts, profile=profile)
        served = await router_setup.accepted_confidences(parts, stages, joined.rows, profile=profile)
        foreign = await router_setup.foreign_drafts(project, parts, stages, profile)
    finally:
        for stage in stages:
            await stage.model.aclose()
    rows, filters, limits = served_rows(project, run_folder, parts, joined.rows)
    guarantee = guarantee_of(project, most_answers(run_folder.model_folder(candidate)))
    for name in names.values():
        refuse_seen_rows(run_folder.model_folder(name), rows)
    drafts = [
        router_setup.with_confidences(_measured_on(project, run_folder, name, rows), served.get(stage, {}))
        for stage, name in names.items()
    ]
    if guarantee.most_of_group:  # what is no call, or one too many, goes on whatever is right
        drafts = [draft.model_copy(update={"rows": tuple(r for r in draft.rows if r.confidence)}) for draft in drafts]
    asked = run_folder.evaluation("large", "calibration") is not None
    large, judged_by = _measured_on(project, run_folder, "large", rows) if asked else None, labelled_by(project)
    if large:
        parts = parts.model_copy(update={"large_usd": large.cost_usd_per_1k / 1000})
    says = [project.rows.counted.in_words, joined.in_words, _label_sources(rows) if judged_by == "large" else ""]
    says.append(systematic_doubt(project))
    like = {e.key for e in project.rows.selection.examples} if own_validation(project) else None
    selection = selection_drafts(run_folder, names, chosen_on, like=like) or []
    return CalibratedCascade(
        rows=CalibrationSet.of(
            drafts, large, judged_by=judged_by, guarantee=guarantee, foreign=foreign, selection=selection
        ),
        guarantee=guarantee,
        parts=parts,
        filters=filters,
        rests_on=(*filter(None, says), *limits),
        confidence={row.key: row.confidence or 0.0 for one in (drafts[-1:] + selection[-1:]) for row in one.rows},
    )


def served_rows(
    project: Project, run_folder: RunFolder, parts: router_setup.RouterParts, rows: Dataset
) -> tuple[Dataset, dict[str, Any], list[str]]:
    """Return those of `rows` that reach the cascade when they are served, through which filters, and what is told.

    Policies and the check for conversations are applied as the Router applies them; random splits are left out.
    """
    policies, own = project.file.routing.policies, []
    checked = router_setup.serves_domain_check(project.file, run_folder, parts)
    gain = GainModel.load(run_folder.path / router_setup.GAIN)
    fixed = [policy for policy in policies if policy.kind != "split"]
    for example in rows.examples:
        request = Request(messages=example.messages)
        chosen = apply_policies(fixed, request, gain)
        if not (chosen is not None and chosen.to != CASCADE) and not (checked and is_conversation(request)):
            own.append(example)
    limits = []
    if fixed:
        passed = f"{len(own)} of {len(rows)} calibration rows did"
        limits.append(f"it holds for requests that pass the policies, as {passed}")
    for policy in policies:
        if policy.kind == "split" or getattr(policy, "tags", None):
            like = "calibration rows are not parted by it, so the other requests are taken to be like them"
            limits.append(f"a {'split' if policy.kind == 'split' else 'rule on tags'} leads to {policy.to}: {like}")
    return rows.subset(rows.name, tuple(own)), router_setup.served_filters(project.file, checked=checked), limits


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
        drafts.append(router_setup.with_confidences(one.model_copy(update={"rows": rows}), confidences.get(stage, {})))
    return drafts


def guarantee_of(project: Project, most_of_group: int | None = None) -> Guarantee:
    """Return the guarantee of the file, by language where rows hold several, once a text where they repeat them.

    `most_of_group`: where groups count together, how many answers of one its model gives.
    """
    guarantee, most = with_languages(project), most_of_group
    if most and guarantee.most_of_group is None and guarantee.limits_errors_alone:
        own = project.task.limits if isinstance(project.task, Call) else {}
        return guarantee.model_copy(update={"most_of_group": most, "max_error_of": own})
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


def certify_candidate(project: Project, run_folder: RunFolder, candidate: str, *, alone: bool) -> Certified:
    """Certify a candidate behind the smaller ones ahead of it, a look at the rows; the run folder keeps what it finds.

    `alone`: it passed its gate by itself, so what is not certified may stay small, unless task.yaml sets a guarantee
    and there is a large model. Raise StageMissing if a stage was not evaluated.
    """
    routing = project.file.routing
    free = alone and not project.file.binds_answers  # the gate's proof is about all answers, certified or not
    joined = find_joined(project, run_folder, candidate)
    found = asyncio.run(build_calibration_set(project, run_folder, candidate, joined))
    # Of a candidate that is not free only what is certified stays; a person is the last resort.
    below = BelowRule(free, routing.person if free else project.file.large is None, routing.usd_per_wrong_answer)
    certificate = certify(
        found.rows,
        found.guarantee,
        model_fingerprint=read_manifest(run_folder.model_folder(candidate)).weights_fingerprint,
        below=below,
        look=LookRequest(
            run_folder.path.parent / LOOKS,
            "small" if routing.second_look_after else look_portion(found.rows, found.guarantee, joined.look.part),
            joined.look,
            n_once=joined.n_test,
        ),
    )
    certificate = certificate.reported(rests_on=(*found.rests_on, *certificate.report.rests_on))
    changes: dict[str, Any] = {"filters": found.filters}
    if free and not certificate.issued:
        why = "no certificate, so no threshold: the candidate passed its gate alone and answers every request"
        certificate, changes["below"] = certificate.reported(below_why=why), "keep"
    certificate = certificate.model_copy(update=changes)
    project.progress.log(f"certificate of {candidate}: {certificate.report.why}")
    certified = Certified(
        candidate=candidate, plan="small alone" if alone else "small first", certificate=certificate, parts=found.parts
    )
    if routing.second_look_after:  # what it counts beside live traffic
        foreign = tuple(map(tuple, found.rows.foreign.tolist()))
        update = {"confidence": found.confidence, "foreign": foreign, "texts": known_texts(project)}
        certified = certified.model_copy(update=update)
    _save(project, run_folder, certified)
    return certified


def known_texts(project: Project) -> frozenset[str]:
    """Return the fingerprints of the texts of all rows, as `ShadowRow.text` has them."""
    rows = project.rows
    parts = (rows.train, rows.selection, rows.calibration, rows.test)
    return frozenset(fingerprint(fold_text(row.text)) for part in parts for row in part.examples)


def look_portion(rows: CalibrationSet, guarantee: Guarantee, part: float) -> Portion:
    """Return the part of the level that this look is worth: too few rows keep the large one for a later look.

    The rows that choose decide it, and how many certify; no answer of a certifying row does. `part`: of a shared look.
    """
    selection = rows.selection
    if (
        selection is None
        or rows.place is not None
        or rows.n_stages > 1
        or set(guarantee.limits) != {"error"}
        or guarantee.per_group
    ):
        return "large"
    level, limit = LARGE * part * (1 - guarantee.confidence), guarantee.limits["error"]
    chance = chance_to_show(selection.confidence[0], selection.right[0], rows.n, limit, level)
    return "large" if chance >= MIN_CHANCE else "small"


@shown_as("certifying")
def calibrate_stage(
    project: Project, run_folder: RunFolder, promotion: Promotion | None = None, *, candidate: str = ""
) -> Certificate:
    """Certify a model and measure the Router on test rows; return the certificate.

    It is `candidate`, which passed its gate alone and is not registered yet; else that of a `promotion`, left out the
    run's own, to whose version the certificate is attached. Raise StageMissing if a stage was not evaluated.
    """
    promotion = promotion or (None if candidate else run_folder.promoted())
    plan = promotion.plan if promotion else "small alone"
    candidate = promotion.candidate if promotion else candidate
    found = certify_candidate(project, run_folder, candidate, alone=plan == "small alone")
    asyncio.run(measure_router(project, run_folder, found.certificate, found.parts, candidate=candidate))
    kept = None if plan == "small first" else unconfirmed_escalation(project, run_folder, found.certificate, candidate)
    if kept is not None:
        found = found.model_copy(update={"certificate": kept})
        _save(project, run_folder, found)
        asyncio.run(measure_router(project, run_folder, kept, found.parts, candidate=candidate))
    if promotion is not None:
        attach_certified(promotion, found, run_folder)
    return found.certificate


def unconfirmed_escalation(
    project: Project, run_folder: RunFolder, certificate: Certificate, candidate: str
) -> Certificate | None:
    """Return the certificate with what is below its threshold kept small, if test rows do not confirm the escalation.

    The candidate passed its gate alone, so it wins ties with the Router on the same test rows. None: nothing changes,
    also where a guarantee that task.yaml sets, or a limit of it, decides.
    """
    routed, alone = run_folder.evaluation("routed", "test"), run_folder.evaluation(candidate, "test")
    routing = project.file.routing
    decided = "accuracy_loss" in routing.guarantee.limits or project.file.binds_answers
    if routed is None or alone is None or certificate.below != "escalate" or decided:
        return None
    pairs = [(row.correct, alone.by_key[row.key].correct) for row in routed.rows if row.key in alone.by_key]
    n_routed, n_alone = sum(ours for ours, _ in pairs), sum(theirs for _, theirs in pairs)
    if not pairs or n_routed > n_alone:
        return None
    why = (
        f"{certificate.report.below_why}; but on {len(pairs)} test rows it is right on {n_routed} with that and on "
        f"{n_alone} without, so they stay small"
    )
    return certificate.reported(below_why=why).model_copy(update={"below": "abstain" if routing.person else "keep"})


def _save(project: Project, run_folder: RunFolder, found: Certified) -> None:
    project.progress.log(f"below the threshold: {found.certificate.below} ({found.certificate.report.below_why})")
    found.certificate.save(run_folder.path / CERTIFICATE)
    found.save(run_folder.path / CERTIFIED)


def attach_certified(promotion: Promotion, found: Certified, run_folder: RunFolder) -> None:
    """Attach the certificate and the parts of the Router to the version that is or goes live.

    With what a server needs of the run where that is not on its machine: cheap models, and what recognises the task.
    """
    cheap = {run_folder.model_folder(name).name for name in router_setup.CHEAP}
    kept = {router_setup.PROFILE_FOLDER, router_setup.GAIN, *cheap}
    paths = [path for path in run_folder.path.iterdir() if path.name in kept or path.suffix == ".json"]
    versions.attach_folder(promotion.name, promotion.version, router_setup.RUN, paths)
    for filename, record in ((CERTIFICATE, found.certificate), (router_setup.PARTS, found.parts)):
        versions.attach(promotion.name, promotion.version, filename, record.model_dump_json(indent=2).encode())
