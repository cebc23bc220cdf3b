"""A name tells what its value is, unless the value is a word, a variable or a placeholder."""

from __future__ import annotations

import pytest

from smallfirst.data.detectors.labelled import is_labelled, labelled_kind, labelled_spans

STAYS = [
    "my password is not working", "password: required", "Password is wrong, reset my password please",
    "password = get_password()",
    "password=os.environ['PW']", "login(user, password=password)", "PASSWORD=${DB_PASSWORD}",
    "api_key: <your key>", "token: str = ''",
    "the key is under the mat", "first-pass imaging", "ein Zimmer für 120000", "was born in 1984 or 1985",
    "Nikola Tesla was born on 10 July 1856",
    "Angela was born on 17 July 1954", "the token count is 15000000", "PIN is 4 digits",
    "Cookie: chocolate chip", "phone on 12.05.2023",
    "Bearer of good news", "which card number do I use", "secret: keep it simple", "max_tokens=4096",
]  # fmt: skip


@pytest.mark.parametrize("text", STAYS)
def test_what_is_no_value_stays(text: str) -> None:
    assert list(labelled_spans(text)) == []


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("dbPassword", "tulips", "password"),
        ("X-Api-Key", "a1b2c3d4e5", "key"),
        ("customer_phone_number", "0171 1234567", "phone"),
        ("dateOfBirth", "1985-03-14", "birth_date"),
        ("ssn", "219099999", "national_id"),
        ("cvc", "737", "password"),
        ("password", "string", ""),
        ("password_hint", "tulips", ""),
        ("token", " hello", ""),
        ("phone", "ask for it", ""),
        ("key", "a1b2c3d4e5", ""),
    ],
)
def test_a_name_in_json_tells_the_whole_value(name: str, value: str, kind: str) -> None:
    assert is_labelled(name, value) == kind


def test_names_are_known_in_any_style() -> None:
    assert {labelled_kind(name) for name in ("apiKey", "api-key", "API_KEY", "my.api.key", "apikey2")} == {"key"}
    assert labelled_kind("monkey") == labelled_kind("tokens") == labelled_kind("") == ""


def test_a_value_that_is_longer_than_the_place_around_its_name_goes_whole() -> None:
    text = f'api_key="{"aB3" * 300}" and more'
    assert [(start, end) for start, end, _ in labelled_spans(text)] == [(9, 909)]
