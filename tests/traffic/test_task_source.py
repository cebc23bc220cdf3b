"""Prompts give their values, answers come back in the same bytes, and takeovers.json changes one task at a time."""

import json

import pytest
from fixtures.takeover import source
from fixtures.traffic import template, template_of
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.traffic.task_source import (
    SOURCE_FILE,
    AnswerFormat,
    FormatCheck,
    JsonWriting,
    TakeOver,
    TakeOvers,
    TaskTemplate,
    TemplateSlot,
    values_between,
)
from smallfirst.traffic.wire import ModelAnswer, Prompt, ToolCall, Turn

PIECES = ("Ticket: ", "\nDate: ", "\nLabel:")


@given(st.tuples(st.text(), st.text()).filter(lambda v: "\nDate: " not in v[0]))
def test_what_is_filled_in_is_read_again(values):
    asked = f"Ticket: {values[0]}\nDate: {values[1]}\nLabel:"
    assert values_between(PIECES, asked) == values
    assert values_between(PIECES, f"A {asked}") is values_between(PIECES, "Ticket: lost\nLabel:") is None


def test_a_prompt_follows_in_all_of_its_messages_or_not_at_all():
    template = template_of("File it.")
    asked = Prompt("m", (Turn("system", "File it."), Turn("user", "lost")))
    assert template.values(asked) == ("lost",)
    assert template.values(asked._replace(turns=(*asked.turns, Turn("user", "more")))) is None
    assert template.values(asked._replace(tools="[]")) is None
    assert template.values(asked._replace(has_media=True)) is None
    assert template.values(asked._replace(turns=(Turn("system", "File it"), asked.turns[1]))) is None
    assert template.id != template.model_copy(update={"tools": "[]"}).id


def wording(pieces, *slots):
    return TaskTemplate(template=template(("user", *pieces)), slots=slots)


def test_every_wording_gives_its_case():
    first = wording(("File: ", ""), TemplateSlot(name="text"))
    date, who, text = TemplateSlot(name="date", use="ignored"), TemplateSlot(name="who"), TemplateSlot(name="text")
    second = wording(("On ", ", ", " wrote: ", ""), date, who, text)
    prompts = [Prompt("m", (Turn("user", one),)) for one in ("File: lost", "On Monday, Ann wrote: lost", "A poem")]
    assert [first.text(one) for one in prompts] == ["lost", None, None]
    assert [second.text(one) for one in prompts] == [None, "who: Ann\ntext: lost", None]


# The format of answers

FRAME = AnswerFormat(kind="label", prefix="Intent: ", suffix=".")
FENCED = AnswerFormat(kind="json", prefix="```json\n", suffix="\n```", writing=JsonWriting(decimals={"total": 2}))


@pytest.mark.parametrize(
    "answer",
    [
        ModelAnswer("card arrival."),
        ModelAnswer("Intent: card arrival"),
        ModelAnswer("Intent:."),
        ModelAnswer("Intent: card arrival.", finish_reason="length"),
        ModelAnswer("Intent: card arrival.", finish_reason="refusal"),
        ModelAnswer("Intent: card arrival.", (ToolCall("look_up", "{}"),), "tool_calls"),
    ],
)
def test_a_label_in_a_frame_comes_back_and_an_answer_of_another_form_has_no_value(answer: ModelAnswer) -> None:
    assert FRAME.parse(FRAME.render("card arrival")) == "card arrival"
    assert FRAME.parse(answer) is None
    assert not FRAME.reproduces(answer)


def test_json_in_a_fence_comes_back_with_its_decimals() -> None:
    answer = ModelAnswer('```json\n{"total": 644.90, "tax": null}\n```')
    assert FENCED.parse(answer) == {"total": 644.9, "tax": None}
    assert FENCED.reproduces(answer)
    assert FENCED.render('{"total": 3, "tax": 1}').text == '```json\n{"total": 3.00, "tax": 1}\n```'
    assert FENCED.parse(ModelAnswer("```json\n12\n```")) is None
    assert FENCED.parse(ModelAnswer('```json\n{"total": \n```')) is None
    assert not FENCED.reproduces(ModelAnswer('```json\n{"total": 644.9, "tax": null}\n```'))


def test_a_tool_call_holds_the_value_in_its_arguments() -> None:
    call = AnswerFormat(kind="label", prefix='{"queue":"', suffix='"}', tool="route_ticket")
    answer = ModelAnswer("", (ToolCall("route_ticket", '{"queue":"billing"}'),), "tool_calls")
    assert call.parse(answer) == "billing"
    assert call.render("billing") == answer
    other = ToolCall("close_ticket", '{"queue":"billing"}')
    assert call.parse(ModelAnswer("", (other,), "tool_calls")) is None
    assert call.parse(ModelAnswer("", (*answer.tool_calls, other), "tool_calls")) is None


@given(
    st.dictionaries(
        st.text(max_size=4), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(max_size=3))
    )
)
def test_any_object_that_python_writes_comes_back(value):
    assert JsonWriting(ascii_only=True).write(value) == json.dumps(value)


# What is taken over


def test_a_change_leaves_the_other_tasks_as_they_are_and_unknown_ones_are_named(tmp_path):
    file = TakeOvers(tmp_path / "state" / "takeovers.json")
    assert file.read() == {}
    assert file.stamp == 0
    first = file.put(TakeOver(task="tickets", folder=tmp_path, version=1))
    file.put(TakeOver(task="intents", folder=tmp_path, version=2))
    live = file.put(first.moved("live", cause="person", why="taken over", share=0.3))
    assert file.get("tickets") == live
    assert live.live_share == 0.3
    assert live.moved("stepped back", cause="model", why="another model").live_share == 0
    assert file.get("intents").state == "shadow"
    assert file.stamp > 0
    with pytest.raises(ConfigError, match=r"ticket was not learnt.*tickets"):
        file.get("ticket")


def test_a_second_tenant_ends_for_all_what_the_first_ends_for_itself(tmp_path):
    file = TakeOvers(tmp_path / "takeovers.json")
    live = TakeOver(task="tickets", folder=tmp_path).moved("live", cause="person", why="taken over", share=1.0)
    assert live.stepped_back("ada", "prompt", "A", one_tenant=True).why == "A"
    file.put(live)
    for _ in range(2):
        file.update("tickets", lambda known: known.stepped_back("ada", "prompt", "A", one_tenant=False))
    alone = file.get("tickets")
    assert (alone.live_share, alone.changed_at) == (1.0, live.changed_at)
    assert (alone.tenant_back.tenant, alone.tenant_back.cause, alone.tenant_back.why) == ("ada", "prompt", "A")
    paused = alone.moved("stepped back", cause="guarantee", why="audits").moved("live", cause="guarantee", why="audits")
    assert paused.tenant_back == alone.tenant_back
    assert alone.moved("live", cause="person", why="again").tenant_back is None
    both = alone.stepped_back("bob", "model", "B", one_tenant=False)
    assert (both.state, both.cause, both.why) == ("stepped back", "model", "B; tenant ada had stepped back: A")
    assert both.stepped_back("eve", "model", "C", one_tenant=False) == both


def test_a_format_that_does_not_come_back_blocks_the_take_over_with_the_example(tmp_path):
    taken = TakeOver(task="queues", folder=tmp_path)
    taken.check_format()  # nothing is known against it
    source().save(tmp_path / SOURCE_FILE)
    taken.check_format()
    check = FormatCheck(n_answers=50, n_read=50, n_exact=48, recorded='{"sum": 644.90}', rendered='{"sum": 644.9}')
    source().model_copy(update={"format_check": check}).save(tmp_path / SOURCE_FILE)
    with pytest.raises(ConfigError, match=r"(?s)2 of 50 recorded answers.*644\.90.*644\.9") as refused:
        taken.check_format()
    assert "--accept-format" in str(refused.value)
