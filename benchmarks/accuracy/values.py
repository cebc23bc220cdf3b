"""Read 300 written numbers, amounts, days and times of ten languages, by smallfirst and by libraries side by side.

    PYTHONPATH=OTHER python -m benchmarks.accuracy.values --count before.json     # smallfirst of another checkout
    python -m benchmarks.accuracy.values --count after.json --libraries           # pip install babel price-parser
    python -m benchmarks.accuracy.values --table before.json after.json           # benchmarks/results/values.md

The forms (`benchmarks/sets/values.tsv`) have the right value beside each, against Wednesday 2026-03-04. Half of them were
written before any library had been tried. A library is told the language; smallfirst's forms are those that rows of the
language would teach it. A money value needs the right currency, a price of price-parser its sign or name.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.datasets import RESULTS, ROOT

TODAY = dt.date(2026, 3, 4)
KINDS = ("number", "money", "date", "time")
POINTS = ("de", "es", "it", "pt", "nl")
"""Languages that group by points."""


def rows() -> list[dict[str, str]]:
    with (ROOT / "benchmarks/sets/values.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _form(language: str, kind: str) -> str:
    forms = {"number": "thousands" if language in POINTS else "number", "time": "time"}
    return forms.get(kind, "date" if language == "en" else "date_dmy")


def own(language: str, kind: str, text: str) -> Any:
    """Return what smallfirst reads."""
    from smallfirst.models.calls.dates import days_in
    from smallfirst.models.spans.values import read_value
    from smallfirst.tasks.value_matching import normalize_value

    if kind == "money":
        read: Any = normalize_value(text, "money")
        return f"{read[1]} {float(read[2]):.15g}" if read[0] == "money" else None
    found = read_value(text, _form(language, kind))
    if kind == "date" and found is None:
        found = next((day for start, end, day in days_in(text, TODAY) if (start, end) == (0, len(text))), None)
    return found if kind != "number" or found is None else f"{found:.15g}"


def own_place(language: str, kind: str, text: str) -> bool:
    """Return True if smallfirst finds the form whole in a sentence."""
    from smallfirst.models.calls.dates import days_in
    from smallfirst.models.calls.mentions import _said
    from smallfirst.models.spans.values import reads

    sentence = f"abc: {text}, abc"
    forms = {"money": lambda: _said(sentence, "money", TODAY), "date": lambda: days_in(sentence, TODAY)}
    found = forms.get(kind, lambda: reads(sentence, _form(language, kind)))()
    return any(sentence[start:end] == text for start, end, _ in found)


def dateparser(language: str, kind: str, text: str) -> Any:
    import dateparser as library

    order = {} if language == "en" else {"DATE_ORDER": "YMD" if language in ("ja", "sv") else "DMY"}
    settings: Any = {"RELATIVE_BASE": dt.datetime(2026, 3, 4, 0, 0), "PREFER_DATES_FROM": "future", **order}
    found = library.parse(text, languages=[language], settings=settings) if kind in ("date", "time") else None
    return found and f"{found:{'%Y-%m-%d' if kind == 'date' else '%H:%M'}}"


def babel(language: str, kind: str, text: str) -> Any:
    from babel import dates, numbers

    try:
        if kind == "number":
            return f"{float(numbers.parse_decimal(text, locale=language)):.15g}"
        if kind == "date":
            return dates.parse_date(text, locale=language).isoformat()
        return f"{dates.parse_time(text, locale=language):%H:%M}" if kind == "time" else None
    except (ValueError, IndexError, AttributeError, KeyError):
        return None


def price_parser(language: str, kind: str, text: str) -> Any:
    from price_parser import Price

    from smallfirst.tasks.value_matching import CURRENCIES

    found = Price.fromstring(text)
    if found.amount is None or kind not in ("number", "money"):
        return None
    amount = f"{float(found.amount):.15g}"
    name = (found.currency or "").casefold()
    return amount if kind == "number" else f"{CURRENCIES.get(name, name.upper())} {amount}"


Reader = Callable[[str, str, str], Any]


def count(readers: dict[str, Reader]) -> dict[str, dict[str, int]]:
    """Return by reader what was right, by `half`, `language` and `kind`."""
    found: dict[str, dict[str, int]] = {}
    for name, reader in readers.items():
        right: Counter[str] = Counter()
        for row in rows():
            language, kind, text = row["language"], row["kind"], row["written"]
            read = reader(language, kind, text)
            is_right = read if isinstance(read, bool) else read == row["value"]
            for key in (row["half"], language, kind):
                right[key] += is_right
        found[name] = dict(right)
    return found


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    sizes = Counter(row[key] for row in rows() for key in ("half", "language", "kind"))
    columns = {"before": before["read"], "now": after["read"]}
    columns |= {"place before": before["place"], "place now": after["place"]}
    columns |= {name: counts for name, counts in after.items() if name not in ("read", "place")}
    lines = [f"| | n | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for key, n in sizes.items():
        lines.append(f"| {key} | {n} | {' | '.join(str(counts.get(key, 0)) for counts in columns.values())} |")
    both = [sum(counts.get(half, 0) for half in ("before", "after")) for counts in columns.values()]
    return "\n".join([*lines, f"| all | {len(rows())} | {' | '.join(map(str, both))} |"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=Path)
    parser.add_argument("--libraries", action="store_true")
    parser.add_argument("--table", type=Path, nargs=2)
    given = parser.parse_args()
    readers: dict[str, Reader] = {"read": own, "place": own_place}
    if given.libraries:
        readers |= {"dateparser": dateparser, "babel": babel, "price-parser": price_parser}
    if given.count:
        given.count.write_text(json.dumps(count(readers)))
    if given.table:
        before, after = (json.loads(path.read_text()) for path in given.table)
        (RESULTS / "values.md").write_text(PAGE.format(table=table(before, after)), encoding="utf-8")


PAGE = """\
# Written numbers, amounts, days and times

`python -m benchmarks.accuracy.values`, 2026-12-07, two cores of an AMD EPYC (Zen 4), no GPU.

300 forms of ten languages, written by hand with the value beside each; the first half (`before`) before any library had been tried, the second
(`after`) afterwards. *before* and *now* are smallfirst before and after dateparser reads months in words; *place*: the form is found whole
in a sentence. The libraries are told the language. dateparser 1.5.0 reads days and times, Babel 2.19 numbers, days and times, price-parser 0.5.1 numbers and amounts.
recognizers-text (1.0.2a2) installs and cannot be imported: it needs `emoji` below 2.
dateparser had been tried on 13 forms before the second half was written. Loading its 17 languages takes 0.43 s of a process, at the first date that needs it.

{table}
"""

if __name__ == "__main__":
    main()
