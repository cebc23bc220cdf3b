"""Numbers of persons at states, insurers and tax offices, told by form and check figures where their states have them.

The rules are those that the issuing offices publish. A form that other numbers have as well (nine figures) counts only
after its name (`labelled`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from smallfirst.data.detectors.numbers import luhn
from smallfirst.data.detectors.phones import is_reference

_LETTERS_FIRST = r"(?<![A-Za-z0-9])"
_NO_MORE = r"(?![A-Za-z0-9]|[.\-/,][0-9])"


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def _is_day(day: int, month: int) -> bool:
    return 1 <= day <= 31 and 1 <= month <= 12


def _ssn(n: str) -> bool:
    """Area not 000, 666 or 9xx, but a taxpayer's number begins with 9; no part is zero."""
    taxpayer = n[0] == "9" and n[3:5] >= "50"
    return ((n[:3] not in ("000", "666") and n[0] != "9") or taxpayer) and n[3:5] != "00" and n[5:] != "0000"


def _steuer_id(n: str) -> bool:
    """One figure twice or thrice among the first ten, and ISO 7064 mod 11, 10."""
    return n[0] != "0" and len(set(n[:10])) in (8, 9) and iso_7064(n)


def iso_7064(n: str) -> bool:
    """Return True if the last figure checks the others by ISO 7064 mod 11, 10."""
    left = 10
    for d in n[:-1]:
        left = (int(d) + left) % 10 or 10
        left = left * 2 % 11
    return (11 - left) % 10 == int(n[-1])


def _rentenversicherung(n: str) -> bool:
    digits = n[:8] + f"{ord(n[8]) - 64:02d}" + n[9:11]
    products = (int(d) * w for d, w in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True))
    return sum(sum(map(int, str(p))) for p in products) % 10 == int(n[11])


def _nir(n: str) -> bool:
    number = n[:13].replace("2A", "19").replace("2B", "18")
    return number.isdigit() and (97 - int(number) % 97) == int(n[13:])


def _dni(n: str) -> bool:
    digits = n[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == n[-1]


def _codice_fiscale(n: str) -> bool:
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    values = [int(c) if c.isdigit() else ord(c) - 65 for c in n[:15]]
    return (sum(odd[v] for v in values[::2]) + sum(values[1::2])) % 26 == ord(n[15]) - 65


def _cpf(n: str) -> bool:
    return len(set(n)) > 1 and all(_weighted(n, range(k + 1, 1, -1)) * 10 % 11 % 10 == int(n[k]) for k in (9, 10))


def _cnpj(n: str) -> bool:
    weights = (6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2)
    return all(_weighted(n, weights[13 - k :]) * 10 % 11 % 10 == int(n[k]) for k in (12, 13))


def _pesel(n: str) -> bool:
    checks = (10 - _weighted(n, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)) % 10) % 10 == int(n[10])
    return checks and _is_day(int(n[4:6]), int(n[2:4]) % 20)


def _nip(n: str) -> bool:
    return _weighted(n, (6, 5, 7, 2, 3, 4, 5, 6, 7)) % 11 == int(n[9])


def _aadhaar(n: str) -> bool:
    """Verhoeff's sum over the dihedral group of ten elements."""
    step, left = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4), 0
    for i, d in enumerate(reversed(n)):
        value = int(d)
        for _ in range(i % 8):
            value = step[value]
        flip, a, b = left >= 5, left % 5, value % 5
        left = ((a - b if flip else a + b) % 5) + (5 if flip != (value >= 5) else 0)
    return left == 0


def _personnummer(n: str) -> bool:
    n = n[-10:]
    return luhn(n) and _is_day(int(n[4:6]) % 60, int(n[2:4]))


def _cpr(n: str) -> bool:
    return _is_day(int(n[:2]), int(n[2:4]))


def _fodselsnummer(n: str) -> bool:
    first = _weighted(n, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
    return (
        first
        and _weighted(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0
        and _is_day(int(n[:2]) % 40, int(n[2:4]) % 40)
    )


def _hetu(n: str) -> bool:
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(n[:6] + n[-4:-1]) % 31] == n[-1] and _is_day(int(n[:2]), int(n[2:4]))


def _ahv(n: str) -> bool:
    return (_weighted(n, (1, 3) * 7) % 10) == 0


def _rijksregister(n: str) -> bool:
    return int(n[9:]) in (97 - int(n[:9]) % 97, 97 - int("2" + n[:9]) % 97) and int(n[2:4]) <= 12


def _nric(n: str) -> bool:
    total = _weighted(n[1:8], (2, 7, 6, 5, 4, 3, 2)) + (4 if n[0] in "TG" else 3 if n[0] == "M" else 0)
    return n[8] in ("JZIHGFEDCBA"[total % 11], "XWUTRQPNMLK"[total % 11], "KLJNPQRTUWX"[10 - total % 11])


def _resident_china(n: str) -> bool:
    weights = [2 ** (17 - i) % 11 for i in range(17)]
    return "10X98765432"[_weighted(n[:17], weights) % 11] == n[17] and _is_day(int(n[12:14]), int(n[10:12]))


def _resident_korea(n: str) -> bool:
    return _is_day(int(n[4:6]), int(n[2:4]))


def _rut(n: str) -> bool:
    total = sum(int(d) * (2 + i % 6) for i, d in enumerate(reversed(n[:-1])))
    return "0K987654321"[total % 11] == n[-1]


def _cuit(n: str) -> bool:
    return (11 - _weighted(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11) % 11 == int(n[10])


def _tckn(n: str) -> bool:
    odd, even = sum(map(int, n[0:9:2])), sum(map(int, n[1:8:2]))
    return (odd * 7 - even) % 10 == int(n[9]) and sum(map(int, n[:10])) % 10 == int(n[10])


def _rodne_cislo(n: str) -> bool:
    return int(n) % 11 == 0 and _is_day(int(n[4:6]), int(n[2:4]) % 50 % 20)


def _snils(n: str) -> bool:
    return _weighted(n[:9], range(9, 0, -1)) % 101 % 100 == int(n[9:])


def _true(_: str) -> bool:
    return True


_DAY, _MONTH = r"(?:0[1-9]|[12][0-9]|3[01])", r"(?:0[1-9]|1[0-2])"
_FIGURES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (r"[0-9]{3}([ \-])[0-9]{2}\1[0-9]{4}", _ssn),  # United States
    (r"[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", _steuer_id),  # Germany
    (r"[1278] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", _nir),  # France
    (r"(?:[0-9]{8}|[0-9]{2}\.[0-9]{3}\.[0-9]{3}|[XYZ][ \-]?[0-9]{7})[ \-]?[A-Z]", _dni),  # Spain
    (r"[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}-?[0-9]{2}", _cpf),  # Brazil
    (r"[0-9]{2}\.?[0-9]{3}\.?[0-9]{3}/[0-9]{4}-?[0-9]{2}", _cnpj),
    (r"[0-9]{11}", _pesel),  # Poland
    (r"[0-9]{3}-(?:[0-9]{3}-[0-9]{2}-[0-9]{2}|[0-9]{2}-[0-9]{2}-[0-9]{3})", _nip),
    (r"[2-9][0-9]{3}([ \-])[0-9]{4}\1[0-9]{4}", _aadhaar),  # India
    (r"(?:19|20)?[0-9]{6}[\-+][0-9]{4}", _personnummer),  # Sweden
    (rf"{_DAY}{_MONTH}[0-9]{{2}}-[0-9]{{4}}", _cpr),  # Denmark
    (rf"{_DAY}{_MONTH}[0-9]{{2}} ?[0-9]{{5}}", _fodselsnummer),  # Norway
    (r"[0-9]{6}[\-+A-FU-Y][0-9]{3}[0-9A-Y]", _hetu),  # Finland
    (r"756[. ]?[0-9]{4}[. ]?[0-9]{4}[. ]?[0-9]{2}", _ahv),  # Switzerland
    (r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}[ \-][0-9]{3}[.\-][0-9]{2}", _rijksregister),  # Belgium
    (rf"[1-9][0-9]{{5}}(?:19|20)[0-9]{{2}}{_MONTH}{_DAY}[0-9]{{3}}[0-9Xx]", _resident_china),
    (rf"[0-9]{{2}}{_MONTH}{_DAY}-[1-8][0-9]{{6}}", _resident_korea),
    (r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk]", _rut),  # Chile
    (r"(?:20|23|24|27|30|33)-[0-9]{8}-[0-9]", _cuit),  # Argentina
    (r"[1-9][0-9]{10}", _tckn),  # Turkey
    (r"[0-9]{6}/[0-9]{4}", _rodne_cislo),  # Czechia, Slovakia
    (r"[0-9]{3}-[0-9]{3}-[0-9]{3}[ \-][0-9]{2}", _snils),  # Russia
)
"""Forms with many figures, and the check of what remains without gaps."""
_WITH_LETTERS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    (r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?(?:[0-9]{2} ?){3}[A-D]", _true),  # United Kingdom
    (r"[0-9]{2} ?[0-9]{6} ?[A-Z] ?[0-9]{3}", _rentenversicherung),  # Germany
    (r"[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-EHLMPRST][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z]", _codice_fiscale),  # Italy
    (r"[A-Z]{3}[ABCFGHLJPT][A-Z][0-9]{4}[A-Z]", _true),  # India
    (r"[STFGM][0-9]{7}[A-Z]", _nric),  # Singapore
    (rf"[A-Z]{{4}}[0-9]{{2}}{_MONTH}{_DAY}[HM][A-Z]{{5}}[A-Z0-9][0-9]", _true),  # Mexico
)
_GAPS = re.compile(r"[ .\-/+]")
_DIGIT_FORMS = [(re.compile(rf"(?<![A-Za-z0-9])(?<![0-9][.\-/,:]){form}{_NO_MORE}"), check) for form, check in _FIGURES]
_LETTER_FORMS = [(re.compile(rf"{_LETTERS_FIRST}{form}{_NO_MORE}"), check) for form, check in _WITH_LETTERS]
_MIXED = re.compile(r"[0-9] ?[A-Z](?![a-z])")
"""A part of each form with letters, by which a text without any is passed over."""


def national_id_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of numbers of persons with many figures."""
    for form, check in _DIGIT_FORMS:
        for match in form.finditer(text, start, end):
            bare = match.group().isdigit() and is_reference(text, match.start())
            if not bare and check(_GAPS.sub("", match.group()).upper()):
                yield match.span()


def lettered_id_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of numbers of persons with letters between few figures."""
    if _MIXED.search(text):
        for form, check in _LETTER_FORMS:
            yield from (m.span() for m in form.finditer(text) if check(_GAPS.sub("", m.group())))
