from __future__ import annotations

import pytest

from smallfirst.data.dataset import Dataset, Example, Message, fold_text


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message.model_validate({"role": role, "content": said}) for role, said in turns)


def labelled(text: str, label: str, line: int = 0) -> Example:
    return Example(messages=chat(("user", text)), answer=label, shape="label", line=line)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  My CARD,\n is lost!", "my card is lost"),
        ("it's 1.5_x", "it s 1 5 x"),
        ("Straße", "strasse"),
        ("cafe\u0301 \uff21", "café a"),
        ("?! ?!", "?! ?!"),
        (" ", ""),
    ],
)
def test_folding_keeps_the_words_and_drops_their_dress(text: str, plain: str) -> None:
    assert fold_text(text) == plain


def test_the_text_of_an_example_is_the_last_thing_the_user_said() -> None:
    turns = chat(("system", "s"), ("user", "one"), ("assistant", "a"), ("user", "two"))
    assert Example(messages=turns, answer="b", shape="chat").text == "two"


def test_what_a_chat_asks_is_every_turn_but_the_systems() -> None:
    turns = chat(("system", "s"), ("user", "one"), ("assistant", "a"), ("user", "two"))
    assert Example(messages=turns, answer="b", shape="chat").asked == "one\na\ntwo"


def test_what_other_rows_ask_is_the_user_text_or_the_text_to_continue() -> None:
    assert labelled("lost it", "card").asked == "lost it"
    assert Example(messages=(), answer="Once upon", shape="text").asked == "Once upon"


def test_equal_rows_have_equal_keys_wherever_they_stand() -> None:
    assert labelled("a", "x", line=1).key == labelled("a", "x", line=9).key
    assert labelled("a", "x").key != labelled("a", "y").key
    assert labelled("a", "x").key != labelled("ax", "").key


def test_a_datasets_fingerprint_ignores_order_and_sees_every_edit() -> None:
    a, b = labelled("a", "x"), labelled("b", "y")
    one = Dataset(name="one", examples=(a, b))
    assert len(one) == 2
    assert one.labels() == ("x", "y")
    assert one.content_fingerprint == one.subset("two", (b, a)).content_fingerprint
    assert one.content_fingerprint != one.subset("two", (a, b, b)).content_fingerprint
    assert one.content_fingerprint != one.subset("two", (a,)).content_fingerprint
