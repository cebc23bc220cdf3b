"""Durations and settings: what is accepted, what is refused, and in which words."""

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.training.config import Duration, TrainConfig, parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8ep", Duration(8, "ep")),
        ("300ba", Duration(300, "ba")),
        ("1_000_000tok", Duration(1_000_000, "tok")),
        (" 007ba ", Duration(7, "ba")),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, expected: Duration) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "8", "ep", "8 ep", "8epochs", "0ep", "0_0ba", "-1ep", "1.5ep", "1e3tok", "_8ep", "8_ep", "1__0ba", "٣ep"],
)
def test_anything_else_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration(text)
    assert str(caught.value) == (f'"{text}" is not a duration; write 8ep (epochs), 300ba (batches) or 1_000_000tok')


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"duration": "8_ep"}, 'duration: "8_ep" is not a duration; write 8ep'),
        ({"adapters": "kept"}, "adapters: kept needs a method that trains adapters; set method: lora"),
    ],
)
def test_a_wrong_setting_is_named_with_its_place(settings: dict[str, str], rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_record(TrainConfig, settings, where="task.yaml")
    assert str(caught.value).startswith("task.yaml:\n")
    assert rule in str(caught.value)
