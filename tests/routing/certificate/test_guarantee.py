"""The guarantee: which limits are allowed, and how it is described."""

from __future__ import annotations

import pydantic
import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
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
    assert Guarantee(per_group="label").in_words == "at most 5 % of kept answers wrong of each guaranteed label (95 %)"


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"max_error": None}, "a guarantee needs a limit"),
        ({"max_accuracy_loss": 0.01, "per_group": "label"}, "allows no other limit"),
        ({"max_wrong_fields": 0.1, "per_group": "channel"}, "per_group applies max_error to each channel"),
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
    for values in ({"max_error": None, "max_accuracy_loss": 0.1}, {"per_group": "label"}):
        with pytest.raises(pydantic.ValidationError, match="max_foreign_share widens max_error"):
            Guarantee(max_foreign_share=0.1, **values)


def test_a_limit_on_fields_is_stored_and_shares_the_level() -> None:
    used = Guarantee(max_wrong_fields=0.02)
    assert used.model_dump()["max_wrong_fields"] == 0.02
    assert used.n_limits == 2
    assert Guarantee(max_error=None, max_wrong_fields=0.1).n_limits == 1
    assert Guarantee(max_accuracy_loss=0.1, max_wrong_fields=0.1).n_limits == 3
