"""Records: frozen, unknown keys refused with a suggestion, JSON both ways, equal content equal fingerprint."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import pydantic
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import Record, fingerprint, parse_json_lines, parse_record


class Engine(Record):
    """What drives it."""

    horse_power: int = pydantic.Field(default=1, ge=1)
    """More is faster."""


class Wheel(Record):
    """One of several."""

    diameter_mm: int
    """Outside."""


class Car(Record):
    """A record with records inside it, in every way that settings use."""

    name: str
    """What it is called."""
    engine: Engine = Engine()
    """One record."""
    spare: Wheel | None = None
    """Perhaps a record."""
    wheels: tuple[Wheel, ...] = ()
    """Several records."""
    named: dict[str, Wheel] = {}
    """Records by name."""


class Sorted(Record):
    """A record that remembers what it found."""

    numbers: tuple[int, ...]
    """In any order."""

    @cached_property
    def least(self) -> int:
        return min(self.numbers)


class Pair(Record):
    """Two numbers with a rule between them."""

    low: int
    """Not above `high`."""
    high: int
    """Not below `low`."""

    @pydantic.model_validator(mode="after")
    def _in_order(self) -> Pair:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nme": "a"}, 'where:\n  name: missing\n  nme: unknown setting — did you mean "name"?'),
        (
            {"name": "a", "engine": {"horsepower": 3}},
            'where:\n  engine.horsepower: unknown setting — did you mean "horse_power"?',
        ),
        (
            {"name": "a", "wheels": [{"diameter_mm": 1}, {"diameter_mm": 1, "diametre_mm": 3}]},
            'where:\n  wheels.1.diametre_mm: unknown setting — did you mean "diameter_mm"?',
        ),
        (
            {"name": "a", "named": {"front": {"diameter_mm": 1, "diameter_cm": 3}}},
            'where:\n  named.front.diameter_cm: unknown setting — did you mean "diameter_mm"?',
        ),
        (
            {"name": "a", "engine": {"horse_power": 0}},
            "where:\n  engine.horse_power: Input should be greater than or equal to 1 (got 0)",
        ),
    ],
)
def test_wrong_settings_are_all_named_with_a_suggestion(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_record(Car, values, where="where")
    assert sorted(str(caught.value).splitlines()) == sorted(message.splitlines())


def test_a_broken_rule_between_fields_is_said_in_its_own_words() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_record(Pair, {"low": 3, "high": 2}, where="where")
    assert str(caught.value) == "where:\n  low is above high"


def test_what_was_saved_is_loaded_as_an_equal_record(tmp_path: Path) -> None:
    car = Car(name="ä", spare=Wheel(diameter_mm=5), wheels=(Wheel(diameter_mm=6),), named={"x": Wheel(diameter_mm=7)})
    path = car.save(tmp_path / "new" / "folder" / "car.json")
    assert Car.load(path) == car
    assert Car.load(path).fingerprint() == car.fingerprint()


def test_a_file_that_is_no_json_or_no_such_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "car.json"
    path.write_text('{"name": "a", ')
    with pytest.raises(ConfigError, match=re.escape(f"{path}: not readable as JSON: ")):
        Car.load(path)
    path.write_text('{"name": "a", "engin": {}}')
    with pytest.raises(ConfigError) as caught:
        Car.load(path)
    assert str(caught.value) == (
        f'{path}:\n  engin: unknown setting — did you mean "engine"?\n'
        "  next: another version of smallfirst may have written it:  smallfirst run TASK  makes it anew"
    )


def test_equal_content_has_an_equal_fingerprint_and_any_change_another() -> None:
    car = Car(name="a", wheels=(Wheel(diameter_mm=6),))
    assert re.fullmatch("[0-9a-f]{16}", car.fingerprint())
    assert car.fingerprint() == Car(wheels=(Wheel(diameter_mm=6),), name="a").fingerprint()
    others = [Car(name="b"), Car(name="a"), Car(name="a", wheels=(Wheel(diameter_mm=7),))]
    assert len({car.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_a_fingerprint_is_the_same_in_every_release() -> None:
    # printf '{"a":"é","b":[1,2]}' | sha256sum
    assert fingerprint({"b": [1, 2], "a": "é"}) == "9cfb1f938a87f2b8"


def test_json_lines_give_records_and_a_problem_for_each_bad_line() -> None:
    text = '{"name": "a\u2028b"}\n\n[1]\n{oops\n{"nam": "b"}\n'
    records, problems = parse_json_lines(Car, text, "cars.jsonl")
    assert records == [(1, Car(name="a\u2028b"))]
    assert [(p.path, p.line) for p in problems] == [("cars.jsonl", line) for line in (3, 4, 5)]
    assert problems[0].rule == "not readable as JSON: not an object"
    assert 'nam: unknown setting — did you mean "name"?' in problems[2].rule


def test_a_changed_copy_remembers_nothing_that_was_found_before() -> None:
    first = Sorted(numbers=(3, 2))
    assert first.least == 2
    assert (first.model_copy(update={"numbers": (5, 4)}).least, first.least) == (4, 2)
