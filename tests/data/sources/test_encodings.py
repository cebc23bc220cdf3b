"""Encodings told from the bytes of a few short lines, as a spreadsheet program writes them."""

from __future__ import annotations

import pytest

from smallfirst.data.sources.encodings import to_utf8
from smallfirst.errors import DataError

GERMAN = "text;label\nDie Rechnung für März fehlt;Rechnung\nIch möchte meine Straße ändern;Änderung\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_german_is_the_same_from_every_encoding(encoding: str) -> None:
    utf8, name = to_utf8(GERMAN.encode(encoding), "rows.csv")
    assert utf8.decode("utf-8-sig") == GERMAN
    assert name == encoding.removesuffix("-sig")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Où est mon dépôt ? «liberté\xa0»\n", "cp1252"),
        ("It costs 5 € – too much, “they” say\n" + "no accent here\n" * 9, "cp1252"),
        ("Proszę o zmianę hasła. Gdzie jest moja paczka? Już długo czekam na przesyłkę\n", "cp1250"),
        ("Где моя посылка? Я хочу изменить пароль\n", "cp1251"),
        ("荷物はどこですか。パスワードを変更したい\n", "cp932"),
    ],
)
def test_older_encodings_are_told_by_what_they_make_of_the_text(text: str, encoding: str) -> None:
    assert to_utf8(text.encode(encoding), "rows.csv") == (text.encode(), encoding)


def test_utf_8_with_a_damaged_byte_stays_as_it_is_for_its_line_to_be_named() -> None:
    raw = "thé, café".encode() + b"\xe9\n"
    assert to_utf8(raw, "rows.csv") == (raw, "utf-8")


def test_a_short_text_with_a_zero_byte_is_not_taken_for_utf_16() -> None:
    assert to_utf8(b"a\0b", "rows.csv") == (b"a\0b", "utf-8")


def test_half_a_file_is_refused_with_its_place() -> None:
    with pytest.raises(DataError, match=r"rows\.csv: neither UTF-8 nor whole utf-16: "):
        to_utf8(GERMAN.encode("utf-16")[:-1], "rows.csv")
