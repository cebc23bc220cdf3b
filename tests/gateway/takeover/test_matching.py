"""A request finds its task by its wording; a changed wording is recognized by its words, an open request is not."""

from __future__ import annotations

from smallfirst.gateway.takeover.matching import TaskMatcher
from smallfirst.traffic.answers.answer_format import AnswerFormat
from smallfirst.traffic.messages import Prompt, Turn, read_prompt
from smallfirst.traffic.task_source import Slot, TaskSource, TaskTemplate, Teacher
from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern

SYSTEM = "You sort messages of a bank's customers. Answer with one of these intents: lost card, refund, pin."


def source(name: str, *turns: tuple[str, tuple[str, ...]], models: tuple[str, ...] = ()) -> TaskSource:
    patterns = tuple(TurnPattern(role=role, text=TextPattern(pieces=pieces)) for role, pieces in turns)
    wording = TaskTemplate(template=Template(turns=patterns), slots=(Slot(name="text"),))
    form, teacher = AnswerFormat(kind="label"), Teacher(model="gpt-large")
    return TaskSource(name=name, templates=(wording,), answer_format=form, models=models, teacher=teacher)


def prompt(*turns: tuple[str, str], model: str = "gpt", tools: str = "") -> Prompt:
    return Prompt(model, tuple(Turn(*turn) for turn in turns), tools=tools)


MATCHER = TaskMatcher(
    {
        "intents": source("intents", ("system", (SYSTEM,)), ("user", ("", "")), models=("gpt",)),
        "mood": source("mood", ("user", ("Is this message of a customer friendly or angry?\n", "\nAnswer:"))),
    }
)


def test_the_wording_decides_and_gives_the_case():
    asked = prompt(("system", SYSTEM), ("user", "my card is gone"))
    assert MATCHER.find(asked) == ("intents", "my card is gone", AnswerFormat(kind="label"))
    mood = prompt(("user", "Is this message of a customer friendly or angry?\nno way\nAnswer:"))
    assert MATCHER.find(mood) == ("mood", "no way", AnswerFormat(kind="label"))


def test_another_model_tools_or_a_longer_conversation_are_not_the_task():
    turns = (("system", SYSTEM), ("user", "my card is gone"))
    assert MATCHER.find(prompt(*turns, model="gpt-mini")) is None
    assert MATCHER.find(prompt(*turns, tools="[{}]")) is None
    assert MATCHER.find(prompt(*turns, ("assistant", "lost card"), ("user", "why?"))) is None


def test_a_changed_wording_resembles_its_task_and_an_open_request_none():
    changed = prompt(("system", SYSTEM.replace("pin", "pin, other") + " Think first."), ("user", "my card is gone"))
    assert MATCHER.find(changed) is None
    assert MATCHER.near(changed) == "intents"
    assert MATCHER.near(changed._replace(model="gpt-mini")) is None
    assert MATCHER.near(prompt(("user", "Write a poem about a customer of a bank"))) is None
    assert TaskMatcher({}).near(changed) is None


def test_a_typed_question_follows_its_own_wording_and_resembles_no_other():
    def asked(question: str) -> Prompt:
        questions = [{"type": "predicate", "instructions": question}]
        found = read_prompt("/v1/decisions", {"model": "gpt", "input": "My card", "questions": questions})
        assert found is not None
        return found

    first = asked("The customer writes about a card.")
    turns = (("system", (first.turns[0].text,)), ("user", ("", "")))
    learnt = source("card", *turns)
    template = learnt.templates[0].template.model_copy(update={"response_format": first.response_format})
    wording = learnt.templates[0].model_copy(update={"template": template})
    matcher = TaskMatcher({"card": learnt.model_copy(update={"templates": (wording,)})})
    assert matcher.find(first) == ("card", "My card", AnswerFormat(kind="label"))
    other = asked("The customer writes about a fee.")
    assert matcher.find(other) is None
    assert matcher.near(other) is None
    assert matcher.near(prompt(("user", first.turns[0].text + " Think first."))) is None


def test_only_a_prompt_that_begins_like_a_wording_is_redacted():
    assert MATCHER.may_find(prompt(("system", SYSTEM), ("user", "call 030 1234567")))
    assert not MATCHER.may_find(prompt(("user", SYSTEM)))
    assert not MATCHER.may_find(prompt(("system", "Another application."), ("user", "hello")))
    mailed = TaskMatcher({"mails": source("mails", ("user", ("Mail to [EMAIL], urgent or not?\n", "")))})
    assert mailed.may_find(prompt(("user", "Mail to ada@example.com, urgent or not?\nnow!")))
