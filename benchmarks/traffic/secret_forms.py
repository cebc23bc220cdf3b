"""Realistic texts that hold one secret each, all made up. Keys are put together when they are asked for, so that no scanner finds one here."""

from __future__ import annotations

import base64
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
    add(
        "key",
        "temporary credentials: @@ (expires at noon)",
        make.token("AS" + "IA", 16, string.ascii_uppercase + "234567"),
    )
    add("key", "git clone with the token @@ gives 403", make.token("gh" + "p_", 36))
    add("key", "GITHUB_TOKEN: @@", make.token("github" + "_pat_", 22) + "_" + make.token("", 59))
    add("key", "curl --header 'PRIVATE-TOKEN: @@' .../projects", make.token("gl" + "pat-", 20))
    add("key", "the bot's token is @@", make.token("xo" + "xb-", 12, string.digits) + "-" + make.token("", 24))
    add(
        "key",
        "SLACK_APP=@@",
        make.token("xa" + "pp-1-", 10, string.ascii_uppercase + string.digits) + "-" + make.hex(64),
    )
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
    add(
        "cookie",
        "curl -b '@@' shop.example.com",
        f"PHPSESSID={make.token('', 26, string.ascii_lowercase + string.digits)}",
    )
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


_URLSAFE = string.ascii_letters + string.digits + "-_"
_LOWER = string.ascii_lowercase + string.digits


def unseen_forms() -> list[SecretForm]:
    """Return the 226 forms."""
    make = Maker(2)
    rows: list[tuple[str, str, str]] = []

    def add(kind: str, template: str, secret: str) -> None:
        rows.append((kind, template.replace("@@", secret), secret))

    _keys(add, make)
    _configuration(add, make)
    _passwords(add, make)
    _people(add)
    _payments(add)
    _addresses(add, make)
    _tickets(add)
    _tool_calls(add, make)
    return [SecretForm(*row) for row in rows]


def _keys(add, make) -> None:  # noqa: ANN001
    add("key", "huggingface-cli login --token @@", make.token("h" + "f_", 34, string.ascii_letters))
    add("key", 'from huggingface_hub import login\nlogin("@@")', make.token("h" + "f_", 34, string.ascii_letters))
    add("key", "//registry.npmjs.org/:_authToken=@@", make.token("np" + "m_", 36))
    add("key", "[pypi]\nusername = __token__\npassword = @@", make.token("py" + "pi-AgEIcHlwaS5vcmc", 120, _URLSAFE))
    add("key", "SENDGRID_API_KEY='@@'", make.token("S" + "G.", 22, _URLSAFE) + "." + make.token("", 43, _URLSAFE))
    add("key", "client = Client('@@', token)", "A" + "C" + make.hex(32))
    add("key", "TWILIO_AUTH_TOKEN=@@", make.hex(32))
    add("key", "os.environ['GROQ_API_KEY'] = '@@'", make.token("gs" + "k_", 52))
    add("key", "export XAI_API_KEY=@@", make.token("xa" + "i-", 80))
    add("key", "replicate token: @@", make.token("r" + "8_", 37))
    add("key", "pplx says invalid key @@", make.token("pp" + "lx-", 48))
    add("key", "openrouter: @@", "sk" + "-or-v1-" + make.hex(64))
    add(
        "key",
        "Langfuse secret @@ and public pk-lf-...",
        "sk" + "-lf-" + "-".join(make.hex(n) for n in (8, 4, 4, 4, 12)),
    )
    add("key", "mistral_api_key: @@", make.token("", 32))
    add("key", 'COHERE_API_KEY = "@@"', make.token("", 40))
    add("key", "DATABRICKS_TOKEN=@@", "da" + "pi" + make.hex(32))
    add(
        "key",
        "databricks configure --host https://adb-1.azuredatabricks.net --token @@",
        "da" + "pi" + make.hex(32) + "-3",
    )
    add("key", "doctl auth init -t @@", "do" + "p_v1_" + make.hex(64))
    add("key", "vault login @@", make.token("hv" + "s.", 90, _URLSAFE))
    add("key", "tailscale up --authkey @@", make.token("ts" + "key-auth-", 16) + "-" + make.token("", 32))
    add("key", "CLOUDFLARE_API_TOKEN=@@", make.token("", 40, _URLSAFE))
    add("key", "X-Auth-Key: @@", make.hex(37))
    add("key", "dd-api-key: @@", make.hex(32))
    add("key", "DD_APP_KEY=@@", make.hex(40))
    add("key", "newrelic.license_key = @@", make.hex(36) + "NRAL")
    add("key", "SENTRY_AUTH_TOKEN=@@", make.token("sntr" + "ys_eyJ", 100) + "_" + make.token("", 43))
    add("key", "grafana: Authorization: Bearer @@", make.token("gl" + "sa_", 32) + "_" + make.hex(8))
    add("key", "linear key @@ please", make.token("lin" + "_api_", 40))
    add("key", "NOTION_TOKEN=@@", make.token("nt" + "n_", 46))
    add("key", 'notion = Client(auth="@@")', make.token("sec" + "ret_", 43))
    add("key", "AIRTABLE_PAT=@@", make.token("pa" + "t", 14) + "." + make.hex(64))
    add("key", "figma header X-Figma-Token: @@", make.token("fi" + "gd_", 40, _URLSAFE))
    add("key", "jira user me, token @@", make.token("AT" + "ATT3xFfGF0", 180, _URLSAFE) + "=A1B2C3D4")
    add("key", "bitbucket app password @@", make.token("AT" + "BB", 32))
    add("key", "discord.run('@@')", make.token("M", 25) + "." + make.token("", 6) + "." + make.token("", 38, _URLSAFE))
    add("key", 'bot = telebot.TeleBot("@@")', "7123456789:AA" + make.token("", 33, _URLSAFE))
    add("key", "slack refresh @@", make.token("xo" + "xe-1-", 146))
    add("key", "SLACK_SIGNING_SECRET=@@", make.hex(32))
    add("key", "stripe webhook secret: @@", make.token("wh" + "sec_", 32))
    add("key", "RAZORPAY_KEY_SECRET=@@", make.token("", 24))
    add("key", "shopify admin: @@", "sh" + "pat_" + make.hex(32))
    add("key", "square: @@", make.token("sq" + "0csp-", 43, _URLSAFE))
    add("key", "mailgun: api:@@", "ke" + "y-" + make.hex(32))
    add("key", "mailchimp @@ returns 401", make.hex(32) + "-us14")
    add("key", "ALGOLIA_ADMIN_KEY=@@", make.hex(32))
    add("key", "mapbox secret token @@", make.token("s" + "k.eyJ1Ijoi", 40) + "." + make.token("", 22, _URLSAFE))
    add(
        "key",
        "here's the license: LICENSE_KEY=@@",
        "-".join(make.token("", 5, string.ascii_uppercase + string.digits) for _ in range(5)),
    )
    add("key", "Mein Schlüssel lautet @@", make.token("sk" + "-proj-", 120, _URLSAFE))
    add("key", "ma clé API est @@", make.token("", 32))
    add("key", "mi clave de API: @@", make.hex(32))
    add("key", "az login secret @@", make.token("", 3) + "8" + "Q~" + make.token("", 34, _URLSAFE))
    add(
        "key",
        "Traceback (most recent call last):\nopenai.AuthenticationError: Incorrect API key provided: @@. You can find",
        make.token("sk" + "-", 48),
    )
    add("key", "401 Client Error for header {'x-api-key': '@@', 'accept': '*/*'}", make.token("", 40))
    add("key", "refresh_token=@@&grant_type=refresh_token", "1//0" + "3" + make.token("", 60, _URLSAFE))
    add("key", "gcloud prints @@", make.token("ya" + "29.c.", 150, _URLSAFE))
    add(
        "key",
        "-----BEGIN OPENSSH PRIVATE " + "KEY-----\n@@\n-----END OPENSSH PRIVATE KEY-----",
        make.base64(70) + "\n" + make.base64(70) + "\n" + make.base64(30),
    )
    add(
        "key",
        "-----BEGIN EC PRIVATE " + "KEY-----\n@@\n(that is all I copied)",
        make.base64(64) + "\n" + make.base64(40),
    )
    add(
        "key",
        "-----BEGIN PGP PRIVATE KEY " + "BLOCK-----\n\n@@\n-----END PGP PRIVATE KEY BLOCK-----",
        make.base64(64) + "\n" + make.base64(64),
    )
    add(
        "key",
        "> -----BEGIN RSA PRIVATE " + "KEY-----\n> @@\n> -----END RSA PRIVATE KEY-----",
        make.base64(64) + "\n> " + make.base64(64),
    )
    add("key", "sops age key: @@", "AGE-SECRET-" + "KEY-1" + make.token("", 58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"))
    add("key", "wg: PrivateKey = @@", make.base64(43) + "=")


def _configuration(add, make) -> None:  # noqa: ANN001
    account = {
        "type": "service_account",
        "project_id": "demo",
        "private_key_id": make.hex(40),
        "private_key": f"-----BEGIN PRIVATE {'KEY'}-----\n{make.base64(64)}\n{make.base64(64)}\n-----END PRIVATE KEY-----\n",
        "client_email": "robot@demo.iam.gserviceaccount.com",
    }
    add("key", "why 403? " + json.dumps(account).replace(account["private_key_id"], "@@"), account["private_key_id"])
    add(
        "key",
        json.dumps(account, indent=2).replace(account["private_key"].split("\n")[1], "@@"),
        account["private_key"].split("\n")[1],
    )
    azure = {"appId": "6f1c", "displayName": "sp", "password": make.token("", 34, _URLSAFE + "~."), "tenant": "72f9"}
    add("password", json.dumps(azure).replace(azure["password"], "@@"), azure["password"])
    add(
        "key",
        "DefaultEndpointsProtocol=https;AccountName=demo;AccountKey=@@;EndpointSuffix=core.windows.net",
        make.base64(86) + "==",
    )
    add(
        "key",
        "Endpoint=sb://demo.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=@@",
        make.base64(43) + "=",
    )
    add("url", "https://demo.blob.core.windows.net/c/f.csv?sv=2022&se=2027&sig=@@", make.token("", 40) + "%3D")
    add("url", "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIAX&X-Amz-Signature=@@", make.hex(64))
    add("url", "postgres://shop:@@@db.internal:5432/shop", "pl4ntp0t")
    add("url", "postgresql+asyncpg://app:@@@10.1.2.3/app?sslmode=require", "p%40ss%2Fw0rd")
    add("url", "mongodb+srv://root:@@@cluster0.ab1cd.mongodb.net/?retryWrites=true", make.token("", 16))
    add("url", "redis://:@@@cache:6379/0", "r3dispw")
    add("url", "amqp://guest:@@@rabbit:5672/%2F", "gu3st")
    add("url", "jdbc:mysql://db/shop?user=root&password=@@", "toor123")
    add("password", "jdbc:oracle:thin:scott/@@@db:1521/XE", "t1ger")
    add(
        "password",
        "Server=tcp:sql.example.net,1433;Initial Catalog=shop;User ID=sa;Password=@@;Encrypt=True;",
        "Str0ng!Pass",
    )
    add("password", "Data Source=db;uid=app;pwd=@@", "app-pw-77")
    add("url", "git clone https://oauth2:@@@gitlab.example.com/a/b.git", make.token("gl" + "pat-", 20))
    add("url", "pip install --index-url https://user:@@@pypi.example.com/simple x", "sup3r")
    add("url", "webhook https://hooks.slack.com/services/@@", "T0AB12CDE/B0FG34HIJ/" + make.token("", 24))
    add("url", "https://discord.com/api/webhooks/1234567890/@@", make.token("", 68, _URLSAFE))
    add("url", "reset link https://app.example.com/reset?token=@@", make.token("", 32))
    add("url", "magic: https://app.example.com/login#access_token=@@&type=bearer", make.jwt())
    add("url", "zoom https://zoom.us/j/123?pwd=@@", make.token("", 24))
    add("url", "sftp://ftp:@@@files.example.org/in", "fTp#2024".replace("#", "%23"))
    add("url", "smtp://me%40example.com:@@@smtp.example.com:587", "m4ilpw")
    add("password", 'spring:\n  datasource:\n    username: app\n    password: "@@"', "Zq8 hidden")
    add("password", "POSTGRES_PASSWORD: @@\nPOSTGRES_USER: app", "wintermute")
    add("password", "docker run -e MYSQL_ROOT_PASSWORD=@@ mysql:8", "hunter2")
    add("password", "services:\n  db:\n    environment:\n      - MARIADB_PASSWORD=@@", "kittens")
    add("password", "$ PGPASSWORD=@@ psql -h db", "letmein1")
    add("password", "mysqldump -u root -p'@@' shop > a.sql", "pa55!word")
    add("password", "sshpass -p @@ ssh root@host", "toorTOOR9")
    add("password", "curl -u admin:@@ https://nexus.example.com", "adm1n-pass")
    add("password", "wget --user=me --password='@@' ftp.example.com/x", "gruen 7")
    add("key", "curl -H 'Authorization: Basic @@' api.local", base64.b64encode(b"admin:opensesame9").decode())
    add("key", 'Authorization: Digest username="a", realm="r", response="@@"', make.hex(32))
    add("key", 'headers = {"Authorization": f"Token @@"}', make.hex(40))
    add("key", "-H \"X-API-KEY: @@\" \\\n  -d '{}'", make.token("", 32))
    add("key", "  Ocp-Apim-Subscription-Key: @@", make.hex(32))
    add("key", "Proxy-Authorization: Basic @@", base64.b64encode(b"corp:Herbst2023").decode())
    add("password", "define('DB_PASSWORD', '@@');", "wp!secret")
    add(
        "key",
        "define( 'AUTH_KEY', '@@' );",
        make.token("", 64, string.ascii_letters + string.digits + "!#$%&()*+,-./:;<=>?@[]^_{|}~"),
    )
    add("key", "SECRET_KEY = 'django-insecure-@@'", make.token("", 50, _LOWER + "!@#$%^&*(-_=+)"))
    add(
        "password",
        "machine api.heroku.com\n  login me@example.com\n  password @@",
        "-".join(make.hex(n) for n in (8, 4, 4, 4, 12)),
    )
    add("password", '<add key="SmtpPassword" value="@@" />', "mailOut_55")
    add("password", '<property name="password">@@</property>', "hib3rnate")
    add("key", 'terraform {\n  access_key = "AKIAxxxx"\n  secret_key = "@@"\n}', make.base64(40))
    add("key", "kubectl get secret -o yaml\ndata:\n  token: @@", make.base64(60))
    add("password", "ansible_become_pass: '@@'", "becom3root")
    add("password", "net use z: \\\\nas\\share @@ /user:corp\\anna", "Netz!Laufwerk1")


def _passwords(add, make) -> None:  # noqa: ANN001
    add("password", "[09:14] tom: wifi pw: @@", "blue-tulip-42")
    add("password", "[09:15] ann: the admin password has changed, it's @@ now", "Qwerty!2025")
    add("password", "username: lisa password: @@", "lisa1990")
    add("password", "login lisa / @@", "Kaffee#4711")
    add("password", "Ihr neues Passwort: „@@“", "Blaubeere7")
    add("password", "Mein Kennwort ist @@, bitte zurücksetzen", "Hund4Katze")
    add("password", "Le mot de passe du wifi : @@", "chocolat2")
    add("password", "la contraseña del router es: @@", "casa_1234")
    add("password", "la password è @@", "gatto99!")
    add("password", "moje hasło to @@", "kotek123")
    add("password", "a senha é @@", "Futebol10")
    add("password", "мой пароль: @@", "privet77")
    add("password", "密码是@@", "abc12345")
    add("password", "パスワードは @@ です", "sakura2024")
    add("password", "비밀번호: @@", "korea!88")
    add("password", "Your one-time code is @@. Do not share it.", "482913")
    add("password", "@@ is your verification code", "771204")
    add("password", "door PIN @@#", "9031")
    add("password", "meine PIN lautet @@", "4417")
    add("password", "cvv @@ exp 04/28", "737")
    add("cookie", "GET / HTTP/1.1\nHost: a.b\nCookie: @@", f"_ga=GA1.2.3; sessionid={make.token('', 32, _LOWER)}")
    add("cookie", "< set-cookie: @@; Secure", f"connect.sid=s%3A{make.token('', 32)}.{make.token('', 43)}")
    add("cookie", "requests.get(u, cookies={'sessionid': '@@'})", make.token("", 32, _LOWER))
    add(
        "cookie",
        'curl --cookie "@@" https://x.example',
        f"JSESSIONID={make.token('', 32, string.ascii_uppercase + string.digits)}",
    )
    add("cookie", 'document.cookie = "@@"', f"auth_token={make.hex(40)}")
    add("cookie", "-b @@ -X POST", f"laravel_session={make.token('', 40)}")


def _people(add) -> None:  # noqa: ANN001
    add("national_id", "SSN: @@", "219099999")
    add("national_id", "Employee,SSN\nJ. Doe,@@", "078-05-1120")
    add("national_id", "my ITIN @@", "912-70-1234")
    add("national_id", "Canadian SIN @@", "046 454 286")
    add("national_id", "NI no. @@", "qq123456c")
    add("national_id", "NHS Number: @@", "943 476 5919")
    add("national_id", "UTR @@", "1123456789")
    add("national_id", "Meine Steuer-Identifikationsnummer: @@", "86095742719")
    add("national_id", "Steuernummer @@ Finanzamt", "181/815/08155")
    add("national_id", "Sozialversicherungsnummer @@", "65 170839 J 003")
    add("national_id", "Personalausweis: @@", "L01X00T471")
    add("national_id", "NIR @@", "255081416802538")
    add("national_id", "numéro fiscal @@", "30 23 217 600 053")
    add("national_id", "DNI @@", "45.123.456-" + "TRWAGMYFPDXBNJZSQVHLCKE"[45123456 % 23])
    add("national_id", "NIE: @@", "X1234567L")
    add("national_id", "il mio CF: @@", "VRDGPP13R10B293P")
    add("national_id", "BSN @@", "111222333")
    add("national_id", "rijksregister @@", "85.07.30-033.28")
    add("national_id", "PESEL: @@", "44051401359")
    add("national_id", "meu CPF é @@", "111.444.777-35")
    add("national_id", "CPF @@", "11144477735")
    add("national_id", "Aadhaar @@", "2341 2341 2346")
    add("national_id", "PAN: @@", "ABCPE1234F")
    add("national_id", "personnummer @@", "19811228-9874")
    add("national_id", "hetu @@", "131052-308T")
    add("national_id", "AHV @@", "756.9217.0769.85")
    add("national_id", "NRIC @@", "S1234567D")
    add("national_id", "身份证号 @@", "11010519491231002X")
    add("national_id", "RUT @@", "12.345.678-5")
    add("national_id", "Passport No: @@", "C01X00T47")
    add("birth_date", "Name: A. B.\nBorn: @@\nSex: F", "1990-07-04")
    add("birth_date", "DOB @@, allergic to penicillin", "4 Jul 1990")
    add("birth_date", "Birthday: @@", "July 4th, 1990")
    add("birth_date", "Geburtsdatum @@", "4.7.1990")
    add("birth_date", "geb. @@ in Köln", "04.07.90")
    add("birth_date", "date de naissance : @@", "4 juillet 1990")
    add("birth_date", "nací el @@", "4 de julio de 1990")
    add("birth_date", "nata il @@ a Torino", "04/07/1990")
    add("birth_date", "出生日期：@@", "1990年7月4日")
    add("birth_date", "my date of birth is the @@", "4th of July 1990")


def _payments(add) -> None:  # noqa: ANN001
    add("card", "Card: @@ exp 09/27", "5555 5555 5555 4444")
    add("card", "charge @@", "378282246310005")
    add("card", "mc 2-series @@", "2223 0031 2200 3222")
    add("card", "diners @@", "3056 930902 5904")
    add("card", "visa: @@", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1")
    add("card", "card:\n@@", "5105\n1051\n0510\n5100")
    add("card", "kort @@", "4012/8888/8888/1881")
    add("card", "کارت @@", arabic("6221061106498670", 0x6F0))
    add("card", "card no @@", "6011_1111_1111_1117")
    add("iban", "Bitte auf @@ überweisen", "AT61 1904 3002 3457 3201")
    add("iban", "virement vers @@", "FR14 2004 1010 0505 0001 3M02 606")
    add("iban", "bonifico: @@", "it60x0542811101000000123456")
    add("iban", "konto @@", "PL 61 1090 1014 0000 0712 1981 2874")
    add("iban", "IBAN\u00a0@@", "NL91\u202fABNA\u202f0417\u202f1643\u202f00")
    add("iban", "iban=@@", "CH93-0076-2011-6238-5295-7")


def _addresses(add, make) -> None:  # noqa: ANN001
    add("email", "From: Anna B <@@>\nSubject: Re: invoice", "anna.b+inv@mail.example.co.uk")
    add("email", "mail me: @@", "ａｎｎａ＠ｅｘａｍｐｌｅ．ｃｏｍ")
    add("email", "anna at-sign: @@", "anna(at)example.com")
    add("email", "reach us @@", "anna AT example DOT com")
    add("email", "https://shop.test/u?mail=@@", "anna%40example.com")
    add("email", "<a href='mailto:@@'>", "anna&#64;example.com")
    add("email", "почта: @@", "анна@пример.рф")
    add("email", "邮箱@@谢谢", "wang.li@example.cn")
    add("ip", "client @@ timed out", "203.0.113.77")
    add("ip", "peer [@@]:443", "2001:db8:85a3::8a2e:370:7334")
    add("phone", "call @@", "+44 20 7946 0958")
    add("phone", "+33: @@", "+33 (0)6 12 34 56 78")
    add("phone", "Rufnummer @@", "0176/12345678")
    add("phone", "cell @@", "415.555.2671")
    add("phone", "mobile no 91-@@", "9876543210")
    add("phone", "chiamami al @@", "347 123 4567")
    add("phone", "bel me op @@", "06-12345678")
    add("phone", "звоните @@", "8 (912) 345-67-89")
    add("phone", "電話 @@", "090-1234-5678")


def _tickets(add) -> None:  # noqa: ANN001
    add("phone", "Hallo, mein Paket ist weg. Meine Handynummer: @@. Danke, A.", "0171-2345678")
    add("email", "Bonjour, je n'arrive plus à me connecter avec @@ depuis lundi.", "a.martin@exemple.fr")
    add("iban", "Buenas, cambien mi cuenta a @@ por favor", "ES91 2100 0418 4502 0005 1332")
    add("card", "Ciao, la carta @@ è stata rifiutata", "4242-4242-4242-4242")
    add("phone", "Hi, please ring me back on @@ asap", "07911 123456")


def _tool_calls(add, make) -> None:  # noqa: ANN001
    add(
        "json", json.dumps({"name": "login", "arguments": json.dumps({"user": "a", "password": "@@"})}), "s3same street"
    )
    add("json", '{"name": "pay", "arguments": "{\\"card_number\\": @@, \\"cvc\\": \\"737\\"}"}', "4000056655665556")
    add("json", '{"cvc": @@}', "737")
    add("json", '{"apiKey": "@@"}', make.hex(32))
    add(
        "json",
        '{"to": ["\\u0061nna\\u0040example.org@@"]}'.replace("\\u0061nna\\u0040example.org@@", "@@"),
        "\\u0061nna\\u0040example.org",
    )
    add("json", '{"mobile": "@@"}', "9876543210")
    add("json", '{"ssn": @@}', "219099999")
    add("json", '{"results": [{"id": 7, "iban": "@@"}]}', "BE68539007547034")
    add("json", '{"headers": {"Authorization": "Bearer @@"}}', make.token("", 30))
    add("json", '{"set_cookie": ["@@"]}', f"sid={make.hex(32)}")


def later_forms() -> list[SecretForm]:
    """Return the 84 forms of the second round."""
    make = Maker(5)
    rows: list[tuple[str, str, str]] = []

    def add(kind: str, template: str, secret: str) -> None:
        rows.append((kind, template.replace("@@", secret), secret))

    add("key", 'FIREWORKS_API_KEY="@@"', make.token("fw_", 24))
    add("key", "nvapi key @@", make.token("nv" + "api-", 64))
    add("key", "together: @@", make.hex(64))
    add("key", "export ELEVENLABS_API_KEY=@@", make.hex(32))
    add("key", "deepseek says: invalid key @@", "sk" + "-" + make.hex(32))
    add("key", "VOYAGE_API_KEY=@@", make.token("pa-", 43))
    add("key", 'pinecone.init(api_key="@@")', make.token("pc" + "sk_", 60))
    add("key", 'qdrant_client = QdrantClient(url, api_key="@@")', make.jwt())
    add("key", 'auth: { accessKeyId: "@@" }', make.token("AK" + "IA", 16, string.ascii_uppercase + "234567"))
    add("key", "const secretAccessKey = '@@'", make.base64(40))
    add("key", "wandb login @@", make.hex(40))
    add("key", "CIRCLE_TOKEN=@@", make.token("CC" + "IPAT_", 22) + "_" + make.hex(40))
    add("key", "gitlab runner registration token @@", make.token("gl" + "rt-", 20))
    add("key", '  "integrationKey": "@@"', make.hex(32))
    add("key", "pagerduty: Authorization: Token token=@@", make.token("", 20))
    add("key", "X-Vault-Token: @@", make.token("hv" + "s.", 24))
    add("key", "The client_secret is @@", make.token("GO" + "CSPX-", 28))
    add("key", 'firebase: apiKey: "@@",', make.token("AI" + "za", 35))
    add("key", "APP_KEY=base64:@@", make.base64(43) + "=")
    add("key", "RAILS_MASTER_KEY=@@", make.hex(32))
    add("key", "jwt_secret: @@", make.token("", 32))
    add("key", 'hmac secret "@@"', make.token("", 24))
    add("password", "user=sa;password={@@};encrypt=true", "Pa}ss".replace("}", "x") + "99")
    add("password", 'smtp_pass => "@@"', "mail_pw_1")
    add("password", 'REDIS_PASSWORD="@@"', "redis-secret")
    add("password", "The root password of the box is: @@", "xK9#mm")
    add("password", "creds: admin/@@", "adm1n!")
    add("password", "Zugangsdaten: Benutzer: max, Passwort: @@", "Fr0sch!")
    add("password", "utilisateur: marie / mot de passe: @@", "Tournesol7")
    add("password", "usuario ana, contraseña @@", "Playa2024")
    add("password", "kod PIN: @@", "4821")
    add("password", 'la mia password è "@@"', "ciao mondo")
    add("password", "su contraseña temporal: @@", "Temp#2211")
    add("password", "tmp pw = @@", "pumpkin")
    add("password", 'passphrase for key: "@@"', "correct horse battery")
    add("password", 'ENV: {"DATABASE_PASSWORD":"@@"}', "q1w2e3")
    add("url", "mysql2://root:@@@127.0.0.1/app", "secret")
    add("url", "clickhouse://default:@@@ch:9000", "chpw")
    add("url", "ftp://user:@@@host/file", "f:tp".replace(":", "1"))
    add("url", "https://user:@@@api.example.com/v1", "a%21b")
    add("url", "rediss://default:@@@x.upstash.io:6379", make.token("", 40))
    add("cookie", "cookie: @@", "__Secure-next-auth.session-token=" + make.token("", 60))
    add("cookie", "Set-Cookie: @@", "csrftoken=" + make.token("", 32) + "; Max-Age=31449600")
    add("cookie", 'wget --header="Cookie: @@" u', "uid=" + make.hex(16))
    add("national_id", "SS# @@", "536-90-4399")
    add("national_id", "social: @@", "536904399")
    add("national_id", "N° de sécu: @@", "1 84 12 76 451 089 46")
    add("national_id", "Meine SV-Nummer ist @@", "65170839J003")
    add("national_id", "Codice Fiscale:@@", "RSSMRA85T10A562S")
    add("national_id", "CPF:@@", "111.444.777-35")
    add("national_id", "passport @@ expires 2031", "533401372")
    add("national_id", "NINO: @@", "JG103759A")
    add("national_id", "driver license D@@", "D1234567")
    add("national_id", "USt-IdNr. @@", "DE136695976")
    add("birth_date", "d.o.b. @@", "02/11/1978")
    add("birth_date", "Birthdate (YYYY-MM-DD): @@", "1978-11-02")
    add("birth_date", "I am 46, born @@", "2 Nov 1978")
    add("birth_date", "ur. @@", "02.11.1978")
    add("birth_date", "nacida el @@", "02-11-1978")
    add("birth_date", "patient (@@, f)", "02.11.1978")
    add("phone", "tel:@@", "+390612345678")
    add("phone", "Telefon 0@@", "089/636-48018"[1:])
    add("phone", "WhatsApp +55 @@", "11 91234-5678")
    add("phone", "call us at 1-@@", "800-555-0199")
    add("phone", "num: @@", "+81-90-1234-5678")
    add("phone", "text me on @@", "+1.415.555.2671")
    add("phone", "τηλ. @@", "+30 21 0123 4567")
    add("card", "CC: @@", "4539-5787-6362-1486")
    add("card", "amex @@", "3714 496353 98431")
    add("card", "PAN=@@", "4539578763621486")
    add("iban", "IBAN DE@@", "89 3704 0044 0532 0130 00")
    add("iban", "konto nr @@", "NO93 8601 1117 947")
    add("email", "@@ wrote:", '"Anna B." <anna@example.com>'[11:-1])
    add("email", "to=@@&cc=", "bob%40example.com")
    add("email", "ping me: bob at example dot org".replace("bob at example dot org", "@@"), "bob at example dot org")
    add("email", "mailto:@@?subject=x", "j.o-e_1@sub.example.museum")
    add("ip", "Forwarded: for=@@", "198.51.100.23")
    add("ip", "X-Forwarded-For: @@", "2001:db8::1234")
    add("json", '{"contact":{"telefon":"@@"}}', "089 63648018")
    add("json", '{"creditCardNumber":"@@"}', "4539578763621486")
    add("json", '{"credentials":{"user":"a","pass":"@@"}}', "tulips")
    add("json", '{"Authorization":"Basic @@"}', "YWRtaW46b3BlbnNlc2FtZTk=")
    add("json", '{"birthDate":"@@"}', "19781102")
    add("json", '{"access_token":"@@","expires_in":3600}', make.token("", 48))
    return [SecretForm(*row) for row in rows]
