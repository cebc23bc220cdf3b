"""The languages of a task's requests: those that task.yaml states, or those that its rows are told to hold."""

from __future__ import annotations

from smallfirst.models.catalog import languages_read
from smallfirst.path.project.candidate_registry import CandidateDescription
from smallfirst.path.project.project import Project
from smallfirst.routing.certificate.certificate import Guarantee
from smallfirst.routing.languages import LANGUAGE, can_detect, languages_of


def task_languages(project: Project) -> tuple[str, ...]:
    """Return the languages, the most frequent first; none where they are not stated and cannot be told.

    No test row is read. Raise MissingExtra if task.yaml asks for them and the extra is missing.
    """
    guarantee = project.file.routing.guarantee
    if guarantee.languages is not None:
        return guarantee.languages
    return _languages_of_rows(project) if can_detect() or _asked_for(project) else ()


def unread_languages(project: Project, candidate: CandidateDescription) -> tuple[str, ...]:
    """Return the stated languages that no rows hold and the candidate's model does not read by the catalogue.

    Words read those of the rows alone; a model that is not in the catalogue is taken to read all.
    """
    small, stated = project.file.small, project.file.routing.guarantee.languages or ()
    model = candidate.encoder_name(small) or (small.base if candidate.is_language_model else "")
    read = languages_read(model) if model else ()
    unread = () if read is None else tuple(one for one in stated if one not in read)
    held = _languages_of_rows(project) if unread else ()
    return tuple(one for one in unread if one not in held)


def _languages_of_rows(project: Project) -> tuple[str, ...]:
    rows = project.rows
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
