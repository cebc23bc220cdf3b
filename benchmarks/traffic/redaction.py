"""What redaction keeps of realistic secrets, what it takes out of clean texts, and how fast it is.

    python -m benchmarks.traffic.redaction measure NAME RESULTS.jsonl [--draw report]
    python -m benchmarks.traffic.redaction alarms [--draw report]
    python -m benchmarks.traffic.redaction lists

`measure` adds a line for the package that is imported, so an older one is measured by its folder in PYTHONPATH; `alarms` prints every
clean text in which something is redacted, for a reader who tells real personal data from false alarms. The draws `development` and `report` have no text in common.
`lists` prints what stays of the secrets of `secrets_first.txt` and `secrets_second.txt`, what is redacted in 10,000 ordinary sentences, and the time.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.datasets import data_folder
from benchmarks.traffic.secret_forms import Maker, SecretForm, known_forms, later_forms, unseen_forms
from smallfirst.data.redaction import redact

SETS = (
    "banking77", "clinc150", "pubmedqa", "medquad_short", "snips_slots", "restaurant8k", "mt_bench", "ifeval", "self_instruct_seed", "xquad_en",
)  # fmt: skip
FIELDS = ("text", "prompt", "instruction", "question", "context", "answer", "reference", "long_answer")
N_CLEAN = 5000
N_PLAIN = 1000
SEED = 20261130


def clean_texts(draw: str) -> list[tuple[str, str]]:
    """Return (set, text) of 5,000 different texts: as many from each set, and from large sets what small ones lack."""
    pools = {}
    for name in SETS:
        texts = sorted({text for path in sorted(data_folder(name).glob("*.jsonl")) for text in _texts(path)})
        random.Random(SEED).shuffle(texts)
        half = len(texts) // 2
        pools[name] = texts[:half] if draw == "development" else texts[half:]
    drawn: list[tuple[str, str]] = []
    while len(drawn) < N_CLEAN and any(pools.values()):
        for name, texts in pools.items():
            if texts and len(drawn) < N_CLEAN:
                drawn.append((name, texts.pop()))
    return drawn


def _texts(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        row = json.loads(line or "{}")
        found = "\n".join(row[field] for field in FIELDS if isinstance(row.get(field), str))
        if found.strip():
            yield found


def plain_texts(draw: str) -> list[tuple[str, str]]:
    """Return (kind, text) of 1,000 made-up texts with what looks like a secret and is none."""
    make, chance = Maker(11 if draw == "development" else 12), random.Random(SEED + len(draw))

    def digits(n: int) -> str:
        return "".join(chance.choices("123456789", k=1) + chance.choices("0123456789", k=n - 1))

    def isbn() -> str:
        body = "978" + digits(9)
        check = -sum(int(d) * (1 + 2 * (i % 2)) for i, d in enumerate(body)) % 10
        return f"{body[:3]}-{body[3]}-{body[4:8]}-{body[8:]}-{check}"

    def uuid() -> str:
        return "-".join(make.hex(n) for n in (8, 4, 4, 4, 12))

    def day() -> str:
        y, m, d = chance.randint(1980, 2030), chance.randint(1, 12), chance.randint(1, 28)
        return chance.choice([f"{y}-{m:02}-{d:02}", f"{d:02}.{m:02}.{y}", f"{m}/{d}/{y}", f"{y}{m:02}{d:02}"])

    makers = {
        "order": lambda: f"Where is my order {chance.choice(['', '#', 'no. ', 'A-'])}{digits(chance.randint(6, 12))}?",
        "isbn": lambda: f"Is ISBN {isbn()} in stock?",
        "version": lambda: (
            f"Fails since v{chance.randint(0, 20)}.{chance.randint(0, 40)}.{chance.randint(0, 900)}, worked in {digits(1)}.{digits(2)}.{digits(3)}"
        ),
        "uuid": lambda: f"request {uuid()} timed out",
        "commit": lambda: f"broken since commit {make.hex(40)}, fine at {make.hex(8)}",
        "sha256": lambda: f"sha256 of the file: {make.hex(64)}",
        "coordinates": lambda: f"What is at {chance.uniform(-90, 90):.6f}, {chance.uniform(-180, 180):.6f}?",
        "amount": lambda: (
            f"That makes {chance.randint(1, 999)},{digits(3)},{digits(3)}.{digits(2)} USD, or {chance.randint(1, 99)} {digits(3)} {digits(3)} €, up {digits(2)}.{digits(1)} %"
        ),
        "date": lambda: f"The meeting of {day()} {chance.randint(0, 23):02}:{digits(1)}5 is moved to {day()}",
        "timestamp": lambda: (
            f"[{day()}T{chance.randint(10, 23)}:15:{chance.randint(10, 59)}.{digits(6)}Z] level=info took={digits(4)}ms ts=17{digits(11)}"
        ),
        "table": lambda: (
            "a,b,c\n" + "\n".join(",".join(digits(chance.randint(1, 4)) for _ in range(8)) for _ in range(6))
        ),
        "matrix": lambda: "\n".join(" ".join(digits(chance.randint(1, 3)) for _ in range(10)) for _ in range(5)),
        "invoice": lambda: (
            f"Invoice RE-{chance.randint(2015, 2030)}-{digits(5)} of {day()}, customer {digits(6)}, total {digits(3)}.{digits(2)} EUR"
        ),
        "tracking": lambda: f"My parcel 1Z{make.token('', 16, 'ABCDEFGHJKLMNPRSTUVWXYZ0123456789')} has not moved",
        "ean": lambda: f"The barcode says {digits(13)}",
        "issue": lambda: (
            f"see issue #{digits(5)} and PR {digits(4)}, line {digits(3)}:{digits(2)} of src/parserV2/TokenReader3Test.java"
        ),
        "code": lambda: (
            f"def get_token(key: str, password: str = '') -> str:\n    token = cache.get(key, None)\n    return token or login(user, password=password)[{digits(1)}]"
        ),
        "question": lambda: chance.choice(
            [
                "How do I reset my password?",
                "My password is not working since Monday",
                "Which tokens does the key unlock?",
                "The PIN was rejected 3 times",
                "Where do I find my card number?",
                "Cookies: how do I delete them in version 12?",
                "Was he born in 1984 or 1985?",
                "Which phone has 128 GB and 5000 mAh?",
            ]
        ),
        "url": lambda: f"https://example.com/item/{digits(9)}?page={digits(2)}&ref={make.token('', 8)}",
        "score": lambda: (
            f"GDP 2019-2023: {digits(3)}.{digits(1)} {digits(3)}.{digits(1)} {digits(3)}.{digits(1)}; p = 0.{digits(4)}, 95 % CI 0.{digits(3)}-0.{digits(3)}"
        ),
    }
    return [(kind, makers[kind]()) for kind in (list(makers) * (N_PLAIN // len(makers)))]


class Line(NamedTuple):
    """A line of the lists of secrets: what is said in which language, and what in it is secret."""

    language: str
    form: SecretForm


def listed(name: str) -> list[Line]:
    lines = Path(__file__).with_name(f"secrets_{name}.txt").read_text(encoding="utf-8").splitlines()
    given = [line.split(" | ", 2) for line in lines if line and line[0] != "#"]
    texts = [(language, kind, text.replace("\\n", "\n")) for language, kind, text in given]
    return [
        Line(language, SecretForm(kind, re.sub("[⟦⟧]", "", text), re.findall("⟦(.*)⟧", text)[0]))
        for language, kind, text in texts
    ]


def sentences() -> list[tuple[str, str]]:
    """Return (set, text) of 10,000 ordinary sentences: 2,400 German, English and Italian ones of xsid, and as many of each other set as it has."""
    pools = {}
    for name in ("xsid", "nq_open", *SETS):
        texts = sorted({text for path in sorted(data_folder(name).glob("*.jsonl")) for text in _texts(path)})
        pools[name] = [one for text in texts for one in re.split(r"(?<=[.?!])\s+", text) if len(one) > 15]
        random.Random(SEED).shuffle(pools[name])
    drawn = [("xsid", text) for text in pools.pop("xsid")[:2400]]
    while len(drawn) < 10_000:
        drawn += [(name, texts.pop()) for name, texts in pools.items() if texts]
    return drawn[:10_000]


def lists() -> None:
    for name in ("first", "second"):
        lines = listed(name)
        left = [line for line in lines if line.form.kept_in(redact(line.form.text).text)]
        print(
            f"{name}: {len(left)} of {len(lines)} stay",
            *(f"  {one.language} {one.form.kind}: {one.form.text!r}" for one in left),
            sep="\n",
        )
    near = [("near", line) for line in Path(__file__).with_name("no_secrets.txt").read_text("utf-8").splitlines()[1:]]
    print(f"{len(alarms(near))} of {len(near)} sentences beside a name are redacted")
    texts = sentences()
    wrong = alarms(texts)
    print(f"{len(wrong)} of {len(texts)} sentences are redacted")
    for name, text, redacted in wrong:
        print(f"  {name}", *_differences(text, redacted), sep="\t")
    for title, given in (("sentences", [text for _, text in texts]), ("long texts", _long_texts())):
        print(f"{title}: {1000 / speed(given, 5)[1]:.0f} µs a KB of {sum(len(t.encode()) for t in given):,} bytes")


def _long_texts() -> list[str]:
    return [text for _, text in clean_texts("development") if len(text) > 800]


def alarms(texts: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(name, text, found.text) for name, text in texts if (found := redact(text)).counts]


def kept(forms: list[SecretForm]) -> list[SecretForm]:
    return [form for form in forms if form.kept_in(redact(form.text).text)]


def speed(texts: list[str], repeats: int = 3) -> tuple[float, float]:
    """Return texts and megabytes a second of one process, the best of the repeats."""
    best = min(_seconds(texts) for _ in range(repeats))
    return len(texts) / best, sum(len(text.encode()) for text in texts) / best / 1e6


def _seconds(texts: list[str]) -> float:
    began = time.process_time()
    for text in texts:
        redact(text)
    return time.process_time() - began


def measure(name: str, draw: str) -> dict[str, object]:
    clean, plain = clean_texts(draw), plain_texts(draw)
    forms = {"known": known_forms(), "unseen": unseen_forms(), "later": later_forms()}
    texts = [text for _, text in clean]
    return {
        "name": name,
        "draw": draw,
        **{
            f"{group}, kept of {len(given)}": Counter(form.kind for form in kept(given))
            for group, given in forms.items()
        },
        f"redacted of {len(clean)} clean": Counter(name for name, _, _ in alarms(clean)),
        f"redacted of {len(plain)} made up": Counter(kind for kind, _, _ in alarms(plain)),
        "clean, texts/s and MB/s": speed(texts),
        "clean below 100 characters": speed([text for text in texts if len(text) < 100]),
        "clean above 800 characters": speed([text for text in texts if len(text) > 800]),
        "with secrets": speed([form.text for form in forms["unseen"]] * 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["measure", "alarms", "lists"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--draw", default="development", choices=["development", "report"])
    given = parser.parse_args()
    if given.command == "lists":
        return lists()
    if given.command == "alarms":
        for name, text, redacted in alarms(clean_texts(given.draw) + plain_texts(given.draw)):
            print(name, *_differences(text, redacted), sep="\t")
        return
    name, path = given.arguments
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(measure(name, given.draw)) + "\n")


def _differences(text: str, redacted: str) -> Iterator[str]:
    """Yield what was replaced, with the words around."""
    kept = re.split(r"\[([A-Z_]+)\]", redacted)  # in turn: what stayed, and a kind
    whole = re.fullmatch("(.*?)".join(map(re.escape, kept[::2])), text, re.DOTALL)
    for i, kind in enumerate(kept[1::2], 1):
        start, end = whole.span(i) if whole else (0, len(text))
        yield f"{kind}: …{text[max(0, start - 25) : start]}«{text[start:end]}»{text[end : end + 15]}".replace("\n", "⏎")


if __name__ == "__main__":
    main()
