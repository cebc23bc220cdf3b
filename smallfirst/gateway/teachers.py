"""Terms of the large models whose answers small ones learn from, as the settings give them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from smallfirst.gateway.settings import FILE_NAME, GatewaySettings, Teacher, read_gateway_file
from smallfirst.traffic import task_source


def teacher_of(teachers: Mapping[str, Teacher], model: str, *asked_as: str) -> task_source.Teacher:
    """Return the record of a teacher with its terms: those of its own name, or of a name that it was asked by.

    `gpt-4o` is also the name of its dated versions (`gpt-4o-2024-08-06`), unless these have terms of their own.
    """
    names = [name for name in (model, *asked_as) if name in teachers]
    names += sorted((name for name in teachers if model.startswith(f"{name}-")), key=len, reverse=True)
    if not names:
        return task_source.Teacher(model=model)
    terms = teachers[names[0]]
    return task_source.Teacher(model=model, licence=terms.licence, training_allowed=terms.training_allowed is not False)


def settings_near(folder: Path) -> GatewaySettings | None:
    """Return the settings of the gateway.yaml in the folder or the nearest one above; None without one."""
    here = folder.absolute()
    file = next((place / FILE_NAME for place in (here, *here.parents) if (place / FILE_NAME).is_file()), None)
    return read_gateway_file(file) if file else None


def with_terms_now(source: task_source.TaskSource, settings: GatewaySettings | None) -> task_source.TaskSource:
    """Return the source with the terms that the settings give now: they may have been written after `discover`."""
    if settings is None or not settings.teachers:
        return source
    named = teacher_of(settings.teachers, source.teacher.model, *source.models)
    known = named.licence or not named.training_allowed
    return source.model_copy(update={"teacher": named}) if known else source
