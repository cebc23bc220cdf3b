"""Versions of a wording."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from smallfirst.traffic.templates.template import Template, TextPattern, TurnPattern
from smallfirst.traffic.templates.versions import versions

TIMES = [datetime(2026, 10, 1, tzinfo=UTC) + timedelta(hours=i) for i in range(100)]


def found(before, values):
    text = TextPattern(pieces=(before, " now.\nMessage: ", ""))
    template = Template(turns=(TurnPattern(role="user", text=text),))
    return versions(template, [(value, f"case {i}") for i, value in enumerate(values)], TIMES, 10)


def test_words_that_replace_each_other_in_time_are_versions():
    assert found("Mode: ", ["old"] * 40 + ["new"] * 60) == [list(range(40)), list(range(40, 100))]


def test_a_field_with_few_values_is_none():
    assert found("Tier: ", ["gold", "basic"] * 50) == []
    assert found("Tier: ", [f"{i}" for i in range(100)]) == []
    assert found("Tier: ", ["gold"] * 98 + ["basic"] * 2) == []
    assert found("Day: ", ["2026-10-01"] * 50 + ["2026-10-02"] * 50) == []


def test_a_version_that_begins_just_before_the_log_ends_is_one():
    assert [len(group) for group in found("Mode: ", ["old"] * 97 + ["new"] * 3)] == [97, 3]


def test_words_within_a_sentence_are():
    assert len(found("Please answer ", ["briefly", "shortly"] * 50)) == 2


def test_frames_around_the_case_are():
    text = TextPattern(pieces=("File what follows.\n\n", ""))
    template = Template(turns=(TurnPattern(role="user", text=text),))
    cases = [f"<mail>\ncase {i}\n</mail>" if i % 2 else f"Mail: case {i}\nLabel:" for i in range(100)]
    assert sorted(versions(template, [(case,) for case in cases], TIMES, 10)) == [
        list(range(0, 100, 2)),
        list(range(1, 100, 2)),
    ]
    mails = [f"{'Subject' if i % 2 else 'From'}: case {i}" for i in range(100)]
    assert versions(template, [(mail,) for mail in mails], TIMES, 10) == []
