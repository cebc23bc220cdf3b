"""The languages of a task's requests: those that task.yaml states, or those that its rows are told to hold."""

from __future__ import annotations

from smallfirst.path.project.project import Project
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.languages import LANGUAGE, can_detect, languages_of


def task_languages(project: Project) -> tuple[str, ...]:
    """Return the languages, the most frequent first; none where they are not stated and cannot be told.

    No test row is read. Raise MissingExtra if task.yaml asks for them and the extra is missing.
    """
    guarantee, rows = project.file.routing.guarantee, project.rows
    if guarantee.languages is not None:
        return guarantee.languages
    if not can_detect() and not _asked_for(project):
        return ()
    parts = (rows.train, rows.selection, rows.calibration)
    return languages_of(tuple(example.text for part in parts for example in part.examples))


def with_languages(project: Project) -> Guarantee:
    """Return the guarantee of the file, by language if it asks for that or, left to the run, if there are several."""
    guarantee, routing = project.file.routing.guarantee, project.file.routing
    alone = guarantee.limits_errors_alone and not (guarantee.per_group or guarantee.max_foreign_share)
    alone = alone and not (routing.ahead or routing.second_look_after or project.file.may_have_no_answer)
    if not (_asked_for(project) or (guarantee.languages is None and alone)):
        return guarantee
    languages = task_languages(project)
    if len(languages) < 2 and not _asked_for(project):
        return guarantee
    return guarantee.model_copy(update={"per_group": LANGUAGE, "languages": languages})


def _asked_for(project: Project) -> bool:
    """Return True if task.yaml asks for a guarantee by language; a column of this name is a tag that requests send."""
    is_tag = LANGUAGE in project.file.data.columns.tags
    return project.file.routing.guarantee.per_group == LANGUAGE and not is_tag
