"""What is personal or secret is found by its form, its check figures or its name; what only looks like it stays."""

import pytest

from benchmarks.traffic.secret_forms import Maker
from smallfirst.data.detectors import find_keys, find_labelled
from smallfirst.data.redaction import redact

MAKE = Maker(3)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ('"ann smith"@example.com!', "[EMAIL]!"),
        ("ann [at] example [dot] com!", "[EMAIL]!"),
        ("ann AT example DOT com", "[EMAIL]"),
        ("邮箱wang@example.cn谢谢", "邮箱[EMAIL]谢谢"),
        ("ann@[192.168.0.1]", "[EMAIL]"),
        ("u\u0308ber@mu\u0308ller.example", "[EMAIL]"),
        ("jdbc:oracle:thin:scott/t1ger@db:1521/XE", "[URL]"),
        ("see https://hooks.slack.com/services/T0/B0/x", "see [URL]"),
        ("see https://anna:geheim@example.com/x?y=1 there", "see [URL] there"),
        ("see https://example.com/x?access_token=abc123", "see [URL]"),
        ("get ftp://token@example.com", "get [URL]"),
        ("write to anna.o'hara+claims@mail.example.co.uk, please", "write to [EMAIL], please"),
        ("from 192.168.0.17 today", "from [IP] today"),
        ("host 2001:db8::ff00:42:8329, down", "host [IP], down"),
        (
            "see https://example.com/claims?id=12345 and std::vector",
            "see https://example.com/claims?id=12345 and std::vector",
        ),
        ("an @ alone, a@b, half 50% and 999.1.1.1", "an @ alone, a@b, half 50% and 999.1.1.1"),
        ("meet at noon at example dot", "meet at noon at example dot"),
        ("look at this. dot com boom", "look at this. dot com boom"),
    ],
)
def test_addresses(text: str, clean: str) -> None:
    assert redact(text).text == clean


NO_KEYS = [
    "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "call_9pw1qnYScqvGrCH58HWCvFH6x8y7Za3b",
    "sk-learn and task-based-approaches-2024", "9b2d6c3e-0f5a-4c8e-9a43-1f0f3a1b2c3d",
    "commit 6367c48dd193d56ea7b0baad25b19455e529f5ee", "sha256:" + "ab12" * 16,
    "testShouldReturn404WhenUserIsNotFoundInTheDatabase", "src/main/java/org/example/ParserV2/TokenReader3Test.java",
    "AKIAIOS", "https://example.com/a-long-path/of-2024/with-words/and-more-words-7",
    "-----BEGIN CERTIFICATE-----\nMIIB",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_KEYS)
def test_what_opens_nothing_stays(text: str) -> None:
    assert list(find_keys(text)) == []


def test_a_private_key_goes_from_head_to_foot_and_as_far_as_it_was_copied() -> None:
    head, foot = (f"-----{word} PRIVATE {'KEY'}-----" for word in ("BEGIN", "END"))
    body = MAKE.base64(64)
    whole, cut = f"{head}\n{body}\n{foot}", f"{head}\n{body}"
    assert redact(f"see {whole} ok").text == redact(f"see {cut} ok").text == "see [KEY] ok"


def test_an_unknown_key_is_told_by_chance_alone() -> None:
    token = MAKE.token("", 44)
    assert list(find_keys(f"x {token}.")) == [(2, 46)]


NO_VALUES = [
    "my password is not working", "password: required", "Password is wrong, reset my password please",
    "password = get_password()", "password=os.environ['PW']", "login(user, password=password)",
    "PASSWORD=${DB_PASSWORD}", "api_key: <your key>", "token: str = ''", "the key is under the mat",
    "first-pass imaging", "ein Zimmer für 120000", "was born in 1984 or 1985", "Nikola Tesla was born on 10 July 1856",
    "the token count is 15000000", "PIN is 4 digits", "Cookie: chocolate chip", "phone on 12.05.2023",
    "Bearer of good news", "which card number do I use", "secret: keep it simple", "max_tokens=4096",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_VALUES)
def test_what_is_no_value_of_a_name_stays(text: str) -> None:
    assert list(find_labelled(text, text.lower())) == []


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("fecha nacimiento: 12.03.1980", "fecha nacimiento: [BIRTH_DATE]"),
        ("data nașterii 12.03.1980", "data nașterii [BIRTH_DATE]"),
        ("the codice di sicurezza 48213", "the codice di sicurezza [PASSWORD]"),
    ],
)
def test_names_of_several_words_are_names(text: str, clean: str) -> None:
    assert redact(text).text == clean


def test_a_value_that_is_longer_than_the_place_around_its_name_goes_whole() -> None:
    text = f'api_key="{"aB3" * 300}" and more'
    assert [(start, end) for start, end, _ in find_labelled(text, text.lower())] == [(9, 909)]


NUMBERS = {
    "card": [
        "5555 5555 5555 4444", "2223003122003222", "378282246310005", "3782-822463-10005", "6011.1111.1111.1117",
        "3530111333300000", "3056 930902 5904", "4111/1111/1111/1111",
    ],
    "iban": [
        "de89 3704 0044 0532 0130 00", "NL91.ABNA.0417.1643.00", "fr1420041010050500013m02606",
        "PL 61 1090 1014 0000 0712 1981 2874",
    ],
    "phone": [
        "+49 30 1234567", "0049 171 1234567", "+33 (0)6 12 34 56 78", "(030) 123 45 67", "0171-2345678",
        "06 12 34 56 78", "06-12345678", "07911 123456", "612 345 678", "98765 43210", "(11) 91234-5678",
        "601 234 567", "138 0013 8000", "8 (912) 345-67-89", "090-1234-5678", "(415) 555-2671", "+1 415 555 2671",
    ],
    "national_id": [
        "536-90-4399", "2 55 08 14 168 025 38", "12345678Z", "X1234567L", "RSSMRA85T10A562S", "111.444.777-35",
        "AB 12 34 56 C", "ABCPE1234F",
    ],
}  # fmt: skip
"""Numbers that issuers and offices give as examples."""


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind, numbers in NUMBERS.items() for number in numbers]
)
def test_a_number_goes_by_its_form(kind: str, number: str) -> None:
    assert redact(f"it is {number}, thanks") == (f"it is [{kind.upper()}], thanks", {kind: 1})


@pytest.mark.parametrize(
    "text",
    ["0.4111111111111111", "1111 1111 1111 1117", "6462995216864", "51 013 278 48 740 9 4 3 1 83 12 99 411",
     "XX89370400440532013000", "DE8937040044053201300", "version 1.2.3.4", "EC 3.1.1.11",
     "01.02.2024", "2023-11-05", "600 000 000", "1 234 567 890", "order no. 04971342925",
     "https://example.com/item/028917647", "01234 56", "64 767 25 03 1 12 44", "p = 0.0855, 0.123-0.456", "+100 points",
     "1234567890", "978-3-16-148410-0", "000-12-3456", "666-12-3456", "900-12-3456", "536-00-4399", "536-90-0000",
     "BG123456C", "12345678A", "2 55 08 14 168 025 39", "the sum is 111222333", "order no. 44051401359"],
)  # fmt: skip
def test_other_figures_stay(text: str) -> None:
    assert redact(text) == (text, {})


@pytest.mark.parametrize(
    ("name", "number", "kind"),
    [("my card", " ".join("4111111111111111"), "card"), ("the BSN is", "111222333", "national_id"),
     ("PESEL", "44051401359", "national_id"), ("Steuer-ID", "86 095 742 719", "national_id")],
)  # fmt: skip
def test_what_has_no_form_of_its_own_needs_its_name(name: str, number: str, kind: str) -> None:
    assert redact(f"{name} {number}").counts == {kind: 1}
    assert redact(f"the row {number}").counts == {}
