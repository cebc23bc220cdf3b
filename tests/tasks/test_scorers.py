"""Scorers: built-in ones by hand, and plain functions that installed packages register."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallfirst.base.errors import ConfigError
from smallfirst.tasks.scorers import SCORERS, load_scorer, normalize_answer, token_f1

Register = Callable[[str, str, str], None]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Puts an installed package with one module and one line of entry points where Python finds it."""

    def install(package: str, code: str, entry: str) -> None:
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[smallfirst.scorers]\n{entry}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Impalas!", "impalas"),
        ("an e-mail", "email"),
        ("Theatre and a band", "theatre and band"),  # articles are whole words
        ("\u2018Rolling\u2019 \u2013 Stones", "rolling stones"),
        ("Cafe\u0301", "café"),  # two ways to write one letter
        ("The The", "the the"),
        ("+", "+"),
    ],
)
def test_case_punctuation_articles_and_white_space_make_no_difference(text: str, plain: str) -> None:
    assert normalize_answer(text) == plain


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("14 December 1972", "December 1972", 4 / 5),  # 2 shared of 3 said and 2 there
        ("the red red rose", "a red rose", 4 / 5),  # a word counts as often as it stands in both
        ("red red", "red red red rose", 2 * 2 / 6),
        ("the Denver Broncos.", "Denver Broncos", 1.0),
        ("+", "+", 1.0),
    ],
)
def test_token_f1_is_what_one_counts_by_hand(answer: str, gold: str, f1: float) -> None:
    assert token_f1("", answer, gold) == pytest.approx(f1, abs=1e-12)
    assert load_scorer("token_f1")("", answer, gold) == token_f1("", answer, gold) == token_f1("", gold, answer)


@pytest.mark.parametrize(
    ("name", "answer", "gold", "score"),
    [("exact", "The Impalas.", "impalas", 1.0), ("exact", "Broncos Denver", "Denver Broncos", 0.0)],
)
def test_built_in_scorers_by_hand(name: str, answer: str, gold: str, score: float) -> None:
    assert load_scorer(name)("", answer, gold) == pytest.approx(score, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SCORERS.names()), st.text(max_size=20), st.text(max_size=20))
def test_every_built_in_score_is_from_0_to_1_and_1_for_the_gold_answer(name: str, answer: str, gold: str) -> None:
    assert 0.0 <= load_scorer(name)("", answer, gold) <= 1.0
    assert load_scorer(name)("", gold, gold) == 1.0


def test_a_function_of_an_installed_package_is_found_by_its_name(register: Register) -> None:
    code = "def polite(question, answer, gold):\n    return 'please' in answer and question == 'Q' and gold == 'G'\n"
    register("manners", code, "polite = manners:polite")
    SCORERS.check("polite", where="task x")
    polite = load_scorer("polite")
    assert (polite("Q", "yes please", "G"), polite("Q", "yes", "G")) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("package", "value", "shown"),
    [("far_off", "3.5", "3.5"), ("not_a_number", "float('nan')", "nan"), ("nothing", "None", "None")],
)
def test_a_score_that_is_no_number_from_0_to_1_names_the_scorer(
    register: Register, package: str, value: str, shown: str
) -> None:
    register(package, f"def f(question, answer, gold):\n    return {value}\n", f"{package} = {package}:f")
    with pytest.raises(ConfigError) as caught:
        load_scorer(package)("Q", "yes", "G")
    assert str(caught.value) == (
        f'scorer "{package}" returned {shown} for the answer "yes": no number from 0 to 1\n'
        "  next: fix the function (question, answer, gold) -> float, then evaluate again"
    )
