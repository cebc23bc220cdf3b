"""Values that are secret because of the name before them: passwords, tokens, cookies, dates of birth, and others.

The names are those of the languages in which requests are mostly written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache

from smallfirst.data.detectors.keys import changes

_NAMES = {
    "password": """
        password | passwd | passphrase | passcode | pwd | passwort | kennwort | mot de passe | mdp | contraseña |
        contrasena | senha | palavra-passe | wachtwoord | hasło | haslo | пароль | 密码 | 密碼 | パスワード |
        비밀번호 | şifre | lösenord | salasana | adgangskode | jelszó | heslo | pass | pw | _auth
    """,
    "code": """
        PIN | pin | CVV | CVC | cvv | cvc | cvv2 | OTP | security code | verification code | one-time code |
        login code | geheimzahl | prüfnummer | código de seguridad | código de verificación | code secret |
        codice di sicurezza | bestätigungscode
    """,
    "key": """
        api key | auth key | auth salt | nonce key | api secret | api token | access key | secret access key |
        secret key | access token | auth token | refresh token | session token | security token | id token |
        bearer token | private key | client secret | consumer secret | app secret | application key | app key |
        account key | shared access key | storage key | master key | service key | signing key | signing secret
        | encryption key | subscription key | license key | webhook secret | deploy token | private token |
        secret | token | credential | credentials | api-schlüssel | clave api | clave de api | clé api |
        clé d'api | chiave api | klucz api | 密钥 | authorization | private key id | bearer | account sid | key
    """,
    "national_id": """
        SSN | social security | SIN | social insurance | tax id | tax number | tax identification number |
        taxpayer id | TIN | ITIN | EIN | NINO | ni number | ni no | national insurance | UTR | nhs number | nhs no |
        national id | id card | id number | identity number | passport | driver's license | driver license |
        driving licence | steuer-id | steuerid | steueridentifikationsnummer | IdNr | steuernummer | St.-Nr |
        sozialversicherungsnummer | rentenversicherungsnummer | SVNR | personalausweis | ausweisnummer | reisepass |
        passnummer | numéro de sécurité sociale | numéro fiscal | SPI | passeport | DNI | NIE | NIF | CIF |
        seguridad social | pasaporte | codice fiscale | partita iva | P. IVA | passaporto | BSN | burgerservicenummer |
        rijksregisternummer | PESEL | NIP | numer dowodu | CPF | CNPJ | RG | CURP | RFC | aadhaar | PAN | TFN |
        tax file number | medicare number | personnummer | CPR | fødselsnummer | henkilötunnus | AHV | AVS | RUT |
        CUIT | CUIL | vat number | vat id | vat no | ust-idnr | ust-id | ИНН | СНИЛС | паспорт | 身份证 |
        マイナンバー | 주민등록번호 | NRIC | EGN | CNP | OIB | AFM | kimlik no
    """,
    "birth_date": """
        DOB | d.o.b | date of birth | birth date | birthday | i was born | i'm born | born | geburtsdatum |
        geburtstag | geboren | geb. | date de naissance | née le | né le | né(e) le | fecha de nacimiento |
        fecha nacimiento | nací el | nacido el | nacida el | data di nascita | nato il | nata il | geboortedatum |
        data de nascimento | nasci em | nascido em | nascida em | data urodzenia | urodzony | ur. | urodzona |
        дата рождения | родился | родилась | 出生日期 | 生年月日 | 생년월일 | födelsedatum | fødselsdato |
        syntymäaika | doğum tarihi | data nașterii | تاريخ الميلاد
    """,
    "phone": """
        tel | telefon | telephone | phone | mobile | mobil | cell phone | my cell | handy | handynummer | fax |
        whatsapp | call me | reach me | text me | ring me | telefonnummer | rückruf | téléphone | portable |
        appelez-moi | teléfono | telefono | móvil | celular | cellulare | telemóvel | telefoonnummer | numer telefonu |
        llámame | zadzwoń | телефон | тел | 电话 | 手机 | 電話 | 携帯 | 전화 | 휴대폰 | फ़ोन | मोबाइल | هاتف | جوال |
        my number | meine nummer | mi número | mon numéro
    """,
    "card": """
        card number | card no | credit card | debit card | kreditkarte | kartennummer | numéro de carte |
        carte bancaire | tarjeta de crédito | número de tarjeta | carta di credito | cc number
    """,
}
WORDS = {kind: tuple(name.strip() for name in names.split("|")) for kind, names in _NAMES.items()}
"""Names by kind; one with capitals is a name only as it is written, since `ein`, `sin` and `pan` are words as well."""
ALWAYS = {
    **dict.fromkeys(("passw", "pwd", "密码", "密碼", "パスワード", "비밀번호"), "password"),
    **dict.fromkeys(("secret", "token", "apikey", "_key", "key=", "key:", 'key"', "key'", "key =", "密钥"), "key"),
    **dict.fromkeys(("_auth", "_pass"), "password"),
    **dict.fromkeys(("出生日期", "生年月日", "생년월일", "birth"), "birth_date"),
    **dict.fromkeys(("电话", "手机", "電話", "携帯", "전화", "휴대폰", "phone", "फ़ोन", "मोबाइल"), "phone"),
    **dict.fromkeys(("身份证", "マイナンバー", "주민등록번호", "steuerid", "idnr"), "national_id"),
}
"""Kinds by parts of names that are looked for inside of longer words, as in `dbPassword`."""

_SPLIT = re.compile(r"[^\W\d_]+")
_SPACES = str.maketrans(dict.fromkeys(r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~0123456789""", " "))
_STEMS: dict[str, list[tuple[str, frozenset[str]]]] = {}
"""By the longest part of a name the kinds and parts of all such. A text without any, and without `ALWAYS`, has none."""
for _kind, _words in WORDS.items():
    for _word in _words:
        _parts = _SPLIT.findall(_word.lower())
        _STEMS.setdefault(max(_parts, key=len), []).append((_kind, frozenset(_parts)))
_STEM_NAMES = frozenset(_STEMS)
_BEFORE, _AFTER, _AFTER_NUMBER = 40, 420, 100
"""Characters around a name in which its value is looked for."""


def _name(word: str) -> str:
    """Return the pattern of a name; in one of several words they may be joined by any sign or none."""
    plain = r"[ _\-.]?".join(re.escape(part) for part in re.split("[ _-]", word) if part)
    pattern = ("_" if word[0] == "_" else "") + plain
    pattern = pattern if word != word.lower() else f"(?i:{pattern})"
    inside = len(word) >= 6 or (not word.isascii() and ord(word[0]) > 0x2E80)
    return pattern if inside and word != "bearer" else rf"(?<![^\W_]){pattern}(?![^\W_\d])"


def _names(kind: str) -> str:
    return "(?:" + "|".join(_name(word) for word in sorted(WORDS[kind], key=lambda w: (-len(w), w))) + ")"


_VERB = (
    r"is|was|are|to|as|ist|war|lautet|lauten|auf|als|est|était|es|era|è|é|era|jest|to|to:|är|er|on|no\.?|nr\.?|num\.?|number|nummer|n[°ºo]\.?"
    r"|numéro|número|numero|code|id|key"
)
_GAP = (
    rf"[\"'\]\)]{{0,2}}[\s:=#>|(*`\-]{{0,4}}(?:(?<![^\W_])(?:{_VERB})(?![^\W_])[\s:=#\"'(*`]{{0,4}}){{0,3}}"
    r"[\"'(\[]{0,2}"
)
_FAR = r"[^0-9\n]{0,24}?"
_MONTH = r"[^\W\d_]{3,12}\.?"
_DATE = (
    rf"(?:[0-9]{{1,2}}(?:st|nd|rd|th|er|\.|º)?[ \-](?:(?:of|de|di)[ ])?{_MONTH}(?:[ ]de)?[ ,\-]{{1,2}}(?:[0-9]{{4}})"
    rf"|{_MONTH}[ ][0-9]{{1,2}}(?:st|nd|rd|th)?,?[ ](?:[0-9]{{4}}))"
)
_FIGURES = (
    r"(?:[0-9]{1,2}[ ]?[.\-/ ][ ]?[0-9]{1,2}[ ]?[.\-/ ][ ]?(?:[0-9]{4}|[0-9]{2})"
    r"|[0-9]{4}[.\-/ ][0-9]{1,2}[.\-/ ][0-9]{1,2}"
    r"|[0-9]{4}[年년] ?[0-9]{1,2}[月월] ?[0-9]{1,2}[日일]?|(?:19|20)[0-9]{6})(?![0-9])"
)
_ANY_DATE = re.compile(rf"(?:{_FIGURES}|{_DATE})")
_STEP = r"[ .\-/()]{0,2}"
_NUMBER = r"(?:(?:[A-Z]{1,3}[ \-]|[A-Za-z]{1,6})?[0-9](?:[.\-/+]{0,2}[A-Za-z0-9]|[ ][0-9]|[ ][A-Z](?![A-Za-z]))*+)"
_PATTERNS = {
    "code": re.compile(
        rf"{_names('code')}{_GAP}(?P<v>[0-9]{{3,8}})(?![0-9]|[.\-/,][0-9])"
        rf"|(?<![\w.,])(?P<v2>[0-9]{{4,8}})[ ](?:is|ist|es|est|è|é)[ ]\w{{2,5}}[ ](?:\w{{1,12}}[ ])?{_names('code')}"
    ),
    "national_id": re.compile(rf"{_names('national_id')}{_FAR}(?<![A-Za-z0-9])(?P<v>{_NUMBER})"),
    "birth_date": re.compile(rf"(?P<n>{_names('birth_date')}){_FAR}(?<![^\W_])(?P<v>{_FIGURES}|{_DATE})"),
    "phone": re.compile(rf"{_names('phone')}[^0-9\n]{{0,20}}?(?P<v>[+(]{{0,2}}[0-9](?:{_STEP}[0-9]){{5,13}})(?![0-9])"),
    "card": re.compile(rf"{_names('card')}{_FAR}(?P<v>[0-9](?:[ .\-_/]{{0,2}}[0-9]){{11,18}})(?![0-9])"),
}
_ASSIGN = (
    r"(?:[\"'\]\)*`]{0,3}\s{0,3}(?P<a>=>|:=|={1,3}|:|->|>)\s{0,3}|[\"']\s?,\s{0,2}(?=[\"'])"
    r"|[\"'],?\s{1,3}[\"']?value[\"']?\s?[=:]\s?(?=[\"']))"
)
_SAY = (
    r"(?:[ ](?:for|of|für|zu|von|de|du|per|del|al|do)[ ][^\n:=]{1,30}?|[ ](?:tempor|provis|initial|actu)\w{0,6})?"
    r"(?P<s>[ ]{1,2}(?:is|was|are|ist|war|lautet|est|es|è|é|jest|to|auf|är|er):?|[ ]{0,2}:)[ ]{1,2}"
    r"|(?P<c>是|为|為|は|가|은|는)\s?"
)
_VALUE = (
    r"(?:(?P<q>[\"'`“„«])(?P<quoted>[^\n]{1,300}?)(?:(?P=q)|[”“»])"
    r"|[\"'`]?(?P<bare>(?:(?!&[\w.]{1,30}=)(?!</)[^\s\"'`])+))"
)
_FLAG = r"(?P<f>[ ])"
_ANY_KEY = r"(?P<k>\b\w{1,24}?(?:_key|_KEY|[a-z]Key))"
_SECRET = {
    "password": re.compile(
        rf"(?P<n>(?P<d>(?<![\w\-])--?(?:[\w\-]{{1,20}}?(?<![A-Za-z]))?)?{_names('password')}\d?)(?:{_ASSIGN}|{_SAY}|{_FLAG}){_VALUE}"
    ),
    "key": re.compile(
        rf"(?P<n>(?P<d>(?<![\w\-])--?(?:[\w\-]{{1,20}}?(?<![A-Za-z]))?)?(?:{_names('key')}|{_ANY_KEY})\d?)(?:{_ASSIGN}|{_SAY}|{_FLAG}){_VALUE}"
    ),
}
_BASIC = re.compile(
    r"(?i:\bauthorization)[\"'\]]{0,2}\s{0,2}[:=]\s{0,2}[\"'f]{0,2}"
    r"(?P<v>(?:Digest|OAuth|Hawk|AWS4-HMAC-SHA256)[ ][^\n]{6,}|(?:[A-Za-z][\w\-]{2,20}[ ]{1,3})?[^\s\"'`<>]{6,})"
    r"|(?i:\bbearer)[ :]{1,3}(?P<v2>[A-Za-z0-9_\-.~+/=]{12,})"
    r"|(?:-u|--user|--proxy-user)[ =]{1,2}[\"']?(?P<v3>[^\s:\"'<>$]{1,64}:[^\s\"'<>$]{2,})"
    r"|\b(?:mysql\w{0,10}|mariadb\w{0,10}|sshpass)\b[^\n|;]{0,80}?[ ]-p[ ]?[\"']?(?P<v5>[^\s\"']{3,})"
    r"|(?i:<(?P<tag>\w{0,20}(?:password|secret|token|apikey))>)(?P<v4>[^<\n]{3,200})</"
)
_COOKIE = re.compile(
    r"(?i:\bcookies?[\"'\]]{0,2}\s{0,3}[:=]\s{0,3}|(?<!\S)(?:-b|--cookie)[ =]{1,2})"
    r"[\"'`]?(?P<v>[^\s=;,\"'`{}]{1,80}=[^\r\n\"'`]{2,})"
    r"|(?i:(?<![\w.?&])(?:phpsessid|jsessionid|asp\.net_sessionid|sessionid|session_id|session|connect\.sid|sid|auth_token|csrftoken"
    r"|laravel_session|_session|remember_token)=|(?:phpsessid|jsessionid|sessionid|connect\.sid|csrftoken|auth_token)[\"']\s?:\s?[\"'])"
    r"(?P<v2>[^\s;,&\"'`<>]{12,})"
)
_PERSON = re.compile(
    r"\b(?:I|I'm|[Mm]y|[Pp]atient|[Cc]ustomer|[Cc]lient|[Ee]mployee|[Aa]pplicant|[Ii]nsured|[Mm]ember)\b"
)
_USER = re.compile(r"\b(?:login|user|username|machine|usuario|benutzer)\b", re.IGNORECASE)
_UNTIL_GAP = re.compile(r"[^\s\"'`]*+")
_BASIC_SIGNS = ("authorization", "bearer", "-u ", "-user", "</", " -p")
_COOKIE_SIGNS = ("cookie", "sess", "sid=", "-b ", "token=", "csrftoken", "auth_token")
_DIGIT = re.compile("[0-9]")
_NO_VALUES = frozenset((
    "string", "str", "text", "number", "integer", "int", "boolean", "bool", "required", "optional", "none",
    "null", "nil", "undefined", "true", "false", "yes", "no", "password", "passwort", "kennwort", "contraseña",
    "secret", "token", "key", "value", "redacted", "hidden", "empty", "unknown", "n/a", "missing", "invalid",
    "incorrect", "wrong", "expired", "correct", "example", "reset", "getpass", "input", "prompt", "os.environ",
    "process.env",
))  # fmt: skip
_CALL = re.compile(r"(?:[a-z_][a-z0-9_]*|[a-z]\w*(?:\.\w+)+)[(\[),\]]")
_CODE_LIKE = re.compile(
    r"[\[<{$%*]|x{3,}$|\.{3}|…|your|os\.|process\.|env\.|config\.|self\.|settings\.|args\.|this\.|getenv|•",
    re.IGNORECASE,
)


def labelled_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield spans of values and their kinds."""
    lowered = text.lower()
    for kind, places in _windows(text, lowered).items():
        for place in places:
            yield from _secrets(kind, text, *place) if kind in _SECRET else _numbers(kind, text, *place)
    if any(sign in lowered for sign in _BASIC_SIGNS):
        yield from _header_spans(text)
    if any(sign in lowered for sign in _COOKIE_SIGNS):
        for match in _COOKIE.finditer(text):
            yield *match.span("v" if match["v"] else "v2"), "cookie"


def _secrets(kind: str, text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    for match in _SECRET[kind].finditer(text, start, end):
        if span := _secret_span(kind, match):
            yield *span, kind


def _numbers(kind: str, text: str, start: int, end: int) -> Iterator[tuple[int, int, str]]:
    if _DIGIT.search(text, start, end):
        for match in _PATTERNS[kind].finditer(text, start, end):
            name = "v" if match["v"] else "v2"
            before = text[max(0, match.start() - 60) : match.start()]
            if _holds(kind, match[name], match.groupdict().get("n") or "", before):
                yield *match.span(name), "password" if kind == "code" else kind


def _header_spans(text: str) -> Iterator[tuple[int, int, str]]:
    for match in _BASIC.finditer(text):
        name = next(name for name in ("v", "v2", "v3", "v4", "v5") if match[name] is not None)
        value = match[name].rstrip(".,;)]}")
        if not _CODE_LIKE.match(value) and (name in ("v3", "v4", "v5") or _has_figures(value) or len(value) >= 24):
            yield match.start(name), match.start(name) + len(value), "password" if name in ("v3", "v5") else "key"


def _windows(text: str, lowered: str) -> dict[str, list[tuple[int, int]]]:
    """Return by kind the places around its names, from the left and without overlaps."""
    words = set(lowered.translate(_SPACES).split())
    kinds = {stem: {kind for kind, parts in _STEMS[stem] if parts <= words} for stem in _STEM_NAMES & words}
    kinds |= {part: {*kinds.get(part, ()), named} for part, named in ALWAYS.items() if part in lowered}
    starts: dict[str, list[int]] = {}
    for stem, named in kinds.items():
        at = lowered.find(stem)
        while at >= 0:
            for kind in named:
                starts.setdefault(kind, []).append(at)
            at = lowered.find(stem, at + len(stem))
    found: dict[str, list[tuple[int, int]]] = {}
    for kind, places in starts.items():
        if len(lowered) != len(text):  # a capital that becomes two small letters
            found[kind] = [(0, len(text))]
            continue
        merged: list[tuple[int, int]] = []
        for at in sorted(places):
            start, end = max(0, at - _BEFORE), min(len(text), at + (_AFTER if kind in _SECRET else _AFTER_NUMBER))
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        found[kind] = merged
    return found


def _secret_span(kind: str, match: re.Match[str]) -> tuple[int, int] | None:
    """Return the span of a value that is no word, variable or placeholder; None if it is one."""
    text, quoted = match.string, match["quoted"] is not None
    value = match["quoted"] if quoted else match["bare"]
    if not quoted:
        value = (value.split(";")[0] if match["a"] else value).rstrip(".,)]}?:;")
        if _CALL.match(match["bare"]) or ("(" in value and kind == "key"):
            return None
    if not is_secret_value(kind, "key" if kind == "key" and match["k"] else match["n"], value):
        return None
    start = match.start("quoted" if quoted else "bare")
    end = start + len(value)
    if match["f"] and not match["d"]:  # the name and the value alone: `password r00t`
        before = text[max(0, match.start() - 60) : match.start()]
        told = _has_figures(value) if kind == "key" else bool(_USER.search(before))
    elif kind == "password":
        alone = match["a"] and not text[end : end + 80].split("\n")[0].strip(" \r\t,;\"'`}")
        told = bool(quoted or match["d"] or (match["a"] or "").startswith("=") or alone or _is_mixed(value))
    else:
        told = True
    rest = _UNTIL_GAP.match(text, end) if end >= match.endpos else None  # the window cut it
    return (start, rest.end() if rest else end) if told else None


def is_secret_value(kind: str, name: str, value: str) -> bool:
    """Return True if a password or key may look like the value."""
    plain = value.strip().lower()
    if not plain or plain in _NO_VALUES or plain in name.lower() or (len(plain) < 40 and _CODE_LIKE.match(plain)):
        return False
    if kind == "password":
        return len(plain) >= 3
    if " " in plain.removeprefix("bearer ").removeprefix("basic "):
        return False
    words = name.lower().strip("-_\"' ")
    if words in ("key", "token", "id token", "credentials", "credential", "secret", "bearer"):
        least = 20 if words == "key" else 8 if words == "secret" else 12
        return len(plain) >= least and _has_figures(value) and (words != "key" or changes(value) > 0.3)
    return len(plain) >= 8 and (_has_figures(value) or changes(value) > 0.3)


def _has_figures(value: str) -> bool:
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def _is_mixed(value: str) -> bool:
    """Return True if a word is none of a language: with figures or signs, or capitals inside."""
    core = value.strip("-'.!,")
    return len(value) >= 4 and (not core.isalpha() or (any(c.isupper() for c in core[1:]) and not core.isupper()))


def _holds(kind: str, value: str, name: str, before: str) -> bool:
    n_digits = sum(c.isdigit() for c in value)
    if kind == "national_id":
        return n_digits >= 5 and not _ANY_DATE.fullmatch(value)
    if kind == "phone":
        return not _ANY_DATE.fullmatch(value)
    if kind == "birth_date":
        years = [int(found) for found in re.findall(r"[0-9]{4}", value[-4:] + " " + value[:4])]
        told = name.lower() != "born" or not any(c.isalpha() for c in value) or bool(_PERSON.search(before))
        return told and (not years or any(1915 <= year <= datetime.now(UTC).year for year in years))
    return True


_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_\-.\s]+")
_KINDS = {word.lower().replace("-", " ").strip("_:. "): kind for kind, words in WORDS.items() for word in words} | {
    word.replace(" ", ""): kind for kind, words in WORDS.items() for word in words if " " in word
}
_KINDS |= {"cookie": "cookie", "cookies": "cookie", "birthdate": "birth_date", "key": "", "bearer": ""}


@lru_cache(maxsize=4096)
def labelled_kind(name: str) -> str:
    """Return the kind of value that a name in JSON stands for (`dbPassword`: password); empty if of none."""
    words = [word for word in _CAMEL.sub(" ", name.rstrip("0123456789")).lower().split(" ") if word]
    for i in range(max(0, len(words) - 5), len(words)):
        if kind := _KINDS.get(" ".join(words[i:])):
            return kind
    return _labelled_number(words)


def _labelled_number(words: list[str]) -> str:
    if len(words) > 1 and words[-1] in ("number", "no", "num", "nr"):
        return labelled_kind(" ".join(words[:-1]))
    return ""


def is_labelled(name: str, value: str) -> str:
    """Return the kind of a whole value that stands under a name in JSON; empty if it is no secret."""
    kind, text = labelled_kind(name), value.strip()
    n_digits = sum(c.isdigit() for c in text)
    if not kind or len(text) > 4000:
        return ""
    if kind in ("password", "key"):
        return kind if is_secret_value(kind, name, text) and len(text) <= (128 if kind == "password" else 4000) else ""
    if kind == "cookie":
        return kind if "=" in text else ""
    if kind == "birth_date":
        return kind if _ANY_DATE.search(text) and len(text) <= 40 else ""
    fewest = {"code": 3, "national_id": 5, "phone": 6, "card": 12}[kind]
    if n_digits < fewest or len(text) > 40 or (kind != "national_id" and any(c.isalpha() for c in text)):
        return ""
    return "password" if kind == "code" else kind
