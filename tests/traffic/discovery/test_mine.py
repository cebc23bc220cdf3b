"""Templates found in mixed traffic."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from fixtures.traffic import template

from smallfirst.traffic.discovery.mine import Miner, versions, with_dates_open
from smallfirst.traffic.exchange import Exchange
from smallfirst.traffic.wire import read_prompt

START = datetime(2026, 10, 1, tzinfo=UTC)
RNG = random.Random(0)
WORDS = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
SORT = "You sort messages of a bank's customers. Answer with card, transfer or other."
CHAT = "You are Ada, the friendly assistant of a shop for garden tools in the north."


def case(n=10):
    return " ".join(RNG.choices(WORDS, k=n))


def exchange(i, *turns, **more):
    messages = [{"role": role, "content": text} for role, text in turns]
    return Exchange(id=f"r{i}", at=START + timedelta(minutes=i), request={"messages": messages, **more}, response={})


def mine(log):
    miner = Miner()
    for one in log:
        miner.add(one.id, one.at, read_prompt(one.route, one.request))
    return miner.templates()


def test_what_programs_wrote_is_found_among_what_people_wrote():
    log, cases = [], {}
    for i in range(0, 320, 4):
        cases[f"r{i}"], cases[f"r{i + 1}"] = case(), case()
        log.append(exchange(i, ("system", SORT), ("user", cases[f"r{i}"])))
        user = (
            f"Is this mail urgent? Say yes or no.\n\nTier: {RNG.choice(['gold', 'basic'])}\nMail:\n{cases[f'r{i + 1}']}"
        )
        log.append(exchange(i + 1, ("user", user)))
        log.append(exchange(i + 2, ("user", case(30))))
        talk = (("system", CHAT), ("user", case()))
        log.append(exchange(i + 3, *talk))
        log.append(exchange(i + 3.5, *talk, ("assistant", case(20)), ("user", case())))
    found = mine(log)
    assert sorted((len(members), shared.n_slots) for shared, members in found.items()) == [(80, 1), (80, 2)]
    by_id = {one.id: read_prompt(one.route, one.request) for one in log}
    for shared, members in found.items():
        assert [shared.values(by_id[member])[-1] for member in members] == [cases[member] for member in members]


def test_tools_and_forms_of_answers_make_another_template():
    tools = [{"type": "function", "function": {"name": "file"}}]
    log = [exchange(i, ("system", SORT), ("user", case()), **({"tools": tools} if i % 2 else {})) for i in range(60)]
    assert sorted((len(members), bool(shared.tools)) for shared, members in mine(log).items()) == [
        (30, False),
        (30, True),
    ]


def test_one_request_sent_again_and_again_is_no_task():
    assert mine([exchange(i, ("system", SORT), ("user", "ping")) for i in range(50)]) == {}


def test_a_template_that_begins_late_is_found_in_a_long_log(monkeypatch):
    monkeypatch.setattr("smallfirst.traffic.discovery.mine._POOL", 100)
    miner = Miner()
    for i in range(600):
        asked = exchange(i, ("system", SORT + " Be brief." * (i > 400)), ("user", case()))
        miner.add(asked.id, asked.at, read_prompt(asked.route, asked.request))
        assert len(miner._pool) < 100
    assert [len(members) for members in miner.templates().values()] == [401, 199]


def test_what_continues_an_earlier_request_is_a_conversation():
    log = []
    for i in range(0, 80, 2):
        asked = (("system", SORT), ("user", f"Ticket {i}: {case()}"))
        log.append(exchange(i, *asked))
        log.append(exchange(i + 1, *asked, ("assistant", "Happy to help. What else?"), ("user", f"Also: {case()}")))
    assert [(len(members), len(shared.turns)) for shared, members in mine(log).items()] == [(40, 2)]


def test_solved_examples_in_messages_are_no_conversation():
    shots = (("system", SORT), ("user", "card lost"), ("assistant", "cards"))
    found = mine([exchange(i, *shots, ("user", case())) for i in range(40)])
    assert [(len(members), len(shared.turns)) for shared, members in found.items()] == [(40, 4)]


def test_few_cases_asked_often_are_a_task():
    cases = [case() for _ in range(8)]
    found = mine([exchange(i, ("system", SORT), ("user", RNG.choice(cases))) for i in range(60)])
    assert [len(members) for members in found.values()] == [60]


def test_long_documents_are_kept_within_bounds(monkeypatch):
    monkeypatch.setattr("smallfirst.traffic.discovery.mine._POOL_CHARACTERS", 200_000)
    monkeypatch.setattr("smallfirst.traffic.discovery.mine._SAMPLE_CHARACTERS", 100_000)
    miner = Miner()
    for i in range(120):
        asked = exchange(i, ("user", f"{SORT}\n\nContract:\n{case(600)}" if i % 2 else case(600)))
        miner.add(asked.id, asked.at, read_prompt(asked.route, asked.request))
        assert sum(len(one.prompt.turns[0].text) for one in miner._pool) < 210_000
    assert [len(members) for members in miner.templates().values()] == [60]


def test_images_and_agents_are_passed_over():
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    log = [exchange(i, ("system", SORT), ("user", [{"type": "text", "text": case()}, picture])) for i in range(30)]
    log += [exchange(i, ("system", SORT), ("user", case()), ("tool", case())) for i in range(30)]
    assert mine(log) == {}


def test_a_short_instruction_is_one_and_a_stock_system_prompt_none():
    log = [exchange(i, ("user", f"Summarize in one sentence: {case(30)}")) for i in range(40)]
    log += [exchange(i, ("system", "You are a helpful assistant."), ("user", case())) for i in range(40, 80)]
    assert [len(members) for members in mine(log).values()] == [40]


TIMES = [datetime(2026, 10, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(100)]


def found(before, values):
    return versions(
        template(("user", before, " now.\nMessage: ", "")),
        [(value, f"case {i}") for i, value in enumerate(values)],
        TIMES,
        10,
    )


@pytest.mark.parametrize(
    ("before", "values", "sizes"),
    [
        ("Mode: ", ["old"] * 40 + ["new"] * 60, [40, 60]),  # they replace each other in time
        ("Mode: ", ["old"] * 97 + ["new"] * 3, [97, 3]),  # also just before the log ends
        ("Please answer ", ["briefly", "shortly"] * 50, [50, 50]),  # words within a sentence
        ("Tier: ", ["gold", "basic"] * 50, []),
        ("Tier: ", [f"{i}" for i in range(100)], []),
        ("Tier: ", ["gold"] * 98 + ["basic"] * 2, []),
        ("Day: ", ["2026-10-01"] * 50 + ["2026-10-02"] * 50, []),
    ],
)
def test_versions_are_words_of_the_prompt_and_no_field_with_few_values(before, values, sizes):
    assert [len(group) for group in found(before, values)] == sizes


DAY = datetime(2026, 10, 5, 9, tzinfo=UTC)


@pytest.mark.parametrize("written", [
    "2026-10-05", "05.10.2026", "10/05/2026", "5 October 2026", "Monday, October 5, 2026", "Oct 5th 2026",
    "2026-10-05T08:12:00Z",
])  # fmt: skip
def test_the_day_of_the_requests_is_a_slot(written):
    opened = with_dates_open(template(("user", f"Today is {written}. Since 2019-01-31: ", "")), DAY, DAY)
    assert opened.turns[0].pieces == ("Today is ", ". Since 2019-01-31: ", "")


def test_other_text_is_no_date():
    one = template(("user", "On 5.10.1999, a Monday, by 2026-10: ", ""))
    assert with_dates_open(one, DAY, DAY) == one
