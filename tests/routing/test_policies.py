"""Policies: the first that matches decides, splits are sticky, and kinds are found through the registry."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.base.records import Record, parse_record
from smallfirst.data.dataset import Message
from smallfirst.models.protocol import Request
from smallfirst.routing.languages import detect_language, languages_of
from smallfirst.routing.policies import (
    POLICIES,
    AnyPolicy,
    DifficultyPolicy,
    GainPolicy,
    Policy,
    RulePolicy,
    SplitPolicy,
    apply_policies,
    check_stages,
    dominant_script,
    split_position,
)


def asked(text: str, **tags: str) -> Request:
    return Request.ask(text).model_copy(update={"tags": tags})


def where(policy: Policy, request: Request) -> str | None:
    found = apply_policies([policy], request)
    return found.to if found else None


def rule(**conditions: object) -> RulePolicy:
    return RulePolicy.model_validate({"kind": "rule", "to": "large", **conditions})


TALK = Request(
    messages=(
        Message(role="user", content="hi"),
        Message(role="assistant", content="hello"),
        Message(role="user", content="and now"),
    )
)


@pytest.mark.parametrize(
    ("policy", "applies", "does_not"),
    [
        (rule(longer_than_chars=3), asked("four"), asked("abc")),
        (rule(shorter_than_chars=4), asked("abc"), asked("four")),
        (rule(contains=("Urgent", "now")), asked("this is URGENT"), asked("this is calm")),
        (rule(scripts=("cyrillic",)), asked("где моя карта ok"), asked("where is my card")),
        (rule(languages=("de", "fr")), asked("wo ist meine Karte geblieben"), asked("where is my card")),
        (rule(tags={"tier": "gold"}), asked("x", tier="gold"), asked("x", tier="silver")),
        (rule(tags={"tier": "gold"}), asked("x", tier="gold", user="me"), asked("x")),
        (rule(conversation=True), TALK, asked("x")),
        (rule(conversation=False), asked("x"), TALK),
        (rule(contains=("card",), longer_than_chars=10), asked("where is my card"), asked("card")),
        (RulePolicy(kind="rule", to="large"), asked(""), None),
    ],
)
def test_a_policy_applies_where_all_its_conditions_hold(
    policy: Policy, applies: Request, does_not: Request | None
) -> None:
    assert where(policy, applies) == "large"
    assert does_not is None or where(policy, does_not) is None


def test_the_first_policy_that_applies_decides_and_says_why() -> None:
    policies = [rule(contains=("card",), to="small"), RulePolicy(kind="rule", to="large")]
    found = apply_policies(policies, asked("my CARD is lost"))
    assert (found.to, found.policy, found.why) == ("small", "rule", "contains 'card'")
    other = apply_policies(policies, asked("my house"))
    assert other.to == "large"
    assert apply_policies([], asked("x")) is None


@settings(max_examples=100, deadline=None)
@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_whoever_is_in_a_smaller_share_stays_in_a_larger_one(user: str, a: float, b: float) -> None:
    small, large = sorted((a, b))
    inside = where(SplitPolicy(kind="split", to="canary", share=small), asked("x", user=user))
    if inside:
        assert where(SplitPolicy(kind="split", to="canary", share=large), asked("x", user=user)) == inside


def test_without_its_tag_a_split_sticks_to_the_messages() -> None:
    split = SplitPolicy(kind="split", to="canary", share=0.5)
    assert split_position(split, asked("one")) == split_position(split, asked("one"))
    assert split_position(split, asked("one")) != split_position(split, asked("two"))


class Lengths:
    """The longer, the harder for the small model; the large one knows texts of less than 20 letters."""

    def probabilities(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        lengths = np.array([len(text) for text in texts])
        return {"small": 1 / lengths, "large": np.where(lengths < 20, 1.0, 0.0)}

    def score(self, texts: Sequence[str]) -> np.ndarray:
        found = self.probabilities(texts)
        return found["large"] - found["small"]

    def threshold(self, share: float) -> float:
        return 1 - share


def test_what_is_too_hard_for_the_small_model_goes_past_it() -> None:
    policy = DifficultyPolicy(kind="difficulty", below=0.3)
    found = apply_policies([policy], asked("long one"), Lengths())
    assert (found.to, found.score, found.threshold) == ("large", 0.125, 0.3)
    assert apply_policies([policy], asked("abc"), Lengths()) is None
    assert apply_policies([policy], asked("long one")) is None


def test_what_the_large_model_gains_on_goes_there_and_what_is_hard_for_both_does_not() -> None:
    policy = GainPolicy(kind="gain", above=0.7)
    found = apply_policies([policy], asked("long one"), Lengths())
    assert (found.to, found.policy, found.score, found.threshold) == ("large", "gain", 0.875, 0.7)
    assert apply_policies([policy], asked("abc"), Lengths()) is None
    assert apply_policies([policy], asked("too long for everybody"), Lengths()) is None
    assert apply_policies([policy], asked("long one")) is None
    share = GainPolicy(kind="gain", share=0.1, to="challenger")
    assert apply_policies([share], asked("long one"), Lengths()) is None  # 0.875 is not among the highest tenth
    found = apply_policies([share], asked("a longer one"), Lengths())
    assert (found.to, found.threshold) == ("challenger", 0.9)


def test_the_script_of_most_letters_and_the_languages() -> None:
    assert (dominant_script("где ok"), dominant_script("12 !"), dominant_script("カード")) == (
        "CYRILLIC",
        "",
        "KATAKANA",
    )
    assert (detect_language("où est ma carte\nje ne sais pas"), detect_language("")) == ("fr", "")
    english, german = ("where is the card that I ordered",) * 196, ("wo ist die Karte, die ich bestellt habe",)
    assert [languages_of(english + german * n) for n in (4, 10)] == [("en",), ("en", "de")]


class Policies(Record):
    policies: tuple[AnyPolicy, ...]


def parse(*policies: object) -> Policies:
    return parse_record(Policies, {"policies": policies}, where="task.yaml")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"to": "large"}, f"policies.0: a policy needs a kind: {', '.join(POLICIES.names())}"),
        (5, "policies.0: a policy needs a kind"),
        ({"kind": "rul", "to": "large"}, 'unknown policy "rul" — did you mean "rule"? (choose one of '),
        ({"kind": "split", "to": "large", "share": 2}, "share: Input should be less than or equal to 1 (got 2)"),
        ({"kind": "rule", "to": "large", "contain": ["x"]}, 'contain: unknown setting — did you mean "contains"?'),
        ({"kind": "difficulty"}, "policies.0: below: missing"),
        ({"kind": "gain"}, "give one of above (a gain) and share (of the requests)"),
        ({"kind": "gain", "above": 0.1, "share": 0.2}, "give one of above (a gain) and share (of the requests)"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(policy: object, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(policy)
    assert message in str(refused.value)


def test_a_policy_must_lead_to_a_stage() -> None:
    policies = [RulePolicy(kind="rule", to="words")]
    check_stages(policies, ["words"])
    with pytest.raises(ValueError, match=r"policies\[0\]: no stage is called 'words'; use one of small, .*challenger"):
        check_stages(policies, [])
