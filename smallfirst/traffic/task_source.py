"""Where a task was found: templates of its prompts, slots that make its text, the format of its answers, its teacher.

`discover` writes it as `source.json` beside the task's `task.yaml`; `learn` and `take-over` read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from smallfirst.records import Record
from smallfirst.traffic.answer_format import AnswerFormat, FormatCheck
from smallfirst.traffic.template import Template
from smallfirst.traffic.wire.messages import Prompt

FILE_NAME = "source.json"


class Slot(Record):
    """A slot of a template."""

    name: str
    """Name of the field, such as text, ticket or date."""
    use: Literal["text", "ignored"] = "text"
    """ignored: it does not belong to the case, as a date or a request's number does not."""


class TaskTemplate(Record):
    """One wording of the task's prompt."""

    template: Template
    slots: tuple[Slot, ...]
    """One for each slot of the template, in order."""
    answer_format: AnswerFormat | None = None
    """Format of its answers, where it is not the task's."""

    def text(self, prompt: Prompt) -> str | None:
        """Return the case that a prompt asks about; None if it follows another template.

        Several slots are written one to a line, as `name: value`.
        """
        values = self.template.values(prompt)
        if values is None:
            return None
        used = [(slot.name, value) for slot, value in zip(self.slots, values, strict=True) if slot.use == "text"]
        if len(used) == 1:
            return used[0][1]
        return "\n".join(f"{name}: {value}" for name, value in used)


class Teacher(Record):
    """The model whose answers the task was learnt from."""

    model: str
    """As the responses name it."""
    licence: str = ""
    """Terms of its answers as the settings give them; empty where they say nothing."""
    training_allowed: bool = True
    """False: its terms forbid training on its answers, which are then used for measuring alone."""


class TaskSource(Record):
    """A recurring task in recorded traffic."""

    name: str
    templates: tuple[TaskTemplate, ...]
    """The wordings in use, newest last."""
    answer_format: AnswerFormat
    format_check: FormatCheck | None = None
    """How faithfully the format gives the recorded answers back; one that is not exact blocks the take-over."""
    models: tuple[str, ...] = ()
    """Models that the application asks for with these prompts."""
    teacher: Teacher
    foretold_share: tuple[float, float, float] | None = None
    """Share of its requests that can move: estimate, and the ends of its 95 % interval."""

    @classmethod
    def of(cls, folder: Path) -> TaskSource | None:
        """Return the source of the task in a folder; None if it was not found in traffic."""
        path = folder / FILE_NAME
        return cls.load(path) if path.exists() else None
