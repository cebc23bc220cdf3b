"""The parts of a task's Router: stages with their confidences, gain, domain check, filters, options.

The scores of acceptance and the gain of the large model are fitted on the rows that choose: out-of-fold answers to
training and selection rows, or answers to selection rows. These never certify, so nothing here weakens a guarantee.

Measurement on test rows and serving use the same parts. A served model has its version in its name
(`tickets-small@3`), so every answer and every row of the ledger says which version gave it.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smallfirst.base.errors import DataError, NotRecorded, StageMissing
from smallfirst.base.records import Record
from smallfirst.data.dataset import Dataset, Example
from smallfirst.measuring.evaluate import Evaluation
from smallfirst.measuring.out_of_fold import FoldAnswers
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder, open_encoder
from smallfirst.models.linear.classifier import ENCODER_FOLDER, LinearClassifier
from smallfirst.models.manifest import MANIFEST, int8_allowed, read_manifest
from smallfirst.models.protocol import Completion, Model, Request
from smallfirst.path.large_model import answers_so_far
from smallfirst.path.project.candidates import fits_in_folds, fitted_candidates
from smallfirst.path.project.project import Project, load_small, own_validation
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.registry import versions
from smallfirst.routing.acceptance import AcceptanceScore, foreign_rows
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.domain import OWN, OodGate, TaskProfile, fit_task_profile, has_profile
from smallfirst.routing.gain import LARGE, SMALL, GainModel
from smallfirst.routing.policies import CHALLENGER
from smallfirst.routing.router import RouterOptions, Stage

PARTS = "router.json"
"""File of the RouterParts beside the certificate."""
GAIN, PROFILE_FOLDER = "gain", "signature"
"""Folders of the fitted gain and of the task's profile in a run folder."""
PROFILE_FOLDS = 5
"""Parts of the rows that profiles of the others measure, so that all of them find the domain limit."""
MAX_PROFILE_FOLD_ROWS = 10_000
"""Training and selection rows up to which that is done for a check that is served; it takes seconds."""
MIN_CAUGHT = 0.8
"""Share of the foreign rows that nothing certifies by which a check by words is found good enough."""
RUN = "run"
"""Folder beside a version's files with what a server needs of its run."""
CHEAP = ("words", "encoder")
"""Linear candidates, of which the first that a run has is asked about the answers of others."""


class RouterParts(Record):
    """What a calibration leaves for the Router beside the certificate."""

    acceptance: dict[str, AcceptanceScore] = {}
    """By stage the score of confidence and distance together; empty where no domain check is served."""
    large_usd: float | None = None
    """Mean cost of an answer of the large model in USD; None if it was not measured."""

    def on(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        return tuple(stage._replace(acceptance=self.acceptance.get(stage.name)) for stage in stages)


class HeldOut(NamedTuple):
    """Answers to rows that the model which gave them had not seen."""

    rows: Dataset
    drafts: dict[str, list[Completion]]
    """By stage, in the order of the rows."""


async def held_out_drafts(
    project: Project, stages: Sequence[Stage], folds: Mapping[str, FoldAnswers] | None = None
) -> HeldOut:
    """Return every stage's answers to training and selection rows out of fold, by `folds`, those of fitted stages.

    To selection rows alone if a stage has none, or if training rows may be unlike those that certify.
    """
    n, known = len(project.rows.selection), {name: one.completions(name) for name, one in (folds or {}).items()}
    if all(stage.name in known for stage in stages) and not own_validation(project):
        return HeldOut(project.rows.development, known)
    rows = project.rows.selection
    asked = {s.name: known[s.name][-n:] if s.name in known and n else await _drafts_of(s, rows) for s in stages}
    return HeldOut(rows, asked)


async def fit_acceptance(
    project: Project, stages: Sequence[Stage], held: HeldOut, profile: TaskProfile | None
) -> RouterParts:
    """Fit the scores on held-out answers and on those to foreign rows, which are asked for.

    `profile` is that of the domain check which is served; without one there are no scores.
    """
    if profile is None:
        return RouterParts()
    foreign, _ = foreign_rows(project.rows.open_ended)
    theirs = await _confidences(stages, foreign)
    near, far = (np.array([one.features for one in profile.measure_rows(part)]) for part in (held.rows, foreign))
    share = project.file.routing.guarantee.max_foreign_share
    found: dict[str, AcceptanceScore] = {}
    for name, drafts in held.drafts.items():
        right = [is_correct(project, e.golds, draft) for e, draft in zip(held.rows.examples, drafts, strict=True)]
        own = [draft.confidence or 0.0 for draft in drafts]
        score = AcceptanceScore.fit((own, near, right), (theirs[name], far), share=share)
        if score is not None:
            found[name] = score
    if not found:
        project.progress.log(f"foreign requests are not told apart: {len(held.rows)} rows are too few")
    return RouterParts(acceptance=found)


async def foreign_drafts(
    project: Project, parts: RouterParts, stages: Sequence[Stage], profile: TaskProfile | None
) -> list[list[float]]:
    """Return by stage the confidences of foreign rows that nothing was fitted on; empty without a domain check."""
    if profile is None or not parts.acceptance:
        return []
    _, rows = foreign_rows(project.rows.open_ended)
    said = await _confidences(parts.on(stages), rows, profile=profile)
    return [said[stage.name] for stage in stages]


async def accepted_confidences(
    parts: RouterParts,
    stages: Sequence[Stage],
    rows: Dataset,
    drafts: Mapping[str, Sequence[Completion]] | None = None,
    *,
    profile: TaskProfile | None,
) -> dict[str, dict[str, float]]:
    """Return the confidence of each answer by row key, for each stage with a score; `drafts` saves asking again."""
    if not parts.acceptance:
        return {}
    keys = [example.key for example in rows.examples]
    said = await _confidences(parts.on(stages), rows, drafts, profile=profile)
    return {name: dict(zip(keys, said[name], strict=True)) for name in parts.acceptance}


def with_confidences(evaluation: Evaluation, confidence: Mapping[str, float]) -> Evaluation:
    """Return the evaluation with these confidences by row key; unchanged if there are none."""
    if not confidence:
        return evaluation
    rows = tuple(row.model_copy(update={"confidence": confidence[row.key]}) for row in evaluation.rows)
    return evaluation.model_copy(update={"rows": rows})


async def _confidences(
    stages: Sequence[Stage],
    rows: Dataset,
    drafts: Mapping[str, Sequence[Completion]] | None = None,
    *,
    profile: TaskProfile | None = None,
) -> dict[str, list[float]]:
    """Return by stage the confidence of its answer to each row, 0 where none is given; `drafts` saves asking again."""
    drafts = drafts or {stage.name: await _drafts_of(stage, rows) for stage in stages}
    features = [one.features for one in profile.measure_rows(rows)] if profile else [None] * len(rows)
    return {s.name: [s.confidence(*one) or 0.0 for one in zip(drafts[s.name], features, strict=True)] for s in stages}


async def _drafts_of(stage: Stage, rows: Dataset) -> list[Completion]:
    return list(await asyncio.gather(*(stage.model.complete(Request(messages=e.messages)) for e in rows.examples)))


def is_correct(project: Project, golds: Sequence[str], draft: Completion) -> bool:
    """Return True if the task scores the answer as correct."""
    return project.task.score(golds, project.task.parse(draft.text)) >= project.task.pass_score


async def fit_gain(project: Project, held: HeldOut, stage: str, folder: Path) -> GainModel:
    """Fit the gain on a stage's and the large model's answers to the rows that choose; save it in `folder`.

    Only recorded answers of the large model count, none is asked for; without any it is taken to be always right.
    """
    rows, drafts = held.rows.examples, held.drafts[stage]
    outcomes: dict[str, list[float]] = {
        SMALL: [float(is_correct(project, e.golds, draft)) for e, draft in zip(rows, drafts, strict=True)]
    }
    if recorded := answers_so_far(project.file, project.task):

        async def outcome(example: Example) -> float:
            """Return 1 or 0 for a right or wrong recorded answer, NaN for none."""
            try:
                answer = await recorded.complete(Request(messages=example.messages))
            except NotRecorded:
                return math.nan
            return float(is_correct(project, example.golds, answer))

        large = [await outcome(example) for example in rows]
        outcomes |= {} if all(map(math.isnan, large)) else {LARGE: large}
    found = GainModel.fit([e.text for e in rows], outcomes)
    found.save(folder / GAIN)
    project.progress.log(f"gain: {found.fitted.why}")
    return found


def cascade_stages(project: Project, run_folder: RunFolder, last: Model) -> tuple[Stage, ...]:
    """Return the stages below the large model: the smaller candidates, then `last` under the name `small`."""
    return (*stages_ahead(project.file, run_folder), Stage("small", last))


def stages_ahead(file: TaskFile, run_folder: RunFolder, *, version: int | None = None) -> tuple[Stage, ...]:
    """Return the smaller candidates that answer first, in order; `version` becomes part of their names."""
    names = {ahead: versioned_name(f"{file.name}-{ahead}", version) for ahead in file.routing.ahead}
    return tuple(Stage(one, load_small(file, run_folder.model_folder(one), name=name)) for one, name in names.items())


def versioned_name(name: str, version: int | None) -> str:
    """Return the name of a served model: `tickets-small@3`."""
    return name if version is None else f"{name}@{version}"


def routing_rules(file: TaskFile, large_usd: float | None, folder: Path, beside: Sequence[Stage] = ()) -> RouterOptions:
    """Return the Router options of a task file; the learned gain is in the run's folder.

    Policies that lead to the challenger are left out where it is not among the stages `beside`.
    """
    routing, there = file.routing, {stage.name for stage in beside}
    policies = [policy for policy in routing.policies if policy.to != CHALLENGER or CHALLENGER in there]
    expected, gain = {} if large_usd is None else {"large": large_usd}, GainModel.load(folder / GAIN)
    return RouterOptions(policies, gain, tuple(beside), expected, routing.out_of_scope)


def routes_to_challenger(file: TaskFile) -> bool:
    """Return True if a policy sends requests to the challenger."""
    return any(policy.to == CHALLENGER for policy in file.routing.policies)


def challenger_stages(file: TaskFile, version: int | None = None) -> tuple[Stage, ...]:
    """A version as the challenger's stage beside the cascade, if a policy leads to it; else nothing.

    Without a number it is the one called @challenger. RegistryError: there is none.
    """
    if not routes_to_challenger(file):
        return ()
    found = versions.resolve(f"{file.register_to}@{CHALLENGER}" if version is None else f"{file.register_to}/{version}")
    name = versioned_name(f"{file.name}-{CHALLENGER}", found.version)
    return (Stage(CHALLENGER, load_small(file, found.folder, name=name)),)


def fit_profile(project: Project, run_folder: RunFolder, candidate: str) -> TaskProfile | None:
    """Fit and save the profile that tells the task's requests from others; return it if it is served.

    It compares what the candidate reads, so that a request is read once; what an encoder has learnt, where it has not
    seen the selection rows. Else it compares words if they tell MIN_CAUGHT of the foreign rows apart, and vectors of
    the frozen encoder if not, or if a language model answers, which takes longer than both.
    """
    rows, file = project.rows, project.file
    own, served = own_validation(project), file.tells_foreign_requests
    in_folds = fits_in_folds(project) or (served and not own and len(rows.development) <= MAX_PROFILE_FOLD_ROWS)

    def fit(encoder: tuple[str, SentenceEncoder] | None, *, in_folds: bool = in_folds) -> TaskProfile:
        return fit_task_profile(
            rows.train,
            rows.selection,
            encoder=encoder,
            n_folds=PROFILE_FOLDS if in_folds else 0,
            by_selection=own,
            refuse_own_at_most=file.routing.domain.refuse_own_at_most,
        )

    folder = run_folder.model_folder(candidate)
    kind = read_manifest(folder).kind if (folder / MANIFEST).is_file() else ""
    encoder = _frozen_encoder(project, run_folder)
    try:
        if kind == "encoder" and not (folder / ENCODER_FOLDER).is_dir():
            manifest = read_manifest(folder)
            profile = fit((manifest.base, _opened(folder, manifest.base)))
        elif kind == "encoder" and run_folder.folds(candidate) is None:
            learnt = LinearClassifier.load(folder, read_manifest(folder)).encoder
            assert learnt is not None
            profile = fit((OWN, learnt), in_folds=False)
        elif encoder is None or kind in ("words", "encoder"):
            profile = fit(None)
            if encoder is not None and (caught := _caught(profile, foreign_rows(rows.open_ended)[0])) < MIN_CAUGHT:
                project.progress.log(f"domain check: words tell {caught:.0%} of foreign rows apart, so an encoder does")
                profile = fit(encoder)
        else:
            profile = fit(encoder)
    except DataError as error:
        project.progress.log(f"`auto` cannot recognize this task: {error.args[0]}")
        return None
    shutil.rmtree(run_folder.path / PROFILE_FOLDER, ignore_errors=True)
    profile.save(run_folder.path / PROFILE_FOLDER)
    return profile if served else None


def _frozen_encoder(project: Project, run_folder: RunFolder) -> tuple[str, SentenceEncoder] | None:
    if not any(candidate.uses_sentence_encoder for candidate in fitted_candidates(project, run_folder)):
        return None
    name = project.file.small.encoder
    return name, _opened(run_folder.model_folder("encoder"), name)


def _opened(folder: Path, name: str) -> SentenceEncoder:
    """Return the encoder of this name, in the precision in which the model in `folder` reads: one pass serves both."""
    return open_encoder(
        find_weights(name), int8=(folder / MANIFEST).is_file() and int8_allowed(folder, read_manifest(folder))
    )


def _caught(profile: TaskProfile, foreign: Dataset) -> float:
    beyond = [one.ood_score > profile.threshold for one in profile.measure_rows(foreign)]
    return sum(beyond) / max(1, len(beyond))


def serves_domain_check(file: TaskFile, run_folder: RunFolder, parts: RouterParts) -> bool:
    """Return True if requests pass the domain check: it is on, and was part of the calibration that fitted `parts`."""
    return file.tells_foreign_requests and bool(parts.acceptance) and has_profile(run_folder.path / PROFILE_FOLDER)


def load_ood_detector(file: TaskFile, run_folder: RunFolder, parts: RouterParts, small: Model) -> OodGate | None:
    """Return the domain check in front of the model that answers last; None where none is served."""
    if not serves_domain_check(file, run_folder, parts):
        return None
    return OodGate(TaskProfile.load(run_folder.path / PROFILE_FOLDER, own_encoder(small)), price=file.prices.machine)


def own_encoder(model: Model) -> SentenceEncoder | None:
    """Return the encoder that a model reads with; None if it reads otherwise."""
    return getattr(model, "encoder", None)


def served_filters(file: TaskFile, *, checked: bool) -> dict[str, Any]:
    """Return what requests pass before the cascade; random splits are left out, which leave requests like all."""
    fixed = [policy.model_dump(mode="json") for policy in file.routing.policies if policy.kind != "split"]
    return {"domain check": checked, "policies": fixed}


def check_filters(certificate: Certificate, file: TaskFile, detector: OodGate | None) -> None:
    """Raise StageMissing if requests are served through other filters than those of an issued certificate."""
    served, held = served_filters(file, checked=detector is not None), certificate.filters
    if other := [name for name in held if certificate.issued and served[name] != held[name]]:
        raise StageMissing(
            f"{file.name}: its certificate holds behind the {other[0]} of its calibration, and another would be served",
            hint="smallfirst calibrate task.yaml, or restore routing.domain, routing.policies and the run's files",
        )
