"""Realistic texts that hold one secret each, all made up. Keys are put together when they are asked for, so that no scanner finds one here."""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable
from typing import NamedTuple

_BASE62 = string.ascii_letters + string.digits
_URLSAFE = _BASE62 + "-_"
_LOWER, _UPPER = string.ascii_lowercase + string.digits, string.ascii_uppercase + string.digits
_BASE32 = string.ascii_uppercase + "234567"
_KINDS = (string.ascii_lowercase, string.ascii_uppercase, string.digits)
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
        head, body = ("eyJ" + self.token("", n, _URLSAFE) for n in (33, 87))
        return f"{head}.{body}.{self.token('', 43, _URLSAFE)}"


class Forms(Maker):
    """Forms as they are written down."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.forms: list[SecretForm] = []

    def of(self, kind: str) -> Callable[[str, str], None]:
        """Return what adds a form of this kind: its text, in which @@ is the secret, and the secret."""
        return lambda text, secret: self.forms.append(SecretForm(kind, text.replace("@@", secret), secret))


def arabic(digits: str, zero: int = 0x660) -> str:
    """Return the figures in another script, whose zero has this code point."""
    return "".join(chr(zero + int(c)) if c.isdigit() else c for c in digits)


def known_forms() -> list[SecretForm]:
    """Return the 72 forms for which the detectors were written."""
    make = Forms(1)
    key, password, cookie, national_id, birth_date, phone, iban, card, email, json_ = map(
        make.of, ("key", "password", "cookie", "national_id", "birth_date", "phone", "iban", "card", "email", "json")
    )
    key("Why does this fail? openai.api_key = '@@'", make.token("sk" + "-", 48))
    key("OPENAI_API_KEY=@@\nMODEL=gpt-4o", make.token("sk" + "-proj-", 64))
    key("my key @@ stopped working", make.token("sk" + "-proj-", 124, _URLSAFE))
    key('client = Anthropic(api_key="@@")', make.token("sk" + "-ant-api03-", 93, _URLSAFE) + "AA")
    key("the Anthropic one is @@, please rotate it", make.token("sk" + "-ant-api03-", 93, _URLSAFE) + "AA")
    key("aws_access_key_id = @@", make.token("AK" + "IA", 16, _BASE32))
    key("[default]\naws_secret_access_key = @@\nregion = eu-west-1", make.base64(40))
    key("temporary credentials: @@ (expires at noon)", make.token("AS" + "IA", 16, _BASE32))
    key("git clone with the token @@ gives 403", make.token("gh" + "p_", 36))
    key("GITHUB_TOKEN: @@", make.token("github" + "_pat_", 22) + "_" + make.token("", 59))
    key("curl --header 'PRIVATE-TOKEN: @@' .../projects", make.token("gl" + "pat-", 20))
    key("the bot's token is @@", make.token("xo" + "xb-", 12, string.digits) + "-" + make.token("", 24))
    key("SLACK_APP=@@", make.token("xa" + "pp-1-", 10, _UPPER) + "-" + make.hex(64))
    key('stripe.api_key = "@@"', make.token("sk" + "_live_", 24))
    key("restricted key @@ for refunds", make.token("rk" + "_live_", 99))
    key("const MAPS = '@@';", make.token("AI" + "za", 35, _URLSAFE))
    key("access token @@ from the OAuth playground", make.token("ya" + "29.a0", 120, _URLSAFE))
    key("decode this: @@", make.jwt())
    key("id_token=@@", make.jwt())
    key("Authorization: Bearer @@", make.token("", 40))
    key('curl -H "Authorization: Bearer @@" api.example.com', make.hex(40))
    pem = make.base64(64) + "\n" + make.base64(64) + "\n" + make.base64(40) + "=="
    key(f"-----BEGIN RSA PRIVATE {'KEY'}-----\n@@\n-----END RSA PRIVATE KEY-----", pem)
    key(f'{{"k": "-----BEGIN {"PRIVATE"} KEY-----\\n@@\\n-----END PRIVATE KEY-----\\n"}}', make.base64(64))
    key("smallfirst says 401 for @@", "sf" + "-" + make.hex(12) + "-" + make.token("", 43, _URLSAFE))
    password("I can't log in, my password is @@", "Sommer2024!")
    password("Passwort: @@", "geheim99")
    password("DB_PASSWORD=@@\nDB_HOST=localhost", "correct-horse")
    password('{"user": "anna", "password": "@@"}', "tr0ub4dor&3")
    password("mysql --user root --password @@ shop", "r00tpw")
    password("mi contraseña es @@ y no funciona", "Madrid#77")
    password("mon mot de passe est @@", "Soleil_88")
    password("spring.datasource.password: @@", "s3cr3t")
    cookie("Cookie: @@\nAccept: */*", f"session={make.hex(32)}; theme=dark")
    cookie("Set-Cookie: @@; Path=/; HttpOnly", f"sid={make.token('', 26)}")
    cookie("curl -b '@@' shop.example.com", f"PHPSESSID={make.token('', 26, _LOWER)}")
    cookie('{"headers": {"cookie": "@@"}}', f"auth={make.token('', 30)}")
    national_id("my SSN is @@", "536-90-4399")
    national_id("social security number @@", "536 90 4399")
    national_id("Steuer-ID @@", "65 929 970 489")
    national_id("National Insurance number: @@", "AB 12 34 56 C")
    national_id("numéro de sécurité sociale @@", "1 84 12 76 451 089 46")
    national_id("mi DNI es @@", "12345678Z")
    national_id("codice fiscale @@", "RSSMRA85T10A562S")
    national_id("our EIN is @@", "12-3456789")
    birth_date("DOB: @@", "03/14/1985")
    birth_date("I was born on @@ in Leeds", "14 March 1985")
    birth_date("Patient, geboren am @@", "14.03.1985")
    birth_date("née le @@ à Lyon", "14 mars 1985")
    birth_date('{"name": "A. B.", "date_of_birth": "@@"}', "1985-03-14")
    phone("llámame al @@", "612 345 678")
    phone("reach me on @@ after six", "98765 43210")
    phone("meu zap: @@", "(11) 91234-5678")
    phone("zadzwoń: @@", "601 234 567")
    phone("我的手机 @@", "138 0013 8000")
    iban("please pay to @@", "de89 3704 0044 0532 0130 00")
    iban("account @@", "DE89.3704.0044.0532.0130.00")
    iban("iban: @@", "gb82west12345698765432")
    card("card @@", "4111.1111.1111.1111")
    card("the number is\n@@\nexp 12/27", "4111 1111\n1111 1111")
    card("بطاقتي @@", arabic("4111111111111111"))
    card("カード @@", arabic("4111 1111 1111 1111", 0xFF10))
    card("कार्ड @@", arabic("5500000000000004", 0x966))
    card("visa @@", "4111  1111  1111  1111")
    email("schreib an @@", "anna.schmidt" + "\uff20" + "example.de")
    email("her address is @@", '"anna schmidt"' + "@example.com")
    email("contact @@", "anna [at] example [dot] com")
    email("mail @@", "anna\u200b.b@exam\u200bple.com")
    json_('{"@@": {"orders": 3}}', "anna.b@example.com")
    json_('{"order": 17, "card": @@}', "4111111111111111")
    json_('{"customer": {"phone": @@}}', "4915112345678")
    json_(json.dumps({"arguments": '{"to": "@@", "n": 1}'}), "anna\\\\u0040example.com")
    json_('{"to": "@@"}', "anna\\u0040example.com")
    return make.forms


def unseen_forms() -> list[SecretForm]:
    """Return the 226 forms."""
    make = Forms(2)
    for write in (_keys, _configuration, _passwords, _people, _payments_and_addresses, _tool_calls):
        write(make)
    return make.forms


def _keys(make: Forms) -> None:
    key = make.of("key")
    key("huggingface-cli login --token @@", make.token("h" + "f_", 34, string.ascii_letters))
    key('from huggingface_hub import login\nlogin("@@")', make.token("h" + "f_", 34, string.ascii_letters))
    key("//registry.npmjs.org/:_authToken=@@", make.token("np" + "m_", 36))
    key("[pypi]\nusername = __token__\npassword = @@", make.token("py" + "pi-AgEIcHlwaS5vcmc", 120, _URLSAFE))
    key("SENDGRID_API_KEY='@@'", make.token("S" + "G.", 22, _URLSAFE) + "." + make.token("", 43, _URLSAFE))
    key("client = Client('@@', token)", "A" + "C" + make.hex(32))
    key("TWILIO_AUTH_TOKEN=@@", make.hex(32))
    key("os.environ['GROQ_API_KEY'] = '@@'", make.token("gs" + "k_", 52))
    key("export XAI_API_KEY=@@", make.token("xa" + "i-", 80))
    key("replicate token: @@", make.token("r" + "8_", 37))
    key("pplx says invalid key @@", make.token("pp" + "lx-", 48))
    key("openrouter: @@", "sk" + "-or-v1-" + make.hex(64))
    key("Langfuse secret @@ and public pk-lf-...", "sk" + "-lf-" + "-".join(make.hex(n) for n in (8, 4, 4, 4, 12)))
    key("mistral_api_key: @@", make.token("", 32))
    key('COHERE_API_KEY = "@@"', make.token("", 40))
    key("DATABRICKS_TOKEN=@@", "da" + "pi" + make.hex(32))
    key("databricks configure --host https://adb-1.azuredatabricks.net --token @@", "da" + "pi" + make.hex(32) + "-3")
    key("doctl auth init -t @@", "do" + "p_v1_" + make.hex(64))
    key("vault login @@", make.token("hv" + "s.", 90, _URLSAFE))
    key("tailscale up --authkey @@", make.token("ts" + "key-auth-", 16) + "-" + make.token("", 32))
    key("CLOUDFLARE_API_TOKEN=@@", make.token("", 40, _URLSAFE))
    key("X-Auth-Key: @@", make.hex(37))
    key("dd-api-key: @@", make.hex(32))
    key("DD_APP_KEY=@@", make.hex(40))
    key("newrelic.license_key = @@", make.hex(36) + "NRAL")
    key("SENTRY_AUTH_TOKEN=@@", make.token("sntr" + "ys_eyJ", 100) + "_" + make.token("", 43))
    key("grafana: Authorization: Bearer @@", make.token("gl" + "sa_", 32) + "_" + make.hex(8))
    key("linear key @@ please", make.token("lin" + "_api_", 40))
    key("NOTION_TOKEN=@@", make.token("nt" + "n_", 46))
    key('notion = Client(auth="@@")', make.token("sec" + "ret_", 43))
    key("AIRTABLE_PAT=@@", make.token("pa" + "t", 14) + "." + make.hex(64))
    key("figma header X-Figma-Token: @@", make.token("fi" + "gd_", 40, _URLSAFE))
    key("jira user me, token @@", make.token("AT" + "ATT3xFfGF0", 180, _URLSAFE) + "=A1B2C3D4")
    key("bitbucket app password @@", make.token("AT" + "BB", 32))
    key("discord.run('@@')", make.token("M", 25) + "." + make.token("", 6) + "." + make.token("", 38, _URLSAFE))
    key('bot = telebot.TeleBot("@@")', "7123456789:AA" + make.token("", 33, _URLSAFE))
    key("slack refresh @@", make.token("xo" + "xe-1-", 146))
    key("SLACK_SIGNING_SECRET=@@", make.hex(32))
    key("stripe webhook secret: @@", make.token("wh" + "sec_", 32))
    key("RAZORPAY_KEY_SECRET=@@", make.token("", 24))
    key("shopify admin: @@", "sh" + "pat_" + make.hex(32))
    key("square: @@", make.token("sq" + "0csp-", 43, _URLSAFE))
    key("mailgun: api:@@", "ke" + "y-" + make.hex(32))
    key("mailchimp @@ returns 401", make.hex(32) + "-us14")
    key("ALGOLIA_ADMIN_KEY=@@", make.hex(32))
    key("mapbox secret token @@", make.token("s" + "k.eyJ1Ijoi", 40) + "." + make.token("", 22, _URLSAFE))
    key("here's the license: LICENSE_KEY=@@", "-".join(make.token("", 5, _UPPER) for _ in range(5)))
    key("Mein Schlüssel lautet @@", make.token("sk" + "-proj-", 120, _URLSAFE))
    key("ma clé API est @@", make.token("", 32))
    key("mi clave de API: @@", make.hex(32))
    key("az login secret @@", make.token("", 3) + "8" + "Q~" + make.token("", 34, _URLSAFE))
    key(
        "Traceback (most recent call last):\nopenai.AuthenticationError: Incorrect API key provided: @@. You can find",
        make.token("sk" + "-", 48),
    )
    key("401 Client Error for header {'x-api-key': '@@', 'accept': '*/*'}", make.token("", 40))
    key("refresh_token=@@&grant_type=refresh_token", "1//0" + "3" + make.token("", 60, _URLSAFE))
    key("gcloud prints @@", make.token("ya" + "29.c.", 150, _URLSAFE))
    key(
        "-----BEGIN OPENSSH PRIVATE " + "KEY-----\n@@\n-----END OPENSSH PRIVATE KEY-----",
        make.base64(70) + "\n" + make.base64(70) + "\n" + make.base64(30),
    )
    key("-----BEGIN EC PRIVATE " + "KEY-----\n@@\n(that is all I copied)", make.base64(64) + "\n" + make.base64(40))
    key(
        "-----BEGIN PGP PRIVATE KEY " + "BLOCK-----\n\n@@\n-----END PGP PRIVATE KEY BLOCK-----",
        make.base64(64) + "\n" + make.base64(64),
    )
    key(
        "> -----BEGIN RSA PRIVATE " + "KEY-----\n> @@\n> -----END RSA PRIVATE KEY-----",
        make.base64(64) + "\n> " + make.base64(64),
    )
    key("sops age key: @@", "AGE-SECRET-" + "KEY-1" + make.token("", 58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"))
    key("wg: PrivateKey = @@", make.base64(43) + "=")


def _configuration(make: Forms) -> None:
    key, password, url = map(make.of, ("key", "password", "url"))
    account = {
        "type": "service_account",
        "project_id": "demo",
        "private_key_id": make.hex(40),
        "private_key": f"-----BEGIN PRIVATE {'KEY'}-----\n{make.base64(64)}\n{make.base64(64)}\n-----END PRIVATE KEY-----\n",
        "client_email": "robot@demo.iam.gserviceaccount.com",
    }
    key("why 403? " + json.dumps(account).replace(account["private_key_id"], "@@"), account["private_key_id"])
    key(
        json.dumps(account, indent=2).replace(account["private_key"].split("\n")[1], "@@"),
        account["private_key"].split("\n")[1],
    )
    azure = {"appId": "6f1c", "displayName": "sp", "password": make.token("", 34, _URLSAFE + "~."), "tenant": "72f9"}
    password(json.dumps(azure).replace(azure["password"], "@@"), azure["password"])
    key(
        "DefaultEndpointsProtocol=https;AccountName=demo;AccountKey=@@;EndpointSuffix=core.windows.net",
        make.base64(86) + "==",
    )
    key("Endpoint=sb://demo.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=@@", make.base64(43) + "=")
    url("https://demo.blob.core.windows.net/c/f.csv?sv=2022&se=2027&sig=@@", make.token("", 40) + "%3D")
    url("https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIAX&X-Amz-Signature=@@", make.hex(64))
    url("postgres://shop:@@@db.internal:5432/shop", "pl4ntp0t")
    url("postgresql+asyncpg://app:@@@10.1.2.3/app?sslmode=require", "p%40ss%2Fw0rd")
    url("mongodb+srv://root:@@@cluster0.ab1cd.mongodb.net/?retryWrites=true", make.token("", 16))
    url("redis://:@@@cache:6379/0", "r3dispw")
    url("amqp://guest:@@@rabbit:5672/%2F", "gu3st")
    url("jdbc:mysql://db/shop?user=root&password=@@", "toor123")
    password("jdbc:oracle:thin:scott/@@@db:1521/XE", "t1ger")
    password("Server=tcp:sql.example.net,1433;Initial Catalog=shop;User ID=sa;Password=@@;Encrypt=True;", "Str0ng!Pass")
    password("Data Source=db;uid=app;pwd=@@", "app-pw-77")
    url("git clone https://oauth2:@@@gitlab.example.com/a/b.git", make.token("gl" + "pat-", 20))
    url("pip install --index-url https://user:@@@pypi.example.com/simple x", "sup3r")
    url("webhook https://hooks.slack.com/services/@@", "T0AB12CDE/B0FG34HIJ/" + make.token("", 24))
    url("https://discord.com/api/webhooks/1234567890/@@", make.token("", 68, _URLSAFE))
    url("reset link https://app.example.com/reset?token=@@", make.token("", 32))
    url("magic: https://app.example.com/login#access_token=@@&type=bearer", make.jwt())
    url("zoom https://zoom.us/j/123?pwd=@@", make.token("", 24))
    url("sftp://ftp:@@@files.example.org/in", "fTp#2024".replace("#", "%23"))
    url("smtp://me%40example.com:@@@smtp.example.com:587", "m4ilpw")
    password('spring:\n  datasource:\n    username: app\n    password: "@@"', "Zq8 hidden")
    password("POSTGRES_PASSWORD: @@\nPOSTGRES_USER: app", "wintermute")
    password("docker run -e MYSQL_ROOT_PASSWORD=@@ mysql:8", "hunter2")
    password("services:\n  db:\n    environment:\n      - MARIADB_PASSWORD=@@", "kittens")
    password("$ PGPASSWORD=@@ psql -h db", "letmein1")
    password("mysqldump -u root -p'@@' shop > a.sql", "pa55!word")
    password("sshpass -p @@ ssh root@host", "toorTOOR9")
    password("curl -u admin:@@ https://nexus.example.com", "adm1n-pass")
    password("wget --user=me --password='@@' ftp.example.com/x", "gruen 7")
    key("curl -H 'Authorization: Basic @@' api.local", base64.b64encode(b"admin:opensesame9").decode())
    key('Authorization: Digest username="a", realm="r", response="@@"', make.hex(32))
    key('headers = {"Authorization": f"Token @@"}', make.hex(40))
    key("-H \"X-API-KEY: @@\" \\\n  -d '{}'", make.token("", 32))
    key("  Ocp-Apim-Subscription-Key: @@", make.hex(32))
    key("Proxy-Authorization: Basic @@", base64.b64encode(b"corp:Herbst2023").decode())
    password("define('DB_PASSWORD', '@@');", "wp!secret")
    key(
        "define( 'AUTH_KEY', '@@' );",
        make.token("", 64, string.ascii_letters + string.digits + "!#$%&()*+,-./:;<=>?@[]^_{|}~"),
    )
    key("SECRET_KEY = 'django-insecure-@@'", make.token("", 50, _LOWER + "!@#$%^&*(-_=+)"))
    password(
        "machine api.heroku.com\n  login me@example.com\n  password @@", "-".join(make.hex(n) for n in (8, 4, 4, 4, 12))
    )
    password('<add key="SmtpPassword" value="@@" />', "mailOut_55")
    password('<property name="password">@@</property>', "hib3rnate")
    key('terraform {\n  access_key = "AKIAxxxx"\n  secret_key = "@@"\n}', make.base64(40))
    key("kubectl get secret -o yaml\ndata:\n  token: @@", make.base64(60))
    password("ansible_become_pass: '@@'", "becom3root")
    password("net use z: \\\\nas\\share @@ /user:corp\\anna", "Netz!Laufwerk1")


def _passwords(make: Forms) -> None:
    password, cookie = map(make.of, ("password", "cookie"))
    password("[09:14] tom: wifi pw: @@", "blue-tulip-42")
    password("[09:15] ann: the admin password has changed, it's @@ now", "Qwerty!2025")
    password("username: lisa password: @@", "lisa1990")
    password("login lisa / @@", "Kaffee#4711")
    password("Ihr neues Passwort: „@@“", "Blaubeere7")
    password("Mein Kennwort ist @@, bitte zurücksetzen", "Hund4Katze")
    password("Le mot de passe du wifi : @@", "chocolat2")
    password("la contraseña del router es: @@", "casa_1234")
    password("la password è @@", "gatto99!")
    password("moje hasło to @@", "kotek123")
    password("a senha é @@", "Futebol10")
    password("мой пароль: @@", "privet77")
    password("密码是@@", "abc12345")
    password("パスワードは @@ です", "sakura2024")
    password("비밀번호: @@", "korea!88")
    password("Your one-time code is @@. Do not share it.", "482913")
    password("@@ is your verification code", "771204")
    password("door PIN @@#", "9031")
    password("meine PIN lautet @@", "4417")
    password("cvv @@ exp 04/28", "737")
    cookie("GET / HTTP/1.1\nHost: a.b\nCookie: @@", f"_ga=GA1.2.3; sessionid={make.token('', 32, _LOWER)}")
    cookie("< set-cookie: @@; Secure", f"connect.sid=s%3A{make.token('', 32)}.{make.token('', 43)}")
    cookie("requests.get(u, cookies={'sessionid': '@@'})", make.token("", 32, _LOWER))
    cookie('curl --cookie "@@" https://x.example', f"JSESSIONID={make.token('', 32, _UPPER)}")
    cookie('document.cookie = "@@"', f"auth_token={make.hex(40)}")
    cookie("-b @@ -X POST", f"laravel_session={make.token('', 40)}")


def _people(make: Forms) -> None:
    national_id, birth_date = map(make.of, ("national_id", "birth_date"))
    national_id("SSN: @@", "219099999")
    national_id("Employee,SSN\nJ. Doe,@@", "078-05-1120")
    national_id("my ITIN @@", "912-70-1234")
    national_id("Canadian SIN @@", "046 454 286")
    national_id("NI no. @@", "qq123456c")
    national_id("NHS Number: @@", "943 476 5919")
    national_id("UTR @@", "1123456789")
    national_id("Meine Steuer-Identifikationsnummer: @@", "86095742719")
    national_id("Steuernummer @@ Finanzamt", "181/815/08155")
    national_id("Sozialversicherungsnummer @@", "65 170839 J 003")
    national_id("Personalausweis: @@", "L01X00T471")
    national_id("NIR @@", "255081416802538")
    national_id("numéro fiscal @@", "30 23 217 600 053")
    national_id("DNI @@", "45.123.456-" + "TRWAGMYFPDXBNJZSQVHLCKE"[45123456 % 23])
    national_id("NIE: @@", "X1234567L")
    national_id("il mio CF: @@", "VRDGPP13R10B293P")
    national_id("BSN @@", "111222333")
    national_id("rijksregister @@", "85.07.30-033.28")
    national_id("PESEL: @@", "44051401359")
    national_id("meu CPF é @@", "111.444.777-35")
    national_id("CPF @@", "11144477735")
    national_id("Aadhaar @@", "2341 2341 2346")
    national_id("PAN: @@", "ABCPE1234F")
    national_id("personnummer @@", "19811228-9874")
    national_id("hetu @@", "131052-308T")
    national_id("AHV @@", "756.9217.0769.85")
    national_id("NRIC @@", "S1234567D")
    national_id("身份证号 @@", "11010519491231002X")
    national_id("RUT @@", "12.345.678-5")
    national_id("Passport No: @@", "C01X00T47")
    birth_date("Name: A. B.\nBorn: @@\nSex: F", "1990-07-04")
    birth_date("DOB @@, allergic to penicillin", "4 Jul 1990")
    birth_date("Birthday: @@", "July 4th, 1990")
    birth_date("Geburtsdatum @@", "4.7.1990")
    birth_date("geb. @@ in Köln", "04.07.90")
    birth_date("date de naissance : @@", "4 juillet 1990")
    birth_date("nací el @@", "4 de julio de 1990")
    birth_date("nata il @@ a Torino", "04/07/1990")
    birth_date("出生日期：@@", "1990年7月4日")
    birth_date("my date of birth is the @@", "4th of July 1990")


def _payments_and_addresses(make: Forms) -> None:
    card, iban, phone, email, ip = map(make.of, ("card", "iban", "phone", "email", "ip"))
    card("Card: @@ exp 09/27", "5555 5555 5555 4444")
    card("charge @@", "378282246310005")
    card("mc 2-series @@", "2223 0031 2200 3222")
    card("diners @@", "3056 930902 5904")
    card("visa: @@", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1")
    card("card:\n@@", "5105\n1051\n0510\n5100")
    card("kort @@", "4012/8888/8888/1881")
    card("کارت @@", arabic("6221061106498670", 0x6F0))
    card("card no @@", "6011_1111_1111_1117")
    iban("Bitte auf @@ überweisen", "AT61 1904 3002 3457 3201")
    iban("virement vers @@", "FR14 2004 1010 0505 0001 3M02 606")
    iban("bonifico: @@", "it60x0542811101000000123456")
    iban("konto @@", "PL 61 1090 1014 0000 0712 1981 2874")
    iban("IBAN\u00a0@@", "NL91\u202fABNA\u202f0417\u202f1643\u202f00")
    iban("iban=@@", "CH93-0076-2011-6238-5295-7")
    email("From: Anna B <@@>\nSubject: Re: invoice", "anna.b+inv@mail.example.co.uk")
    email("mail me: @@", "ａｎｎａ＠ｅｘａｍｐｌｅ．ｃｏｍ")
    email("anna at-sign: @@", "anna(at)example.com")
    email("reach us @@", "anna AT example DOT com")
    email("https://shop.test/u?mail=@@", "anna%40example.com")
    email("<a href='mailto:@@'>", "anna&#64;example.com")
    email("почта: @@", "анна@пример.рф")
    email("邮箱@@谢谢", "wang.li@example.cn")
    ip("client @@ timed out", "203.0.113.77")
    ip("peer [@@]:443", "2001:db8:85a3::8a2e:370:7334")
    phone("call @@", "+44 20 7946 0958")
    phone("+33: @@", "+33 (0)6 12 34 56 78")
    phone("Rufnummer @@", "0176/12345678")
    phone("cell @@", "415.555.2671")
    phone("mobile no 91-@@", "9876543210")
    phone("chiamami al @@", "347 123 4567")
    phone("bel me op @@", "06-12345678")
    phone("звоните @@", "8 (912) 345-67-89")
    phone("電話 @@", "090-1234-5678")
    phone("Hallo, mein Paket ist weg. Meine Handynummer: @@. Danke, A.", "0171-2345678")
    email("Bonjour, je n'arrive plus à me connecter avec @@ depuis lundi.", "a.martin@exemple.fr")
    iban("Buenas, cambien mi cuenta a @@ por favor", "ES91 2100 0418 4502 0005 1332")
    card("Ciao, la carta @@ è stata rifiutata", "4242-4242-4242-4242")
    phone("Hi, please ring me back on @@ asap", "07911 123456")


def _tool_calls(make: Forms) -> None:
    json_ = make.of("json")
    json_(json.dumps({"name": "login", "arguments": json.dumps({"user": "a", "password": "@@"})}), "s3same street")
    json_('{"name": "pay", "arguments": "{\\"card_number\\": @@, \\"cvc\\": \\"737\\"}"}', "4000056655665556")
    json_('{"cvc": @@}', "737")
    json_('{"apiKey": "@@"}', make.hex(32))
    json_(
        '{"to": ["\\u0061nna\\u0040example.org@@"]}'.replace("\\u0061nna\\u0040example.org@@", "@@"),
        "\\u0061nna\\u0040example.org",
    )
    json_('{"mobile": "@@"}', "9876543210")
    json_('{"ssn": @@}', "219099999")
    json_('{"results": [{"id": 7, "iban": "@@"}]}', "BE68539007547034")
    json_('{"headers": {"Authorization": "Bearer @@"}}', make.token("", 30))
    json_('{"set_cookie": ["@@"]}', f"sid={make.hex(32)}")


def later_forms() -> list[SecretForm]:
    """Return the 84 forms of the second round."""
    make = Forms(5)
    key, password, url, cookie, national_id, birth_date, phone, iban, card, email, ip, json_ = map(make.of, (
        "key", "password", "url", "cookie", "national_id", "birth_date", "phone", "iban", "card", "email", "ip", "json",
    ))  # fmt: skip
    key('FIREWORKS_API_KEY="@@"', make.token("fw_", 24))
    key("nvapi key @@", make.token("nv" + "api-", 64))
    key("together: @@", make.hex(64))
    key("export ELEVENLABS_API_KEY=@@", make.hex(32))
    key("deepseek says: invalid key @@", "sk" + "-" + make.hex(32))
    key("VOYAGE_API_KEY=@@", make.token("pa-", 43))
    key('pinecone.init(api_key="@@")', make.token("pc" + "sk_", 60))
    key('qdrant_client = QdrantClient(url, api_key="@@")', make.jwt())
    key('auth: { accessKeyId: "@@" }', make.token("AK" + "IA", 16, _BASE32))
    key("const secretAccessKey = '@@'", make.base64(40))
    key("wandb login @@", make.hex(40))
    key("CIRCLE_TOKEN=@@", make.token("CC" + "IPAT_", 22) + "_" + make.hex(40))
    key("gitlab runner registration token @@", make.token("gl" + "rt-", 20))
    key('  "integrationKey": "@@"', make.hex(32))
    key("pagerduty: Authorization: Token token=@@", make.token("", 20))
    key("X-Vault-Token: @@", make.token("hv" + "s.", 24))
    key("The client_secret is @@", make.token("GO" + "CSPX-", 28))
    key('firebase: apiKey: "@@",', make.token("AI" + "za", 35))
    key("APP_KEY=base64:@@", make.base64(43) + "=")
    key("RAILS_MASTER_KEY=@@", make.hex(32))
    key("jwt_secret: @@", make.token("", 32))
    key('hmac secret "@@"', make.token("", 24))
    password("user=sa;password={@@};encrypt=true", "Pa}ss".replace("}", "x") + "99")
    password('smtp_pass => "@@"', "mail_pw_1")
    password('REDIS_PASSWORD="@@"', "redis-secret")
    password("The root password of the box is: @@", "xK9#mm")
    password("creds: admin/@@", "adm1n!")
    password("Zugangsdaten: Benutzer: max, Passwort: @@", "Fr0sch!")
    password("utilisateur: marie / mot de passe: @@", "Tournesol7")
    password("usuario ana, contraseña @@", "Playa2024")
    password("kod PIN: @@", "4821")
    password('la mia password è "@@"', "ciao mondo")
    password("su contraseña temporal: @@", "Temp#2211")
    password("tmp pw = @@", "pumpkin")
    password('passphrase for key: "@@"', "correct horse battery")
    password('ENV: {"DATABASE_PASSWORD":"@@"}', "q1w2e3")
    url("mysql2://root:@@@127.0.0.1/app", "secret")
    url("clickhouse://default:@@@ch:9000", "chpw")
    url("ftp://user:@@@host/file", "f:tp".replace(":", "1"))
    url("https://user:@@@api.example.com/v1", "a%21b")
    url("rediss://default:@@@x.upstash.io:6379", make.token("", 40))
    cookie("cookie: @@", "__Secure-next-auth.session-token=" + make.token("", 60))
    cookie("Set-Cookie: @@", "csrftoken=" + make.token("", 32) + "; Max-Age=31449600")
    cookie('wget --header="Cookie: @@" u', "uid=" + make.hex(16))
    national_id("SS# @@", "536-90-4399")
    national_id("social: @@", "536904399")
    national_id("N° de sécu: @@", "1 84 12 76 451 089 46")
    national_id("Meine SV-Nummer ist @@", "65170839J003")
    national_id("Codice Fiscale:@@", "RSSMRA85T10A562S")
    national_id("CPF:@@", "111.444.777-35")
    national_id("passport @@ expires 2031", "533401372")
    national_id("NINO: @@", "JG103759A")
    national_id("driver license D@@", "D1234567")
    national_id("USt-IdNr. @@", "DE136695976")
    birth_date("d.o.b. @@", "02/11/1978")
    birth_date("Birthdate (YYYY-MM-DD): @@", "1978-11-02")
    birth_date("I am 46, born @@", "2 Nov 1978")
    birth_date("ur. @@", "02.11.1978")
    birth_date("nacida el @@", "02-11-1978")
    birth_date("patient (@@, f)", "02.11.1978")
    phone("tel:@@", "+390612345678")
    phone("Telefon 0@@", "089/636-48018"[1:])
    phone("WhatsApp +55 @@", "11 91234-5678")
    phone("call us at 1-@@", "800-555-0199")
    phone("num: @@", "+81-90-1234-5678")
    phone("text me on @@", "+1.415.555.2671")
    phone("τηλ. @@", "+30 21 0123 4567")
    card("CC: @@", "4539-5787-6362-1486")
    card("amex @@", "3714 496353 98431")
    card("PAN=@@", "4539578763621486")
    iban("IBAN DE@@", "89 3704 0044 0532 0130 00")
    iban("konto nr @@", "NO93 8601 1117 947")
    email("@@ wrote:", '"Anna B." <anna@example.com>'[11:-1])
    email("to=@@&cc=", "bob%40example.com")
    email("ping me: bob at example dot org".replace("bob at example dot org", "@@"), "bob at example dot org")
    email("mailto:@@?subject=x", "j.o-e_1@sub.example.museum")
    ip("Forwarded: for=@@", "198.51.100.23")
    ip("X-Forwarded-For: @@", "2001:db8::1234")
    json_('{"contact":{"telefon":"@@"}}', "089 63648018")
    json_('{"creditCardNumber":"@@"}', "4539578763621486")
    json_('{"credentials":{"user":"a","pass":"@@"}}', "tulips")
    json_('{"Authorization":"Basic @@"}', "YWRtaW46b3BlbnNlc2FtZTk=")
    json_('{"birthDate":"@@"}', "19781102")
    json_('{"access_token":"@@","expires_in":3600}', make.token("", 48))
    return make.forms
