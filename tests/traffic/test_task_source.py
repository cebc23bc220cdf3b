"""The source of a task reads the case out of every wording of its prompt."""

from __future__ import annotations

from smallfirst.traffic.answer_format import AnswerFormat
from smallfirst.traffic.task_source import FILE_NAME, Slot, TaskSource, TaskTemplate, Teacher
from smallfirst.traffic.template import Template, TextPattern, TurnPattern
from smallfirst.traffic.wire.messages import Prompt, Turn


def wording(pieces, slots):
    template = Template(turns=(TurnPattern(role="user", text=TextPattern(pieces=pieces)),))
    return TaskTemplate(template=template, slots=slots)


def source():
    first = wording(("File: ", ""), (Slot(name="text"),))
    second = wording(
        ("On ", ", ", " wrote: ", ""), (Slot(name="date", use="ignored"), Slot(name="who"), Slot(name="text"))
    )
    return TaskSource(
        name="tickets", templates=(first, second), answer_format=AnswerFormat(kind="label"), teacher=Teacher(model="m")
    )


def asked(text):
    return Prompt("m", (Turn("user", text),))


def test_every_wording_gives_its_case():
    first, second = source().templates
    assert first.text(asked("File: lost")) == "lost"
    assert second.text(asked("On Monday, Ann wrote: lost")) == "who: Ann\ntext: lost"
    assert (first.text(asked("Write a poem")), second.text(asked("File: lost"))) == (None, None)


def test_it_is_found_in_its_folder(tmp_path):
    assert TaskSource.of(tmp_path) is None
    source().save(tmp_path / FILE_NAME)
    assert TaskSource.of(tmp_path) == source()
