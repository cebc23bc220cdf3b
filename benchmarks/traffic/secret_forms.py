"""Realistic texts that hold one secret each, all made up. Keys are put together when they are asked for, so that no scanner finds one here."""

# fmt: off
from __future__ import annotations

import json
import random
import string
from typing import NamedTuple

_BASE62 = string.ascii_letters + string.digits
_SEEN = 6
"""Characters of a secret in a row that must not be left of it."""


class SecretForm(NamedTuple):
    """One text and what in it is secret."""

    kind: str
    text: str
    secret: str

    def kept_in(self, redacted: str) -> bool:
        """Return True if six characters in a row of the secret are left, or all of a shorter one."""
        width = min(_SEEN, len(self.secret))
        return any(self.secret[i : i + width] in redacted for i in range(len(self.secret) - width + 1))


class Maker:
    """Random characters that are the same in every run."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, prefix: str, n: int, alphabet: str = _BASE62) -> str:
        """Return the prefix and n random characters, of which one each is a capital, a small letter and a figure if the alphabet has them."""
        while True:
            drawn = "".join(self._random.choices(alphabet, k=n))
            if all(set(kind) & set(drawn) or not set(kind) & set(alphabet) for kind in _KINDS) or n < 8:
                return prefix + drawn

    def hex(self, n: int) -> str:
        return self.token("", n, "0123456789abcdef")

    def base64(self, n: int) -> str:
        return self.token("", n, _BASE62 + "+/")

    def jwt(self) -> str:
        head, body = ("eyJ" + self.token("", n, _BASE62 + "-_") for n in (33, 87))
        return f"{head}.{body}.{self.token('', 43, _BASE62 + '-_')}"


_KINDS = (string.ascii_lowercase, string.ascii_uppercase, string.digits)


def arabic(digits: str, zero: int = 0x660) -> str:
    """Return the figures in another script, whose zero has this code point."""
    return "".join(chr(zero + int(c)) if c.isdigit() else c for c in digits)


def known_forms() -> list[SecretForm]:
    """Return the 72 forms for which the detectors were written."""
    make = Maker(1)
    rows: list[tuple[str, str, str]] = []

    def add(kind: str, template: str, secret: str) -> None:
        rows.append((kind, template.replace("@@", secret), secret))

    add("key", "Why does this fail? openai.api_key = '@@'", make.token("sk" + "-", 48))
    add("key", "OPENAI_API_KEY=@@\nMODEL=gpt-4o", make.token("sk" + "-proj-", 64))
    add("key", "my key @@ stopped working", make.token("sk" + "-proj-", 124, _BASE62 + "-_"))
    add("key", 'client = Anthropic(api_key="@@")', make.token("sk" + "-ant-api03-", 93, _BASE62 + "-_") + "AA")
    add("key", "the Anthropic one is @@, please rotate it", make.token("sk" + "-ant-api03-", 93, _BASE62 + "-_") + "AA")
    add("key", "aws_access_key_id = @@", make.token("AK" + "IA", 16, string.ascii_uppercase + "234567"))
    add("key", "[default]\naws_secret_access_key = @@\nregion = eu-west-1", make.base64(40))
    add('key', 'temporary credentials: @@ (expires at noon)', make.token('AS' + 'IA', 16, string.ascii_uppercase + '234567'))
    add("key", "git clone with the token @@ gives 403", make.token("gh" + "p_", 36))
    add("key", "GITHUB_TOKEN: @@", make.token("github" + "_pat_", 22) + "_" + make.token("", 59))
    add("key", "curl --header 'PRIVATE-TOKEN: @@' .../projects", make.token("gl" + "pat-", 20))
    add("key", "the bot's token is @@", make.token("xo" + "xb-", 12, string.digits) + "-" + make.token("", 24))
    add('key', 'SLACK_APP=@@', make.token('xa' + 'pp-1-', 10, string.ascii_uppercase + string.digits) + '-' + make.hex(64))
    add("key", 'stripe.api_key = "@@"', make.token("sk" + "_live_", 24))
    add("key", "restricted key @@ for refunds", make.token("rk" + "_live_", 99))
    add("key", "const MAPS = '@@';", make.token("AI" + "za", 35, _BASE62 + "-_"))
    add("key", "access token @@ from the OAuth playground", make.token("ya" + "29.a0", 120, _BASE62 + "-_"))
    add("key", "decode this: @@", make.jwt())
    add("key", "id_token=@@", make.jwt())
    add("key", "Authorization: Bearer @@", make.token("", 40))
    add("key", 'curl -H "Authorization: Bearer @@" api.example.com', make.hex(40))
    pem = make.base64(64) + "\n" + make.base64(64) + "\n" + make.base64(40) + "=="
    add("key", f"-----BEGIN RSA PRIVATE {'KEY'}-----\n@@\n-----END RSA PRIVATE KEY-----", pem)
    add("key", f'{{"k": "-----BEGIN {"PRIVATE"} KEY-----\\n@@\\n-----END PRIVATE KEY-----\\n"}}', make.base64(64))
    add("key", "smallfirst says 401 for @@", "sf" + "-" + make.hex(12) + "-" + make.token("", 43, _BASE62 + "-_"))
    add("password", "I can't log in, my password is @@", "Sommer2024!")
    add("password", "Passwort: @@", "geheim99")
    add("password", "DB_PASSWORD=@@\nDB_HOST=localhost", "correct-horse")
    add("password", '{"user": "anna", "password": "@@"}', "tr0ub4dor&3")
    add("password", "mysql --user root --password @@ shop", "r00tpw")
    add("password", "mi contraseña es @@ y no funciona", "Madrid#77")
    add("password", "mon mot de passe est @@", "Soleil_88")
    add("password", "spring.datasource.password: @@", "s3cr3t")
    add("cookie", "Cookie: @@\nAccept: */*", f"session={make.hex(32)}; theme=dark")
    add("cookie", "Set-Cookie: @@; Path=/; HttpOnly", f"sid={make.token('', 26)}")
    add('cookie', "curl -b '@@' shop.example.com", f"PHPSESSID={make.token('', 26, string.ascii_lowercase + string.digits)}")
    add("cookie", '{"headers": {"cookie": "@@"}}', f"auth={make.token('', 30)}")
    add("national_id", "my SSN is @@", "536-90-4399")
    add("national_id", "social security number @@", "536 90 4399")
    add("national_id", "Steuer-ID @@", "65 929 970 489")
    add("national_id", "National Insurance number: @@", "AB 12 34 56 C")
    add("national_id", "numéro de sécurité sociale @@", "1 84 12 76 451 089 46")
    add("national_id", "mi DNI es @@", "12345678Z")
    add("national_id", "codice fiscale @@", "RSSMRA85T10A562S")
    add("national_id", "our EIN is @@", "12-3456789")
    add("birth_date", "DOB: @@", "03/14/1985")
    add("birth_date", "I was born on @@ in Leeds", "14 March 1985")
    add("birth_date", "Patient, geboren am @@", "14.03.1985")
    add("birth_date", "née le @@ à Lyon", "14 mars 1985")
    add("birth_date", '{"name": "A. B.", "date_of_birth": "@@"}', "1985-03-14")
    add("phone", "llámame al @@", "612 345 678")
    add("phone", "reach me on @@ after six", "98765 43210")
    add("phone", "meu zap: @@", "(11) 91234-5678")
    add("phone", "zadzwoń: @@", "601 234 567")
    add("phone", "我的手机 @@", "138 0013 8000")
    add("iban", "please pay to @@", "de89 3704 0044 0532 0130 00")
    add("iban", "account @@", "DE89.3704.0044.0532.0130.00")
    add("iban", "iban: @@", "gb82west12345698765432")
    add("card", "card @@", "4111.1111.1111.1111")
    add("card", "the number is\n@@\nexp 12/27", "4111 1111\n1111 1111")
    add("card", "بطاقتي @@", arabic("4111111111111111"))
    add("card", "カード @@", arabic("4111 1111 1111 1111", 0xFF10))
    add("card", "कार्ड @@", arabic("5500000000000004", 0x966))
    add("card", "visa @@", "4111  1111  1111  1111")
    add("email", "schreib an @@", "anna.schmidt" + "\uff20" + "example.de")
    add("email", "her address is @@", '"anna schmidt"' + "@example.com")
    add("email", "contact @@", "anna [at] example [dot] com")
    add("email", "mail @@", "anna\u200b.b@exam\u200bple.com")
    add("json", '{"@@": {"orders": 3}}', "anna.b@example.com")
    add("json", '{"order": 17, "card": @@}', "4111111111111111")
    add("json", '{"customer": {"phone": @@}}', "4915112345678")
    add("json", json.dumps({"arguments": '{"to": "@@", "n": 1}'}), "anna\\\\u0040example.com")
    add("json", '{"to": "@@"}', "anna\\u0040example.com")
    return [SecretForm(*row) for row in rows]
