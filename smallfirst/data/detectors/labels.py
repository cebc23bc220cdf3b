"""Names that stand before secret values, in the languages in which requests are mostly written."""

from __future__ import annotations

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
