"""The parts of a task's Router: stages, options, filters, and the reference for live traffic.

Measurement on test rows and serving use the same parts. A served model has its version in its name
(`tickets-small@3`), so every answer and every row of the ledger says which version gave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallfirst.base.errors import DataError, StageMissing
from smallfirst.base.records import Record
from smallfirst.models.catalog import find_weights
from smallfirst.models.manifest import MANIFEST, int8_allowed, read_manifest
from smallfirst.models.protocol import Model
from smallfirst.path.confidence_heads import ConfidenceHeads, load_gain
from smallfirst.path.project.candidates import fits_in_folds, fitted_candidates
from smallfirst.path.project.project import Project, load_small, own_validation
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.project.task_file import TaskFile
from smallfirst.registry import versions
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.domain import OodGate, TaskProfile, fit_task_profile
from smallfirst.routing.policies import CHALLENGER
from smallfirst.routing.router import RouterOptions, Stage

PROFILE_FOLDS = 5
"""Where rows are few, parts of them that profiles of the others measure."""
PROFILE_FOLDER = "signature"
"""Folder of the task's profile in a run folder."""
RUN = "run"
"""Folder beside a version's files with what a server needs of its run."""
CHEAP = ("words", "encoder")
"""Linear candidates, of which the first that a run has is asked about the answers of others."""
REFERENCE = "reference.json"
"""File beside the certificate."""


class TrafficReference(Record):
    """What the Router expects of the models that it asks."""

    large_usd: float | None = None
    """Mean cost of an answer of the large model in USD; None if it was not measured."""


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
    expected = {} if large_usd is None else {"large": large_usd}
    return RouterOptions(policies, routing.budget, load_gain(folder), tuple(beside), expected, routing.out_of_scope)


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


def fit_profile(project: Project, run_folder: RunFolder) -> TaskProfile | None:
    """Fit and save the profile that tells the task's requests from others; return it if it is served."""
    encoder, rows = None, project.rows
    if any(candidate.uses_sentence_encoder for candidate in fitted_candidates(project, run_folder)):
        from smallfirst.models.encoder.sentence_encoder import open_encoder

        name, folder = project.file.small.encoder, run_folder.model_folder("encoder")
        int8 = (folder / MANIFEST).is_file() and int8_allowed(folder, read_manifest(folder))
        encoder = (name, open_encoder(find_weights(name), int8=int8))  # as the candidate reads: one pass serves both
    n_folds, own = PROFILE_FOLDS if fits_in_folds(project) else 0, own_validation(project)
    try:
        profile = fit_task_profile(rows.train, rows.selection, encoder=encoder, n_folds=n_folds, by_selection=own)
    except DataError as error:
        project.progress.log(f"`auto` cannot recognize this task: {error.args[0]}")
        return None
    profile.save(run_folder.path / PROFILE_FOLDER)
    return profile if project.file.tells_foreign_requests else None


def load_ood_detector(file: TaskFile, run_folder: RunFolder, heads: ConfidenceHeads) -> OodGate | None:
    """Return the domain check; None if it is off, or was not part of the calibration that fitted `heads`."""
    if not file.tells_foreign_requests or not heads.acceptance:
        return None
    return OodGate.load(run_folder.path / PROFILE_FOLDER, price=file.prices.machine)


def served_filters(file: TaskFile, detector: OodGate | None) -> dict[str, Any]:
    """Return what requests pass before the cascade; random splits are left out, which leave requests like all."""
    fixed = [policy.model_dump(mode="json") for policy in file.routing.policies if policy.kind != "split"]
    return {"domain check": detector is not None, "policies": fixed}


def check_filters(certificate: Certificate, file: TaskFile, detector: OodGate | None) -> None:
    """Raise StageMissing if requests are served through other filters than those of an issued certificate."""
    served, held = served_filters(file, detector), certificate.filters
    if other := [name for name in held if certificate.issued and served[name] != held[name]]:
        raise StageMissing(
            f"{file.name}: its certificate holds behind the {other[0]} of its calibration, and another would be served",
            hint="smallfirst calibrate task.yaml, or restore routing.domain, routing.policies and the run's files",
        )
