"""The guarantee: which limits are allowed, and how it is described."""

from __future__ import annotations

import pydantic
import pytest

from smallfirst.errors import ConfigError
from smallfirst.records import parse_record
from smallfirst.routing.certificate.guarantee import Guarantee


def test_the_default_guarantee_limits_errors_alone() -> None:
    assert Guarantee().limits == {"error": 0.05}
    assert Guarantee(max_error=0.075, confidence=0.975).in_words == "at most 7.5 % of kept answers wrong (97.5 %)"


def test_every_limit_is_described_in_its_own_unit() -> None:
    everything = Guarantee(max_accuracy_loss=0.01, max_wrong_fields=0.02)
    assert everything.in_words == (
        "at most 5 % of kept answers wrong, at most 1 point less accurate than the large model, at most 2 % of kept "
        "fields wrong (95 %)"
    )
    assert "2.5 points" in Guarantee(max_accuracy_loss=0.025).in_words
    assert Guarantee(unit="text").in_words == "at most 5 % of kept answers wrong, each text counted once (95 %)"
    assert Guarantee(per_group="channel").in_words.endswith("kept answers wrong of each guaranteed channel (95 %)")
    assert Guarantee(per_class=True).in_words == "at most 5 % of kept answers wrong of each guaranteed label (95 %)"


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"max_error": None}, "a guarantee needs a limit"),
        ({"max_error": None, "per_class": True}, "a guarantee needs a limit"),
        ({"max_accuracy_loss": 0.01, "per_class": True}, "allows no other limit"),
        ({"max_wrong_fields": 0.1, "per_group": "channel"}, "per_group applies max_error to each channel"),
        ({"per_class": True, "per_group": "channel"}, "keep one of them"),
        ({"max_accuracy_loss": 1.5}, "max_accuracy_loss: Input should be less than 1"),
        ({"max_eror": 0.1}, 'did you mean "max_error"'),
    ],
)
def test_an_impossible_guarantee_is_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse_record(Guarantee, values, where="task.yaml")


def test_a_share_of_foreign_requests_is_said_and_changes_nothing_where_it_is_not_asked() -> None:
    mixed = Guarantee(max_error=0.05, max_foreign_share=0.5)
    assert mixed.in_words == "at most 5 % of kept answers wrong while at most 50 % of requests are foreign (95 %)"
    assert mixed.model_dump()["max_foreign_share"] == 0.5
    assert Guarantee.model_validate(mixed.model_dump()) == mixed
    assert "max_foreign_share" not in Guarantee().model_dump(mode="json")  # earlier fingerprints stay
    for values in ({"max_error": None, "max_accuracy_loss": 0.1}, {"per_class": True}):
        with pytest.raises(pydantic.ValidationError, match="max_foreign_share widens max_error"):
            Guarantee(max_foreign_share=0.1, **values)


def test_later_settings_are_stored_only_where_they_are_used() -> None:
    assert not {"max_wrong_fields", "wrong_fields_allowed", "per_group"} & Guarantee().model_dump().keys()
    used = Guarantee(max_wrong_fields=0.02, wrong_fields_allowed=1)
    assert Guarantee.model_validate_json(used.model_dump_json()) == used
    assert "answers wrong, at most 2 % of kept fields wrong, an answer of up to 1 wrong fields" in used.in_words


def test_per_class_is_per_group_of_the_label() -> None:
    assert Guarantee(per_class=True).grouped_by == Guarantee(per_group="label").grouped_by == "label"


def test_the_limit_on_fields_takes_its_share_of_the_level() -> None:
    alone = Guarantee(max_error=None, max_wrong_fields=0.1)
    assert alone.split_level() == (alone, pytest.approx(0.05))
    rest, level = Guarantee(max_accuracy_loss=0.1, max_wrong_fields=0.1).split_level()
    assert (rest.confidence, level) == (pytest.approx(1 - 0.05 * 2 / 3), pytest.approx(0.05 / 3))
    assert rest.limits == {"error": 0.05, "accuracy_loss": 0.1}
    assert rest.max_wrong_fields is None
