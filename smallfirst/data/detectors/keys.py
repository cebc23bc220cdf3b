"""Keys of APIs, tokens and private keys that can be told by their own form.

Prefixes and lengths are facts that the providers publish; they were checked against the rules of gitleaks (MIT) and
detect-secrets (Apache-2.0), of which nothing is copied. What has no prefix is taken for a key if it is long and its
letters and figures change as in chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

_FEWEST = {
    # models: OpenAI, Anthropic, OpenRouter and others, Hugging Face, Groq, xAI, Perplexity, Replicate, Tavily, Pinecone
    **dict.fromkeys(
        ("sk-", "api_org_", "gsk_", "xai-", "pplx-", "tvly-", "pcsk_", "lsv2_", "fw_", "nvapi-", "r8_"), 20
    ),
    "hf_": 20,
    "sf-": 40,  # this project's
    # clouds: AWS (key ids have 20 characters), Google, Azure, Alibaba, DigitalOcean, Databricks, Cloudflare, Fly
    **dict.fromkeys(("AKIA", "ASIA", "ABIA", "ACCA", "AROA", "AIDA", "LTAI"), 20),
    "AIza": 35,
    "ya29.": 20,
    "GOCSPX-": 24,
    "dapi": 34,
    "FlyV1": 20,
    "fo1_": 20,
    "SCW": 20,
    "AKID": 32,
    **dict.fromkeys(
        ("dop_v1_", "doo_v1_", "dor_v1_", "hvs.", "hvb.", "hvr.", "tskey-", "pscale_", "sbp_", "sb_secret_"), 20
    ),
    # code: GitHub, GitLab, Bitbucket, npm, PyPI, RubyGems, crates.io, NuGet, Docker, Postman, Sourcegraph, CI
    **dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "npm_", "pypi-", "rubygems_", "dckr_"), 20),
    **dict.fromkeys(
        ("glpat-", "gldt-", "glrt-", "glptt-", "glft-", "glsoat-", "glagent-", "glcbt-", "ATBB", "ATATT"), 20
    ),
    **dict.fromkeys(
        ("PMAK-", "sgp_", "CCIPAT_", "bkua_", "CLOJARS_", "cio", "oy2", "nfp_", "vcp_", "vca_", "pnu_"), 30
    ),
    # messages: Slack, Twilio, SendGrid, Mailgun, Mailchimp, Brevo, Discord
    **dict.fromkeys(
        ("xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xoxe-", "xoxe.", "xapp-", "xwfp-", "SG.", "xkeysib-"), 20
    ),
    # money: Stripe, Square, PayPal, Razorpay, Shopify
    **dict.fromkeys(
        ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "pk_live_", "pk_test_", "whsec_", "rzp_live_"), 16
    ),
    **dict.fromkeys(
        ("shpat_", "shpca_", "shppa_", "shpss_", "sq0atp-", "sq0csp-", "sq0idp-", "EAAA", "EAAC", "rzp_test_"), 20
    ),
    # operation and others: Grafana, New Relic, Sentry, Dynatrace, Doppler, Atlassian, Linear, Notion, Figma, Airtable
    **dict.fromkeys(
        ("glsa_", "glc_", "NRAK-", "sntrys_", "sntryu_", "dt0c01.", "dp.pt.", "dp.st.", "lin_api_", "ntn_"), 20
    ),
    **dict.fromkeys(
        ("secret_", "figd_", "pat-", "CFPAT-", "rdme_", "tfp_", "EZAK", "EZTK", "waka_", "ops_ey", "sl."), 30
    ),
    "AGE-SECRET-KEY-1": 40,
    "sha256~": 40,
    "FLWSECK-": 20,
    "AQVN": 30,
    "y0_": 30,
}
"""Fewest characters of a key by its prefix."""
_PREFIXES = tuple(_FEWEST)
_NEXT = {prefix: tuple(one for one in _PREFIXES if one[0] == prefix) for prefix in {one[0] for one in _PREFIXES}}
_CAPITALS = re.compile(r"[A-Z2-7]{16,}+$")
_TOKEN = re.compile(r"(?<![A-Za-z0-9_\-.~])[A-Za-z0-9_\-.~]{16,}+(?:/[A-Za-z0-9_\-]{20,}+)?=*")
_FORMS = re.compile(
    r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}+(?:\.[A-Za-z0-9_\-]*+){2,4}"  # JSON Web Token
    r"|(?<![A-Za-z0-9_\-])[st]k\.eyJ[A-Za-z0-9_\-]{8,}+\.[A-Za-z0-9_\-]{8,}+"  # Mapbox
    r"|(?<![A-Za-z0-9])pat[A-Za-z0-9]{14}\.[0-9a-f]{64}"  # Airtable
    r"|(?<![0-9])[0-9]{8,10}:AA[A-Za-z0-9_\-]{32,34}(?![A-Za-z0-9_\-])"  # Telegram
    r"|(?<![A-Za-z0-9])(?:SK|AC)[0-9a-f]{32}(?![A-Za-z0-9])"  # Twilio
    r"|(?<![A-Za-z0-9])key-[0-9a-f]{32}(?![A-Za-z0-9])|(?<![A-Za-z0-9])[0-9a-f]{32}-us[0-9]{1,2}(?![0-9])"  # mails
    r"|(?<![A-Za-z0-9_~.\-])[A-Za-z0-9_~.\-]{3}[0-9]Q~[A-Za-z0-9_~.\-]{31,34}"  # Azure
    r"|(?<![A-Za-z0-9.])[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_\-=]{40,}"  # Terraform
    r"|(?<![A-Za-z0-9])1//0[A-Za-z0-9_\-]{30,}"  # Google, to renew a token
    r"|(?<![A-Za-z0-9])[MNO][A-Za-z0-9_\-]{23,27}\.[A-Za-z0-9_\-]{6}\.[A-Za-z0-9_\-]{27,}"  # Discord
)
_BEGIN = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_END = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_BODY = re.compile(r"(?:\s*+[A-Za-z0-9+/=]{16,}+)*+")
_ODD = re.compile(r"[0-9]|[a-z][A-Z]|_[A-Z]")
"""What every key has and few words have."""
_RANDOM = re.compile(r"(?<![A-Za-z0-9+/_\-])[A-Za-z0-9+/_\-]{32,}+={0,2}")
_FIGURES = re.compile(r"[0-9]+")
_IDS = (
    "chatcmpl-", "cmpl-", "call_", "msg_", "resp_", "toolu_", "req_", "run_", "thread_", "asst_", "file-", "batch_",
    "rs_", "fc_", "gen-", "srvtoolu_", "step_", "vs_", "sha256-", "sha384-", "sha512-", "modr-", "embd-",
)  # fmt: skip
"""Prefixes of ids and hashes, which open nothing."""
_FEWEST_CHANGES = 0.42
"""Share of neighbours of different kind (capital, small, figure): about 0.6 in chance, 0.4 in words joined so."""


def key_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of keys in a text."""
    if "PRIVATE KEY" in text:
        yield from _private_spans(text)
    if not any(len(piece) >= 16 and _ODD.search(piece) for piece in text.split()):
        return
    for match in _TOKEN.finditer(text):
        lead = len(match.group()) - len(match.group().lstrip("-_.~"))
        token = match.group()[lead:].rstrip(".-~")
        if is_prefixed(token):
            yield match.start() + lead, match.start() + lead + len(token)
    yield from (match.span() for match in _FORMS.finditer(text))
    for match in _RANDOM.finditer(text):
        if is_random(match.group()):
            yield match.span()


def _private_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield private keys from head to foot; one that is cut off as far as its lines go."""
    begin = _BEGIN.search(text)
    foot = True
    while begin:
        end = _END.search(text, begin.end()) if foot else None
        foot = end is not None
        body = end or _BODY.match(text, begin.end())
        stop = body.end() if body else begin.end()
        yield begin.start(), stop
        begin = _BEGIN.search(text, stop)


def is_prefixed(token: str) -> bool:
    """Return True if a token begins like a key and is as long as one, and no word: figures or capitals are in it."""
    for prefix in _NEXT.get(token[:1], ()):
        if token.startswith(prefix):
            rest = token[len(prefix) :]
            if len(token) < _FEWEST[prefix]:
                continue
            if prefix.isupper() and len(prefix) == 4 and _FEWEST[prefix] == 20:
                return _CAPITALS.match(rest) is not None or (len(rest) > 30 and any(c.isdigit() for c in rest))
            return any(c.isdigit() for c in rest) or (not rest.islower() and changes(rest) > 0.2)
    return False


def is_random(token: str) -> bool:
    """Return True if capitals, small letters and figures follow each other as in chance."""
    if token.startswith(_IDS) or len(_FIGURES.findall(token)) < 2 or token.islower() or token.isupper():
        return False
    return changes(token) >= _FEWEST_CHANGES


def changes(token: str) -> float:
    """Return the share of neighbouring characters that are of different kind."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" if c.islower() else "" for c in token]
    kinds = [kind for kind in kinds if kind]
    return sum(a != b for a, b in pairwise(kinds)) / max(len(kinds) - 1, 1)
