"""What is personal goes, what only looks like it stays, and no text takes long."""

import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.traffic.redaction import listed, plain_texts
from benchmarks.traffic.secret_forms import SecretForm, known_forms, later_forms, unseen_forms
from smallfirst.data.redaction import is_labelled, labelled_kind, normal_form, redact, redact_body, redact_logs

PIECES = [
    "password: ", "a@b.de", "4111 1111 1111 1111", "api_key=",
    "sk" + "-aB3dE5gH7jK9mN1pQ3", "'", '"', " ", "\n", "+49 30 1234567",
    "https://u:p@h.de/", "DE89370400440532013000",
    "born ", "1.2.1990", "SSN ", "536-90-4399", "Cookie: a=b", "[EMAIL]", "::1", "{", "}", ",",
]  # fmt: skip


def test_several_finds_are_counted_by_kind() -> None:
    found = redact("a@x.de, b@x.de, 10.0.0.1, https://u:p@h.de/?mail=c@x.de")
    assert found.text == "[EMAIL], [EMAIL], [IP], [URL]"
    assert found.counts == {"email": 2, "ip": 1, "url": 1}


def test_json_stays_json_without_secrets_in_keys_values_and_numbers() -> None:
    found = redact('{"a@x.de": "write b@x.de", "card": 4111111111111111, "n": 3, "ok": true, "l": ["c@x.de"]}')
    assert json.loads(found.text) == {
        "[EMAIL]": "write [EMAIL]",
        "card": "[CARD]",
        "n": 3,
        "ok": True,
        "l": ["[EMAIL]"],
    }
    assert found.counts == {"email": 3, "card": 1}


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_redacting_secrets_again_changes_nothing(text: str) -> None:
    once = redact(text).text
    assert redact(once) == (once, {})


@given(st.text(alphabet="xy ﬁ①é½‑–　\u00ad\u200b\\\"'ß", max_size=60), st.sampled_from(["＠", "@"]))
def test_the_rest_of_a_text_stays_as_it_was_written(words: str, at: str) -> None:
    assert redact(f"{words} ann{at}example.com {words}") == (f"{words} [EMAIL] {words}", {"email": 1})


def test_json_is_redacted_in_place() -> None:
    text = '{"a" :1.50,  "to":\t"x",\n "n": 12, "u": "\\u00e9"}'
    assert redact(text) == (text, {})
    inner = json.dumps({"cc": 4111111111111111, "say": 'a "b"'})
    found = redact(json.dumps({"arguments": inner, "pin": 4821}))
    assert json.loads(json.loads(found.text)["arguments"]) == {"cc": "[CARD]", "say": 'a "b"'}
    assert json.loads(found.text)["pin"] == "[PASSWORD]"
    assert redact('{"env": [{"name": "DB_PASSWORD", "value": "tulips"}]}').counts == {"password": 1}


@pytest.mark.parametrize("form", known_forms(), ids=lambda form: form.text[:30])
def test_realistic_secrets_go(form: SecretForm) -> None:
    assert not form.kept_in(redact(form.text).text)


def test_of_unseen_secrets_a_few_are_known_to_stay() -> None:
    kept = [form.text for form in unseen_forms() if form.kept_in(redact(form.text).text)]
    assert [text for text in kept if "it's" not in text and "net use" not in text and "login lisa" not in text] == []
    assert sum(form.kept_in(redact(form.text).text) for form in later_forms()) <= 7


@pytest.mark.parametrize(("name", "most"), [("first", 3), ("second", 4)])
def test_secrets_of_sentences_in_many_languages_go(name: str, most: int) -> None:
    forms = [line.form for line in listed(name)]
    assert len(forms) == 70
    assert sum(form.kept_in(redact(form.text).text) for form in forms) <= most


@pytest.mark.parametrize("text", [
    "I forgot the pin for my 401k account", "Mein Passwort ist falsch. Bestellung A12345-99",
    "パスワードは設定されませんでした。", "通过设定密码为此用户启用基于密码的认证。",
    "The code 4040 is an error", "zip code 90210", "my Office365 wants a password", "password times out after 15min",
    "Please confirm with the code by 2024 for $1500", "01/02/2024 1530 units",
    "carried out during 01/2000 - 12/2006", "Wachtwoord wijzigen kost 3 dagen",
])  # fmt: skip
def test_a_sentence_that_only_speaks_of_passwords_and_codes_stays(text: str) -> None:
    assert redact(text) == (text, {})


def test_made_up_texts_without_secrets_stay() -> None:
    assert [text for _, text in plain_texts("development") if redact(text).counts] == []


@pytest.mark.parametrize(("name", "value", "kind"), [
    ("dbPassword", "tulips", "password"), ("X-Api-Key", "a1b2c3d4e5", "key"),
    ("customer_phone_number", "0171 1234567", "phone"), ("dateOfBirth", "1985-03-14", "birth_date"),
    ("ssn", "219099999", "national_id"), ("cvc", "737", "password"), ("password", "string", ""),
    ("password_hint", "tulips", ""), ("token", " hello", ""), ("phone", "ask for it", ""),
    ("key", "a1b2c3d4e5", ""),
])  # fmt: skip
def test_a_name_in_json_tells_the_whole_value(name: str, value: str, kind: str) -> None:
    assert is_labelled(name, value) == kind


def test_names_are_known_in_any_style() -> None:
    assert {labelled_kind(name) for name in ("apiKey", "api-key", "API_KEY", "my.api.key", "apikey2")} == {"key"}
    assert labelled_kind("monkey") == labelled_kind("tokens") == labelled_kind("") == ""


@pytest.mark.parametrize(("written", "plain"), [
    ("ａ＠ｂ", "a@b"), ("٤١٢ ४१", "412 41"), ("a\u200bb\u00adc", "abc"), ("1\u00a02\u20113\u2212", "1 2-3-"),
    ("ﬁ½", "fi1⁄2"), (r"a\u0040b \\u0040 \x40 \n\"", 'a@b @ @ \n"'),
    ("a%40b a&#64;b a&commat;b 5%41", "a@b a@b a@b 5%41"), ("plain é", "plain é"),
])  # fmt: skip
def test_a_text_in_its_normal_form(written: str, plain: str) -> None:
    assert normal_form(written).text == plain


@given(st.text(alphabet="aé＠ﬁ½\u200b\\u0041%&#64; ", max_size=40))
def test_every_place_is_known_in_the_original(text: str) -> None:
    form = normal_form(text)
    places = [form.original(i, i) for i in range(len(form.text) + 1)]
    assert form.original(0, len(form.text))[1] == len(text)
    assert places == sorted(places)
    assert all(0 <= a <= len(text) for a, _ in places)


HOSTILE = [
    "a.", "a@", "1 ", "411 ", "+1 ", "(0", "a:", "://", "http://a?token", "AA11 ", "phone 1 ", "555-123-", "password: ",
    "key='", "-----BEGIN PRIVATE KEY-----", "eyJaaaaaaaa.", "\\", "\\u0040", "born 1", "SSN A", "a (at) b ",
    '{"a":', "aB3/", "１２３４ ", "密码是", "0 1 2 3 ", "22.22.", "mysql -p ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_text_of_50_kb_is_redacted(piece: str) -> None:
    text = piece * (50_000 // len(piece)) + "!"
    assert redact(text).text  # what grows with the square would take minutes


def test_messages_and_tracebacks_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    redact_logs()
    redact_logs()
    assert len(handler.filters) == 1
    log = logging.getLogger("smallfirst.somewhere")
    log.warning("no answer to %s", "ann@example.com")
    try:
        raise ValueError("not a number: 4111 1111 1111 1111")
    except ValueError:
        log.exception("failed")
    log.warning("%d of %d", 1, 2)
    lines = written.getvalue()
    assert "no answer to [EMAIL]\n" in lines
    assert "ValueError: not a number: [CARD]" in lines
    assert lines.endswith("1 of 2\n")
    assert "4111" not in lines


# Bodies of requests and responses


def test_placeholders_stand_for_what_is_not_kept():
    words = "plain words of a long document " * 100
    body = {
        "mail": "to ann@example.com", "audio": "QUJD" * 400, "vector": [0.5] * 100, "tokens": [1, 2] * 100,
        "document": words, "created": 1764201600, "short": [0.1, 0.2],
    }  # fmt: skip
    kept = redact_body(body)
    assert kept == body | {"mail": "to [EMAIL]", "audio": "[1,600 characters of data]", "vector": "[100 numbers]"}
    assert redact_body(kept) == kept


def test_names_and_numbers_are_redacted_as_values_are():
    body = {
        "messages": [{"role": "tool", "content": '{"iban": "BE68539007547034"}'}],
        "metadata": {"ann@example.com": 1, "password": "tulips", "pin": 4821, "n": 4821},
        "env": [{"name": "API_KEY", "value": "a1b2c3d4e5"}],
        "card": 4111111111111111,
        "max_tokens": 4096,
        "logprobs": [{"token": "abc1", "bytes": [97]}],
    }
    kept = redact_body(body)
    assert kept == body | {
        "messages": [{"role": "tool", "content": '{"iban": "[IBAN]"}'}],
        "metadata": {"[EMAIL]": 1, "password": "[PASSWORD]", "pin": "[PASSWORD]", "n": 4821},
        "env": [{"name": "API_KEY", "value": "[KEY]"}],
        "card": "[CARD]",
    }
    assert redact_body(kept) == kept
