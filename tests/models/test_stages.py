"""Every stage that was ever stored says who answered."""

import pytest

from smallfirst.models.stages import NOT_SMALL, OUT_OF_SCOPE, Answerer, answerer


@pytest.mark.parametrize(
    ("stages", "who"),
    [
        (("small", "words", "tiny-2"), Answerer.SMALL),
        (("large",), Answerer.LARGE),
        (("general",), Answerer.GENERAL),
        (("person",), Answerer.PERSON),
        ((OUT_OF_SCOPE, "", None), Answerer.NOBODY),
    ],
)
def test_a_stored_stage_says_who_answered(stages: tuple[str | None, ...], who: Answerer) -> None:
    assert {answerer(stage) for stage in stages} == {who}
    assert {(stage or "") in NOT_SMALL for stage in stages} == {who is not Answerer.SMALL}
