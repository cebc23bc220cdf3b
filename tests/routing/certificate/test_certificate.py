"""The certificate as it is read: which guarantees are allowed, which answers are covered."""

import pytest
from fixtures.certificates import certificate

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import parse_record
from smallfirst.base.stats.intervals import wilson
from smallfirst.routing.certificate.certificate import GroupCertificate, Guarantee, calibrated_fields


@pytest.mark.parametrize(
    ("values", "words", "n_limits"),
    [
        ({}, "at most 5 % of kept answers wrong (95 %)", 1),
        (
            {"max_accuracy_loss": 0.01, "max_wrong_fields": 0.02, "confidence": 0.975},
            "at most 5 % of kept answers wrong, at most 1 point less accurate than the large model, at most 2 % of "
            "kept fields wrong (97.5 %)",
            3,
        ),
        ({"max_error": None, "max_wrong_fields": 0.1}, "at most 10 % of kept fields wrong (95 %)", 1),
        ({"unit": "text"}, "at most 5 % of kept answers wrong, each text counted once (95 %)", 1),
        ({"per_group": "channel"}, "at most 5 % of kept answers wrong of each guaranteed channel (95 %)", 1),
        ({"languages": ["en", "de"]}, "at most 5 % of kept answers wrong of each guaranteed language (95 %)", 1),
        (
            {"max_foreign_share": 0.5},
            "at most 5 % of kept answers wrong while at most 50 % of requests are foreign (95 %)",
            1,
        ),
    ],
)
def test_every_limit_is_described_and_shares_the_level(values: dict[str, object], words: str, n_limits: int) -> None:
    found = parse_record(Guarantee, values, where="task.yaml")
    assert (found.in_words, found.n_limits) == (words, n_limits)
    assert Guarantee.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"max_error": None}, "a guarantee needs a limit"),
        ({"max_accuracy_loss": 0.01, "per_group": "label"}, "allows no other limit"),
        ({"max_wrong_fields": 0.1, "per_group": "channel"}, "per_group applies max_error to each channel"),
        (
            {"languages": ["en"], "per_group": "label"},
            "languages are the groups of per_group: language, and it is label",
        ),
        ({"languages": ["english"]}, "languages"),
        ({"max_foreign_share": 0.1, "per_group": "label"}, "max_foreign_share widens max_error"),
        ({"max_foreign_share": 0.1, "max_error": None, "max_accuracy_loss": 0.1}, "max_foreign_share widens max_error"),
    ],
)
def test_an_impossible_guarantee_is_refused(values: dict[str, object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        parse_record(Guarantee, values, where="task.yaml")


def test_an_issued_certificate_covers_answers_from_its_threshold_on() -> None:
    one = certificate(0.8)
    assert [one.covers("a", said) for said in (0.8, 0.79, None)] == [True, False, False]
    assert one.covers("a", 0.5, threshold=0.5)
    assert one.coverage == wilson(60, 100)
    assert not certificate(0.8, issued=False).covers("a", 1.0)


def test_by_group_only_what_is_shown_is_covered() -> None:
    def group(label: str, threshold: float) -> GroupCertificate:
        counts = {"n_accepted": 9, "n_errors": 0, "error_bound": 0.0, "labels_missing": 0}
        return GroupCertificate(label=label, threshold=threshold, **counts)

    groups = (group("card", 0.6), group("loan", 1.01))
    by_label = certificate(0.6, groups=groups, guarantee=Guarantee(per_group="label"))
    assert [by_label.covers(label, 0.99) for label in ("card", "loan", "never seen")] == [True, False, False]
    assert not by_label.covers("card", 0.59)
    by_tag = certificate(0.6, groups=groups, guarantee=Guarantee(per_group="channel"))
    assert by_tag.covers("x", 0.7, tags={"channel": "card"})
    assert not by_tag.covers("card", 0.7)


def test_paths_lead_to_their_field_at_the_top_level() -> None:
    said = {"items[].price": 0.5, "items[].name": 0.5, "a.b": 0.9, '"x.y".z': 0.8}
    assert calibrated_fields(said, {}) == {"items": 0.25, "a": 0.9, "x.y": 0.8}
