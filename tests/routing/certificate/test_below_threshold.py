"""Below the threshold: each band by its own paired evidence, few rows follow the whole."""

from __future__ import annotations

import numpy as np
from fixtures.certificates import cascade
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.routing.certificate.below_threshold import BelowThreshold, decide_below_threshold
from smallfirst.routing.certificate.outcomes import CascadeData


def rows(
    small: list[bool], large: list[bool], confidence: list[float] | None = None, **more: np.ndarray
) -> CascadeData:
    found = confidence if confidence is not None else [(i + 0.5) / len(small) for i in range(len(small))]
    return cascade(found, small, large_right=np.array(large), **more)


def decide(data: CascadeData, *, person: bool = False, floor: float | None = None, **more: bool) -> BelowThreshold:
    return decide_below_threshold(data, NOBODY, top=1.0, floor=floor, person=person, **more)


NOBODY = np.zeros(80, dtype=bool)
# Four bands of 20: large better, worse, alike, better.
SMALL = [False] * 20 + [True] * 20 + [True] * 10 + [False] * 10 + [False] * 20
LARGE = [True] * 20 + [False] * 20 + [False] * 10 + [True] * 10 + [True] * 20


def test_each_band_goes_where_it_is_answered_better() -> None:
    found = decide(rows(SMALL, LARGE))
    assert [(band.n, band.small_right, band.large_right, band.action) for band in found.bands] == [
        (20, 0, 20, "escalate"),
        (20, 20, 0, "keep"),
        (20, 10, 10, "keep"),
        (20, 0, 20, "escalate"),
    ]
    assert [band.low for band in found.bands] == [0.0, 20.5 / 80, 40.5 / 80, 60.5 / 80]
    assert [band.high for band in found.bands[:-1]] == [band.low for band in found.bands[1:]]
    assert found.bands[-1].high == 1.0
    # McNemar on 20 against 0: 2 / 2**20
    assert found.bands[0].p_value == 2 / 2**20
    assert found.action == "escalate"  # 50 against 30 over all


def test_a_person_gets_what_no_model_is_good_at() -> None:
    found = decide(rows(SMALL, LARGE), person=True)
    assert [band.action for band in found.bands] == ["escalate", "abstain", "abstain", "escalate"]
    worse = decide(rows([True] * 80, [False] * 80), person=True)
    assert worse.action == "abstain"
    assert worse.why.endswith(": sending them on would cost more and help nobody, so they go to a person's queue")


def test_a_band_with_under_ten_paired_rows_follows_the_whole() -> None:
    asked = np.ones(80, dtype=bool)
    asked[20:31] = False  # nine are left of the second band, on which large is worse
    found = decide(rows(SMALL, LARGE, asked=asked))
    assert [(band.n, band.action) for band in found.bands][1] == (9, "escalate")
    asked[20] = True
    found = decide(rows(SMALL, LARGE, asked=asked))
    assert [(band.n, band.action) for band in found.bands][1] == (10, "keep")


def test_few_paired_rows_are_reported_as_few() -> None:
    asked = np.zeros(80, dtype=bool)
    asked[20:29] = True  # nine rows on which large is worse
    found = decide(rows(SMALL, LARGE, asked=asked))
    assert found.action == "keep"
    assert found.why.endswith(": too few to show that sending them on helps; ask the large model more of them")


def test_a_limit_on_the_accuracy_loss_allows_keeping_down_to_its_floor_without_a_gap() -> None:
    always = rows([True] * 80, [False] * 80)
    found = decide(always, floor=0.5)
    assert [band.action for band in found.bands] == ["escalate", "escalate", "keep", "keep"]
    assert found.action == "escalate"
    found = decide(always, floor=0.0)
    assert [band.action for band in found.bands] == ["keep"] * 4
    gap = decide(rows(SMALL, LARGE), floor=0.0)
    assert [band.action for band in gap.bands] == ["escalate"] * 4


def test_a_guarantee_that_never_escalates_keeps_everything() -> None:
    found = decide(rows(SMALL, LARGE), never_escalates=True)
    assert [band.action for band in found.bands] == ["keep"] * 4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from([0.1, 0.2, 0.3, 0.9])), min_size=1, max_size=90)
)
def test_bands_part_what_is_below_the_threshold(drawn: list[tuple[bool, bool, float]]) -> None:
    small, large, scores = zip(*drawn, strict=True)
    answers = rows(list(small), list(large), list(scores))
    kept = answers.confidence[0] >= 0.9
    found = decide_below_threshold(answers, kept, top=0.9, floor=None, person=False)
    assert sum(band.n for band in found.bands) == (~kept).sum()
    assert sum(band.large_right for band in found.bands) == (answers.large_right & ~kept).sum()
    assert len(found.bands) <= 4
