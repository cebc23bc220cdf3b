"""OpenAI's typed questions: strict requests, inputs as text, answers in order, each question a prompt of its own."""

from datetime import UTC, datetime

import pytest

from smallfirst.models.pricing import TokenUsage, read_usage
from smallfirst.traffic.discovery.tasks import one_question_each
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.questions import (
    QuestionAnswer,
    confidence_of,
    label_of,
    read_decision,
    read_label,
    read_response,
    write_response,
)
from smallfirst.traffic.wire import ModelAnswer, Turn, read_answer, read_prompt

DECISIONS = "/v1/decisions"
USAGE = TokenUsage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
QUESTIONS = [
    {"type": "predicate", "instructions": "It is urgent.", "name": "urgent"},
    {"type": "choice", "instructions": "Paid?", "choices": [{"value": True}, {"value": "true"}, {"value": "open"}]},
    {"type": "score", "instructions": "Anger?", "levels": [{"label": "calm"}, {"label": "angry"}]},
]
CHOICES = [{"value": value, "probability": p} for value, p in (("true", 0.6), (True, 0.3), ("open", 0.1))]
LEVELS = [{"value": i, "label": label, "probability": p} for i, label, p in ((0, "calm", 0.75), (1, "angry", 0.25))]
ANSWERS = [
    {"type": "predicate", "name": "urgent", "probability": 0.9},
    {"type": "choice", "name": None, "choice": "true", "confidence": 0.4, "probabilities": CHOICES},
    {"type": "score", "name": None, "score": 0.25, "confidence": 0.5, "probabilities": LEVELS},
]


def request(state="s", questions=QUESTIONS):
    return read_decision({"model": "m", "input": state, "questions": questions})


@pytest.mark.parametrize(
    ("given", "text", "has_media"),
    [
        ("My card", "My card", False),
        ([{"role": "user", "content": [{"type": "input_text", "text": t} for t in ("a", "b")]}], "a\nb", False),
        ([{"role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]}], '{"a": 1}', False),
        ([{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}], "", True),
        (
            [
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "x"},
            ],
            '[{"role": "assistant", "content": "No"}, {"role": "assistant", "call": "f", "content": "{}"}, '
            '{"role": "tool", "content": "x"}]',
            False,
        ),
    ],
)
def test_the_state_is_read_as_text(given, text, has_media):
    assert (request(given).text, request(given).has_media) == (text, has_media)


def test_answers_come_back_as_they_were_and_in_their_order():
    questions = request().questions
    verdicts = read_response({"answers": ANSWERS}, questions)
    assert [one.probabilities for one in verdicts] == [(0.9, pytest.approx(0.1)), (0.3, 0.6, 0.1), (0.75, 0.25)]
    assert write_response("m", questions, verdicts, USAGE)["answers"] == ANSWERS
    computed = [QuestionAnswer(one.probabilities) for one in verdicts]
    written = write_response("m", questions, computed, USAGE)
    assert [one.get("choice") for one in written["answers"]] == [None, "true", None]
    assert written["answers"][2] == ANSWERS[2]
    assert written["usage"]["total_tokens"] == 9
    assert written["usage"]["input_tokens_details"]["cached_tokens"] == 3
    assert read_usage(written).tokens == USAGE


def test_a_refusal_stays_one_and_a_broken_answer_is_named():
    questions = request().questions[:1]
    (refused,) = read_response({"answers": [{"type": "refusal", "name": "urgent"}]}, questions)
    assert write_response("m", questions, [refused], TokenUsage())["answers"] == [{"type": "refusal", "name": "urgent"}]
    for answers in ([], [{"type": "score"}], [{"type": "predicate"}], [None], None):
        with pytest.raises(ValueError, match=r"expected|without its probabilities"):
            read_response({"answers": answers}, questions)


PREDICATE = {"type": "predicate", "instructions": "It is urgent."}


def choice(*values):
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}


def score(n):
    return {"type": "score", "instructions": "How?", "levels": [{"label": str(i)} for i in range(n)]}


def body(**changed):
    return {"model": "gpt-6-luna", "input": "My card is lost", "questions": [PREDICATE], **changed}


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "12 EUR"}
CALL = {"type": "function_call", "call_id": "1", "name": "price", "arguments": "{}"}


@pytest.mark.parametrize(
    "given",
    [
        body(questions=[PREDICATE] * 400, prompt_cache_key="k", prompt_cache_options={"ttl": "30m"}),
        body(questions=[choice(*map(str, range(255))), choice("true", True, False), score(10)]),
        body(questions=[{**PREDICATE, "instructions": [{"type": "input_text", "text": "a"}, IMAGE], "name": "urgent"}]),
        body(input=[{"role": "system", "content": "s"}, {"role": "assistant", "content": "a", "phase": None}]),
        body(input=[CALL, OUTPUT, {"type": "message", "role": "user", "content": [IMAGE] * 128}]),
        body(input=[{**CALL, "type": "custom_tool_call", "arguments": None, "input": "x"}]),
    ],
)
def test_what_the_reference_allows_is_read(given):
    assert read_decision(given) is not None


@pytest.mark.parametrize("given", [
    body(model=""), body(input=[]), body(input=3), body(questions=[]), body(questions=[PREDICATE] * 401),
    body(questions=[{**PREDICATE, "name": "a"}] * 2), body(questions=[{**PREDICATE, "type": "noul"}]),
    body(questions=[{**PREDICATE, "criteria": {}}]), body(questions=[{"type": "predicate"}]),
    body(questions=[choice("a")]), body(questions=[choice("a", "a")]),
    body(questions=[choice(*map(str, range(256)))]), body(questions=[choice("a", 1)]), body(questions=[score(1)]),
    body(questions=[score(11)]), body(temperature=0), body(input=[{"role": "tool", "content": "x"}]),
    body(input=[{"role": "user", "content": [{"type": "input_video", "text": "x"}]}]),
])  # fmt: skip
def test_what_it_does_not_allow_is_left_to_the_upstream(given):
    assert read_decision(given) is None


# A question as a task


def exchange(route, request, response):
    at = datetime.now(UTC)
    return Exchange(id="e", at=at, route=route, request=request, response=response, prompt_tokens=31, cost_usd=0.3)


def test_each_question_reads_as_a_prompt_and_its_answer_as_a_label():
    asked = {"model": "m", "input": "My card is lost", "questions": QUESTIONS}
    parts = list(one_question_each([exchange(DECISIONS, asked, {"answers": ANSWERS})]))
    assert [(one.id, one.prompt_tokens) for one in parts] == [("e#0", 10), ("e#1", 10), ("e#2", 10)]
    assert sum(one.cost_usd for one in parts) == pytest.approx(0.3)
    prompts = [read_prompt(DECISIONS, one.request) for one in parts]
    assert [prompt.turns[1] for prompt in prompts] == [Turn("user", "My card is lost")] * 3
    assert [prompt.turns[0].text for prompt in prompts] == [
        "It is urgent.\nIs this true of the text? Answer true or false.",
        'Paid?\ntrue\n"true"\nopen\nAnswer with one of these.',
        "Anger?\ncalm\nangry\nAnswer with one of these, listed from the lowest to the highest.",
    ]
    assert len({prompt.response_format for prompt in prompts}) == 3
    labels = [read_answer(DECISIONS, one.response) for one in parts]
    assert labels == [ModelAnswer("true"), ModelAnswer('"true"'), ModelAnswer("calm")]


def test_what_is_no_decision_of_several_questions_passes_as_it_is():
    asked = {"model": "m", "input": "s", "questions": QUESTIONS}
    chat = exchange("/v1/chat/completions", {"messages": []}, {})
    failed = exchange(DECISIONS, asked, {"error": {"message": "overloaded"}})
    malformed = exchange(DECISIONS, {"model": "m"}, {"answers": ANSWERS})
    assert list(one_question_each([chat, failed, malformed])) == [chat, failed, malformed]
    assert read_prompt(DECISIONS, asked) is None
    assert read_prompt(DECISIONS, {"model": "m"}) is None
    assert read_answer(DECISIONS, {"answers": ANSWERS}) is None


def test_refusals_and_broken_answers_give_no_label():
    assert read_answer(DECISIONS, {"answers": [{"type": "refusal"}]}) == ModelAnswer("", (), "refusal")
    for answers in ([{"type": "score", "probabilities": []}], [{"type": "choice"}], [{}], ["x"], None, 3):
        assert read_label({"answers": answers}) is None


def test_another_wording_or_another_option_is_another_question_and_its_name_is_no_part_of_it():
    topic = {**choice("card", "fee"), "name": "topic"}
    others = [{**topic, "name": None, "instructions": "Which ?"}, choice("card", "fees"), score(2)]
    asked = [topic, choice("card", "fee"), *others]
    first, same, *rest = read_decision(body(questions=asked)).questions
    assert first.text == same.text
    assert first.text not in {other.text for other in rest}


def test_labels_tell_a_boolean_from_a_text_that_reads_so():
    assert [label_of(value) for value in (True, "true", False, "yes")] == ["true", '"true"', "false", "yes"]


def test_a_question_without_labels_of_its_own_or_with_images_is_no_task():
    same = {"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": "a"}]}
    image = {"type": "predicate", "instructions": [IMAGE]}
    assert [one.is_task for one in read_decision(body(questions=[same, choice("", "a"), image])).questions] == [
        False
    ] * 3
    assert read_prompt(DECISIONS, body(input=[{"role": "user", "content": [IMAGE]}])).has_media


@pytest.mark.parametrize(
    ("kind", "probabilities", "confidence"),
    [
        ("choice", [0.8, 0.1, 0.1], 0.7),  # (0.8 - 1/3) / (2/3)
        ("choice", [0.25] * 4, 0.0),
        ("choice", [0.9, 0.0], 1.0),  # shares of what was given
        ("score", [0.1, 0.1, 0.8], 0.55),  # 1 - (0.2 + 0.1) / (2/3)
        ("score", [0.5, 0.0, 0.5], 0.0),  # never below 0
    ],
)
def test_confidence_follows_its_definition(kind, probabilities, confidence):
    assert confidence_of(kind, probabilities) == pytest.approx(confidence)
