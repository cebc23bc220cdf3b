"""The outcome's sentences follow from its figures, and at a server from the state of its monitor."""

from typing import Any

import pytest
from fixtures.gate import evaluation
from fixtures.one_story import disagreements, facts_in, facts_of

from smallfirst.base.stats.intervals import Estimate, upper_bound, wilson
from smallfirst.measuring.gate import Gate
from smallfirst.measuring.outcome import AuditedAccuracy, LabelsNeeded, Outcome

NEEDED = LabelsNeeded(n_data_rows=560, chance=0.75, files={"rows.jsonl": 560}, usd=28.0)
RIGHT = "on 83 % [77.2, 87.6] of 200 test rows"
PROMISE = "at most 10 % of kept answers wrong (95 %)"
PROMISED = f"Promise for 52 % [45.1, 58.8] of requests: {PROMISE}"


def outcome(**changes: Any) -> Outcome:
    """A candidate that answers all of 200 requests, 104 of them under a promise."""
    values: dict[str, Any] = {
        "kind": "small alone", "candidate": "tagger", "title": "tagger", "model": "main.default.desk", "version": 3,
        "alias": "champion", "gate": "passed", "share_small": wilson(200, 200), "share_promised": wilson(104, 200),
        "promise": PROMISE, "accuracy": wilson(166, 200),
        "share_of_bill": Estimate(value=0.02, low=0.018, high=0.023, n=200), "watched_by": "large", "large": True,
    }  # fmt: skip
    return Outcome(**(values | changes))


UNPROMISED: dict[str, Any] = {"promise": "", "share_promised": None, "watched_by": "", "labels_needed": NEEDED}
FIRST: dict[str, Any] = {"kind": "small first", "rest": "large", "share_small": wilson(104, 200)}
NO_PROMISE = (
    "There is no promise about single answers, and each is marked so; to have one, label about 560 more rows in "
    "rows.jsonl (chance 75 %)."
)
WATCHED = AuditedAccuracy(words="at most 20 % of all small answers wrong", limits={"person": 0.2, "large": 0.22})
NOTHING: dict[str, Any] = dict.fromkeys(("share_small", "share_promised", "accuracy", "share_of_bill", "version"))
NOTHING |= {"candidate": None, "promise": "", "alias": "", "watched_by": "", "gate": "failed"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            f"Small alone: “tagger” answers every request. Right {RIGHT}, at 2 % [1.8, 2.3] of the large model's bill. "
            f"{PROMISED}; the other small answers carry no promise and are marked.",
        ),
        (
            UNPROMISED,
            f"Small alone: “tagger” answers every request. Right {RIGHT}, at 2 % [1.8, 2.3] of the large model's bill. "
            f"{NO_PROMISE} Unwatched: audits cannot test what its gate asks for.",
        ),
        (
            UNPROMISED | {"share_of_bill": None, "watched_by": "large", "audited": WATCHED},
            f"Small alone: “tagger” answers every request. Right {RIGHT}. {NO_PROMISE} Audits by the large model watch "
            "the gate's accuracy: at most 20 % of all small answers wrong.",
        ),
        (
            {"rest": "refused", "share_small": wilson(196, 200), "share_of_bill": None},
            "Small alone: “tagger” answers 98 % [95, 99.2] of requests; the others are refused as out of scope. Right "
            f"{RIGHT}. {PROMISED}; the other small answers carry no promise and are marked.",
        ),
        (
            FIRST | {"share_of_bill": None},
            "Small first: “tagger” answers 52 % [45.1, 58.8] of requests; the rest goes to the large model. Together "
            f"right {RIGHT}. {PROMISED}.",
        ),
        (
            FIRST | {"rest": "person", "large": False, "watched_by": "person", "share_of_bill": None},
            "Small first: “tagger” answers 52 % [45.1, 58.8] of requests; the rest goes to a person. What it answers "
            f"is right {RIGHT}. {PROMISED}.",
        ),
        (
            NOTHING | {"kind": "cannot be told yet", "labels_needed": NEEDED},
            "Cannot be told yet: label about 560 more rows in rows.jsonl (chance 75 %), for about $28.00 by a person. "
            "Until then the large model answers.",
        ),
        (
            NOTHING | {"kind": "keep the large model", "why": "“tagger” misses “accuracy 0.9”", "large": False},
            "Keep what answers today: “tagger” misses “accuracy 0.9”.",
        ),
        (
            NOTHING
            | {"kind": "keep the large model", "gate": "not written", "gate_line": "gate: {accuracy_at_least: 0.8}"},
            "Nothing goes live yet: task.yaml sets no gate, so nothing says that “tagger” is good enough. Write  gate: "
            "{accuracy_at_least: 0.8}  into task.yaml, if that is good enough: “tagger” meets it and may go live.",
        ),
    ],
)
def test_the_sentence_says_who_answers_what_is_promised_and_what_is_missing(
    changes: dict[str, Any], sentence: str
) -> None:
    found = outcome(**changes)
    assert found.sentence == sentence
    told = {"record": facts_of(found), "sentence": facts_in(sentence), "to do": facts_in(found.to_do)}
    assert not disagreements(told | ({"in short": facts_in(found.in_short)} if found.goes_live else {}))


@pytest.mark.parametrize(
    ("changes", "state", "level", "words", "promise"),
    [
        ({}, "live", "good", "Live", PROMISE),
        ({}, "fallback", "bad", "Fallback: the large model answers", ""),
        ({"large": False}, "fallback", "bad", "Fallback: the small model answers without a promise", ""),
        (UNPROMISED, "live", "mixed", "Live, without a promise", ""),
        (NOTHING | {"kind": "cannot be told yet"}, "shadow", "mixed", "In shadow", ""),
    ],
)
def test_a_server_promises_no_more_than_the_state_of_its_monitor_allows(
    changes: dict[str, Any], state: str, level: str, words: str, promise: str
) -> None:
    standing = outcome(**changes).standing(state)
    assert (standing.level, standing.words, standing.promise) == (level, words, promise)
    assert facts_in(standing.in_words).get("promise", promise) == promise
    assert ("Promise for" in standing.sentence) == bool(promise)


def test_a_fallback_names_the_gates_accuracy_that_audits_found_broken() -> None:
    standing = outcome(**UNPROMISED | {"watched_by": "large", "audited": WATCHED}).standing("fallback")
    assert standing.sentence == f"Not in force until audits show it again: {WATCHED.words}."


def test_the_registry_is_told_what_the_sentence_says() -> None:
    facts = outcome().facts
    assert facts["live"] == "main.default.desk version 3 @champion"
    assert facts["promise"] == PROMISE
    assert facts["share_promised"] == "0.520 [0.451, 0.588] n=200"
    nothing = outcome(**NOTHING, kind="cannot be told yet", labels_needed=NEEDED).facts
    assert (nothing["live"], nothing["promise"]) == ("no", "none")


SMALL = evaluation([True] * 170 + [False] * 30)
LARGE = evaluation([False] * 4 + [True] * 190 + [False] * 6, candidate="large")
"""It is wrong on ten rows, on four of which the small model is right."""


def test_a_person_may_call_wrong_what_the_gate_allows_and_the_large_model_what_it_gets_wrong_itself() -> None:
    found = AuditedAccuracy.of(Gate(accuracy_at_least=0.8), SMALL, LARGE)
    assert found.words == "at most 20 % of all small answers wrong"
    assert found.limits["person"] == pytest.approx(0.2)
    assert found.limits["large"] == pytest.approx(0.2 + upper_bound(4, 200, confidence=0.95))


def test_beside_the_large_model_as_much_may_be_wrong_as_that_has_and_the_margin() -> None:
    gate = Gate(accuracy_at_least=None, not_worse_than_large_by=0.05)
    found = AuditedAccuracy.of(gate, SMALL, LARGE)
    by_person = 0.05 + upper_bound(10, 200, confidence=0.975)
    assert found.limits["person"] == pytest.approx(by_person)
    assert found.limits["large"] == pytest.approx(by_person + upper_bound(4, 200, confidence=0.975))
    assert "at most 5 points less accurate than the large model" in found.words
    assert AuditedAccuracy.of(gate, SMALL, None) is None


@pytest.mark.parametrize(
    "thresholds", [{"measures_at_least": {"macro_f1": 0.8}}, {"accuracy_at_least": 1.0}, {"accuracy_at_least": 0.0}]
)
def test_no_audit_can_break_another_metric_or_a_limit_of_all_or_nothing(thresholds: dict[str, Any]) -> None:
    assert AuditedAccuracy.of(Gate(**{"accuracy_at_least": None, **thresholds}), SMALL, LARGE) is None


def test_where_the_large_model_was_not_measured_only_a_person_can_judge() -> None:
    found = AuditedAccuracy.of(Gate(accuracy_at_least=0.8), SMALL, None)
    assert found.limits == {"person": pytest.approx(0.2)}
