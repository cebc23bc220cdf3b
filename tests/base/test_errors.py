"""Errors name the place, the rule and the next command, and say how a program should end."""

import pytest

from smallfirst.base.errors import (
    ConfigError,
    DataError,
    GateFailed,
    Problem,
    RateLimited,
    SmallfirstError,
    Unavailable,
    did_you_mean,
    without_secrets,
)


def kinds(kind: type[SmallfirstError] = SmallfirstError) -> list[type[SmallfirstError]]:
    """The errors of the tree; those that an interface adds under another product's names are its own affair."""
    below = [k for k in kind.__subclasses__() if k.__module__ == SmallfirstError.__module__]
    return [kind, *(found for k in below for found in kinds(k))]


def test_the_next_command_is_printed_on_a_line_of_its_own() -> None:
    error = SmallfirstError("no such run", hint="smallfirst train task.yaml")
    assert str(error) == "no such run\n  next: smallfirst train task.yaml"
    assert error.args == ("no such run",)


def test_a_data_error_shows_twenty_problems_and_counts_the_rest() -> None:
    problems = [Problem("rows.jsonl", line, f"rule {line}") for line in range(1, 24)]
    error = DataError("rows.jsonl: 23 bad rows", problems, hint="mend them")
    lines = str(error).splitlines()
    assert lines[0] == "rows.jsonl: 23 bad rows"
    assert lines[1] == "  rows.jsonl:1  rule 1"
    assert lines[20] == "  rows.jsonl:20  rule 20"
    assert lines[21:] == ["  … and 3 more", "  next: mend them"]
    assert error.problems == tuple(problems)


def test_equal_problems_are_one_line_with_their_count_and_first_place() -> None:
    problems = [Problem("rows.jsonl", line, "bad") for line in range(3, 153)]
    error = DataError("150 bad rows", problems)
    assert str(error) == "150 bad rows\n  150 rows, first rows.jsonl:3  bad"


def test_exit_codes_tell_a_script_what_happened() -> None:
    codes = {kind: kind.exit_code for kind in kinds()}
    assert {kind for kind, code in codes.items() if code == 2} == {ConfigError}
    assert {kind for kind, code in codes.items() if code == 3} == {GateFailed}
    assert set(codes.values()) == {1, 2, 3}


def test_only_a_busy_or_absent_endpoint_is_worth_asking_again() -> None:
    assert {kind for kind in kinds() if kind.retryable} == {RateLimited, Unavailable}


def test_the_nearest_known_word_is_suggested() -> None:
    assert did_you_mean("promis", ["promise", "small"]) == ' — did you mean "promise"?'
    assert did_you_mean("zzz", ["promise", "small"]) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:pass@host:5000/a refused", "http://***@host:5000/a refused"),
        ("https://token@host/a", "https://***@host/a"),
        ("postgresql://ada:p@ss/w0rd@host/db", "postgresql://***@host/db"),
        ("with url: /mlflow?x=1&access_token=abc&y=2", "with url: /mlflow?x=1&access_token=***&y=2"),
        ("models:/main.a.b@champion at http://host:1/v1", "models:/main.a.b@champion at http://host:1/v1"),
    ],
)
def test_an_error_leaves_out_the_secrets_of_addresses(text: str, shown: str) -> None:
    assert without_secrets(text) == SmallfirstError(text).args[0] == shown


@pytest.mark.parametrize("hostile", ["://:", "?", "?key", "://", "&token"])
def test_hostile_texts_are_looked_through(hostile: str) -> None:
    assert without_secrets(hostile * 25_000)  # what grows with the square would take minutes
