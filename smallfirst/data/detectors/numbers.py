"""Numbers of persons: payment cards, IBANs, addresses on the internet, telephone numbers, national identity numbers.

They are told by their sums and forms. Telephone numbers are checked by Google's rules for each country
(`phonenumbers`), identity numbers by the rules that the issuing offices publish; a form that other numbers have as well
(nine figures) counts only after its name (`labelled`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import phonenumbers

_GAP = r"[\s.\-_/·,]{0,3}"
_CLUSTER = re.compile(r"[0-9](?:[\s.\-_/·,()+]{0,3}[0-9]){6,}+")
_DIGITS = re.compile(rf"[0-9](?:{_GAP}[0-9])*+")
_GROUP = re.compile("[0-9]++")
_MOST, _FEWEST = 19, 12
_USUAL = {
    (4, 4, 4, 4),
    (4, 6, 5),
    (4, 6, 4),
    (4, 4, 4, 4, 3),
    (4, 4, 4, 4, 2),
    (4, 4, 4, 1),
    (8, 8),
    (6, 10),
    (4, 4, 8),
}
_ISSUED = re.compile(
    r"4(?:.{12}|.{15}|.{18})"  # Visa
    r"|(?:5[1-5]|2(?:22[1-9]|2[3-9].|[3-6]..|7[01].|720)).{12,14}"  # Mastercard
    r"|3[47].{13}|3(?:0[0-5]|6.|8.|9.).{11,16}|35(?:2[89]|[3-8].).{12,15}"  # American Express, Diners Club, JCB
    r"|(?:6011|64[4-9].|65..|60..|62..|81..|82..|220[0-4]|9792).{12,15}"  # Discover, RuPay, UnionPay, Mir, Troy
    r"|(?:50|5[6-9]|6[0-9])(?:.{14}|.{16,17})"  # Maestro
)
"""First figures and lengths by issuer (ISO/IEC 7812, as the issuers publish them)."""
_ISSUED_SHORT = re.compile(r"(?:50|5[6-9]|6[0-9]).{10,13}")
"""Maestro's short numbers, which an article's number may be as well: only after a word for a card."""
_CARD_WORD = re.compile(
    r"card|karte|carte|tarjeta|carta|kaart|kart|cartão|cartao|visa|amex|debit|credit|kredit|maestro|\bcc\b|\bpan\b"
    r"|карт|カード|卡|카드|بطاق|कार्ड",
    re.IGNORECASE,
)
_NEAR = 60
"""Characters before a number in which a word tells what it is."""
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[ .\-]?[0-9]{2}(?=[\s.\-]{0,2}[A-Za-z0-9])")
_IBAN_LENGTHS = {
    length: countries.split()
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL OM SO", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
}  # fmt: skip
_LENGTH = {country: length for length, countries in _IBAN_LENGTHS.items() for country in countries}
"""Characters of an IBAN by country (the registry of ISO 13616)."""
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?[0-9A-Za-z_])")
_DOTTED = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_VERSION = re.compile(r"(?:version|release|firmware|build|driver|\bEC)\D{0,3}$", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")


def number_windows(text: str) -> list[tuple[int, int]]:
    """Return where seven or more figures stand together, with room for letters around, from the left."""
    found: list[tuple[int, int]] = []
    for match in _CLUSTER.finditer(text):
        start, end = max(0, match.start() - 16), min(len(text), match.end() + 8)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def card_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of figures with the beginning, length, groups and sum of a card, from the left, longest first."""
    for match in _DIGITS.finditer(text, start, end):
        if match.end() - match.start() < _FEWEST:
            continue
        groups = [group.span() for group in _GROUP.finditer(text, *match.span())]
        i = 0
        while i < len(groups):
            j = _last_of_card(text, groups, i)
            if j is not None:
                yield groups[i][0], groups[j][1]
            i = i + 1 if j is None else j + 1


def _last_of_card(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """Return the last group of a card number that begins with group `first`; None if there is none."""
    digits, fitting, widths = "", None, []
    start = groups[first][0]
    if (first and text[start - 1] == ",") or text[max(start - 2, 0) : start] == "0.":  # an amount, a list
        return None
    for j in range(first, len(groups)):
        begin, end = groups[j]
        if len(digits) + end - begin > _MOST:
            break
        digits += text[begin:end]
        widths.append(end - begin)
        short = _ISSUED_SHORT.fullmatch(digits) is not None
        if len(digits) < _FEWEST or not (short or _ISSUED.fullmatch(digits)) or not luhn(digits):
            continue
        usual = not short and (len(widths) == 1 or tuple(widths) in _USUAL)
        if usual or _CARD_WORD.search(text, max(0, start - _NEAR), start):
            fitting = j
    return fitting


def luhn(digits: str) -> bool:
    """Return True if the sum of the digits, every second one from the right doubled, ends in 0 (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return (sum(map(int, digits[::-2])) + sum(doubled)) % 10 == 0


def iban_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of IBANs, in capitals or not, with any gaps, of their country's length and the right sum."""
    done = 0
    for match in _IBAN_START.finditer(text, start, end):
        length = _LENGTH.get(match.group()[:2].upper(), 0)
        if match.start() < done or not length:
            continue
        plain, at, gap = "", match.start(), 0
        while at < len(text) and len(plain) < length and gap < 4:
            character = text[at]
            gap = 0 if character.isalnum() else gap + 1
            if not (character.isalnum() and character.isascii()) and not (character in ".-" or character.isspace()):
                break
            plain += character.upper() if character.isalnum() else ""
            at += 1
        if len(plain) == length and not text[at : at + 1].isalnum() and _mod97(plain[4:] + plain[:4]) == 1:
            done = at
            yield match.start(), at


def _mod97(text: str) -> int:
    return int("".join(str(int(c, 36)) for c in text)) % 97


def ip_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of addresses of IPv4 and IPv6."""
    if text.count(".") >= 3 and _DOTTED.search(text):
        for match in _IPV4.finditer(text):
            if not _VERSION.search(text, max(0, match.start() - 12), match.start()):
                yield match.span()
    if "::" in text or text.count(":") >= 7:
        yield from (match.span() for match in _IPV6.finditer(text) if _is_ipv6(match.group()))


def _is_ipv6(text: str) -> bool:
    if sum(c != ":" for c in text) < 2:  # "::" and "a::" are punctuation more often than addresses
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


# Telephone numbers

_STEP = r"[ .\-/()]{0,2}"
_NOT_INSIDE = r"(?<![\w+])(?<![0-9][.,\-/])"
_ABROAD = re.compile(rf"{_NOT_INSIDE}\(?(?:\+|00|011[ \-]?)[ ]?(?:[1-9](?:{_STEP}[0-9]){{6,14}})(?![0-9])")
_HOME = re.compile(
    rf"{_NOT_INSIDE}(?:\(0[1-9][0-9]{{0,4}}\)(?:{_STEP}[0-9]){{5,10}}|0[1-9][0-9]{{1,4}}(?:{_STEP}[0-9]){{4,10}}"
    rf"|0[1-9][ .\-][0-9]{{8}}|0[1-9](?:[ .\-][0-9]{{2}}){{4}})(?![0-9])"
)
"""With the 0 that many countries put before the number of a town."""
_AMERICA = re.compile(
    rf"{_NOT_INSIDE}(?:1[ .\-])?(?:\([0-9]{{3}}\) ?|[0-9]{{3}}[ .\-])[0-9]{{3}}[ .\-][0-9]{{4}}(?![\w]|[.\-][0-9])"
)
_GROUPED = re.compile(
    rf"{_NOT_INSIDE}(?:\([1-9][0-9]\) ?[0-9]{{4,5}}[ \-]?[0-9]{{4}}"
    r"|8[ \-]?\(?[3-9][0-9]{2}\)?[ \-]?[0-9]{3}[ \-]?[0-9]{2}[ \-]?[0-9]{2}"
    r"|[1-9][0-9]{1,4}(?:([ .\-])[0-9]{2,5})(?:\1[0-9]{2,4}){0,3})(?![\w]|[.,\-/][0-9])"
)
"""In groups, without that 0."""
_WITH_ZERO = (
    "DE", "GB", "FR", "IT", "NL", "BE", "CH", "AT", "AU", "JP", "SE", "IE", "ZA", "KR", "TR", "NZ", "RO", "ID",
)  # fmt: skip
_WITHOUT_ZERO = ("ES", "IN", "PL", "PT", "CN", "BR", "IT", "RU", "CZ", "MX")
_WIDTHS = {(3, 3, 3), (3, 2, 2, 2), (5, 5), (3, 4, 4), (2, 5, 4), (2, 4, 4), (3, 3, 4), (2, 3, 2, 2), (1, 3, 3, 2, 2)}
"""Figures of the groups in which numbers without a 0 are written."""
_GROUPS = re.compile("[0-9]+")


_REFERENCE = re.compile(
    r"(?:order|invoice|ticket|case|ref|reference|item|id|article|artikel|sku|policy|police|account|konto|parcel|tracking|isbn|commande"
    r"|facture|pedido|factura|ordine|fattura|bestellung|rechnung|auftrag|vorgang|kunden|customer|contract|vertrag|serial|version|[#/=])"
    r"[\W_]{0,3}(?:(?:no|nr|number|nummer|num|n|id|is|ist|code)[\W_]{0,3}){0,2}(?:[A-Z]{1,3}-?)?$",
    re.IGNORECASE,
)
"""What stands before a number of something else."""
_ROW = re.compile(r"[ \t,;|]{1,3}[+\-]?[0-9]")
_ROW_BEFORE = re.compile(r"[0-9][ \t,;|]{1,3}$")


def is_reference(text: str, start: int) -> bool:
    """Return True if the words before a number say that it is one of an order, an account, …."""
    return _REFERENCE.search(text, max(0, start - 30), start) is not None


def phone_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of telephone numbers that are written as such; a bare row of figures needs its name before it."""
    yield from (m.span() for m in _ABROAD.finditer(text, start, end) if is_possible(m.group()))
    for match in _HOME.finditer(text, start, end):
        if _stands_alone(match) and is_valid(match.group(), _WITH_ZERO):
            yield match.span()
    yield from (m.span() for m in _AMERICA.finditer(text, start, end))
    yield from (m.span() for m in _GROUPED.finditer(text, start, end) if _stands_alone(m) and _is_grouped(m.group()))


def _stands_alone(match: re.Match[str]) -> bool:
    """Return False for one number of a row or table, and for one that has another name."""
    text, (start, end) = match.string, match.span()
    number = match.group()
    widths = [len(group) for group in _GROUPS.findall(number)]
    if sum(widths) < (7 if "(" in number else 9):
        return False
    if len(widths) > 6 or widths.count(1) > 1 or ("." in number and " " in number):
        return False
    in_row = _ROW.match(text, end) or _ROW_BEFORE.search(text, max(0, start - 4), start)
    return not in_row and not is_reference(text, start)


@lru_cache(maxsize=1024)
def is_possible(number: str) -> bool:
    """Return True for a number with a country's code that has a length of this country."""
    digits = re.sub(r"[^0-9]", "", number)
    digits = digits if "+" in number else digits[3:] if digits.startswith("011") else digits[2:]
    try:
        return bool(phonenumbers.is_possible_number(phonenumbers.parse("+" + digits)))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(maxsize=1024)
def is_valid(number: str, countries: tuple[str, ...]) -> bool:
    """Return True for a number that one of the countries has given out, or may give out."""
    for country in countries:
        try:
            parsed = phonenumbers.parse(number, country)
        except phonenumbers.NumberParseException:
            return False
        if phonenumbers.is_valid_number(parsed):
            return True
    return False


@lru_cache(maxsize=1024)
def _is_grouped(number: str) -> bool:
    """Return True for a mobile number in the groups of its country; amounts and years are grouped as well."""
    widths = [len(group) for group in _GROUPS.findall(number)]
    if tuple(widths) not in _WIDTHS or (set(widths) == {3} and number.endswith("000")):
        return False
    for country in _WITHOUT_ZERO:
        try:
            parsed = phonenumbers.parse(number, country)
        except phonenumbers.NumberParseException:
            return False
        if phonenumbers.is_valid_number(parsed):
            kind = phonenumbers.number_type(parsed)
            if (
                kind in (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)
                or "(" in number
            ):
                return True
    return False


# Numbers of persons at states, insurers and tax offices

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
