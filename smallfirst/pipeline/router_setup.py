"""What a Router stands on: its drafting stages, the rules around them, and the reference that live traffic meets.

The same pieces are measured on test rows and served, so what is promised is what answers. Where a version is served its
number is in the models' names (`tickets-small@3`): every answer, and every row of the ledger, says which version gave
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smallfirst.evaluation.results import Evaluation
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Model
from smallfirst.pipeline.confidence_heads import DIFFICULTY
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.project.task_file import TaskFile
from smallfirst.records import Record
from smallfirst.registry import versions
from smallfirst.routing.difficulty import DifficultyModel
from smallfirst.routing.policies.policy import CHALLENGER
from smallfirst.routing.types import RouterOptions, Stage

REFERENCE = "reference.json"
"""What is kept beside the certificate."""


class TrafficReference(Record):
    """What the small model gave on the calibration rows: live traffic is compared with it."""

    confidence: tuple[float, ...] = ()
    """Its confidences, in [0, 1]."""
    doubt: tuple[float, ...] = ()
    """The domain check's doubts, in [0, 1]; empty without a domain check."""
    labels: tuple[str, ...] = ()
    """Its answers, where they are labels."""
    large_usd: float | None = None
    """Mean cost of an answer of the large model in USD; None if it was not measured."""


def save_reference(
    project: Project, promoted: tuple[str, int], small: Evaluation, doubts: Sequence[float], large: Evaluation | None
) -> TrafficReference:
    """The reference of the calibration rows, kept with the model's version (`promoted`: name and version)."""
    found = TrafficReference(
        confidence=tuple(row.confidence for row in small.rows if row.confidence is not None),
        doubt=tuple(doubts),
        labels=tuple(row.answer for row in small.rows if row.answer is not None) if project.task.closed else (),
        large_usd=large.cost_usd_per_1k / 1000 if large else None,
    )
    versions.attach(*promoted, REFERENCE, found.model_dump_json().encode())
    return found


def cascade_stages(project: Project, run_folder: RunFolder, last: Model) -> tuple[Stage, ...]:
    """The cascade's stages below the large model: the cheaper candidates ahead, then `last`, always called `small`."""
    return (*stages_ahead(project.file, run_folder), Stage("small", last))


def stages_ahead(file: TaskFile, run_folder: RunFolder, *, version: int | None = None) -> tuple[Stage, ...]:
    """The cheaper candidates of a run that draft first, in order; a version that is served marks their names."""
    price = file.prices.machine
    return tuple(
        Stage(
            name,
            load_model(run_folder.model_folder(name), name=versioned_name(f"{file.name}-{name}", version), price=price),
        )
        for name in file.routing.ahead
    )


def versioned_name(name: str, version: int | None) -> str:
    """The name of a model that is served: `tickets-small@3`."""
    return name if version is None else f"{name}@{version}"


def routing_rules(file: TaskFile, large_usd: float | None, folder: Path, beside: Sequence[Stage] = ()) -> RouterOptions:
    """Return the Router options of a task file; a learned difficulty is in the run's folder.

    Policies that lead to the challenger are left out where it is not among the stages `beside`.
    """
    routing = file.routing
    there = {CHALLENGER} & {stage.name for stage in beside}
    policies = [p for p in routing.policies if p.to != CHALLENGER or p.to in there]
    signed = f"{routing.override.by}: {routing.override.because}" if routing.override else ""
    expected = {} if large_usd is None else {"large": large_usd}
    hardness = DifficultyModel.load(folder / DIFFICULTY)
    return RouterOptions(policies, routing.budget, hardness, tuple(beside), signed, expected)


def routes_to_challenger(file: TaskFile) -> bool:
    """True if a policy sends requests to the challenger."""
    return any(policy.to == CHALLENGER for policy in file.routing.policies)


def challenger_stages(file: TaskFile, version: int | None = None) -> tuple[Stage, ...]:
    """A version as the challenger's stage beside the cascade, if a policy leads to it; else nothing.

    Without a number it is the one called @challenger. RegistryError: there is none.
    """
    if not routes_to_challenger(file):
        return ()
    found = versions.resolve(f"{file.register_to}@{CHALLENGER}" if version is None else f"{file.register_to}/{version}")
    name = versioned_name(f"{file.name}-{CHALLENGER}", found.version)
    return (Stage(CHALLENGER, load_model(found.folder, name=name, price=file.prices.machine)),)
