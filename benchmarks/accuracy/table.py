"""Print the table of docs/measured.md from benchmarks/results/*.json, so that no figure is copied by hand.

python -m benchmarks.accuracy.table
"""

from __future__ import annotations

import json

from benchmarks.datasets import RESULTS
from smallfirst.base.stats.intervals import Estimate

SETS = {
    "banking77": ("Banking77, 77 intents", "accuracy"),
    "clinc150": ("CLINC150, 150 intents + out of scope", "accuracy"),
    "restaurant8k": ("Restaurant-8k, 5 slots as JSON", "field_f1"),
    "snips_slots": ("SNIPS, intent + slots as nested JSON", "field_f1"),
    "pubmedqa": ("PubMedQA, yes / no / maybe", "macro_f1"),
    "medquad_short": ("MedQuAD, short answers, closed book", "token_f1"),
}
PATHS = {
    "linear": "words + linear",
    "encoder": "frozen MiniLM + linear",
    "tuned": "MiniLM fine-tuned + linear",
    "small": "SmolLM2-135M fine-tuned",
    "large": "Qwen2.5-Coder-1.5B, fair prompt",
    "routed": "routed",
}


def rows(name: str) -> list[str]:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    title, measure = SETS[name]
    lines = []
    for key, words in PATHS.items():
        figures = found["outcome"].get(key)
        if not figures:
            continue
        if key == "small":
            words += f", {found['training_minutes']:.0f} min"
        second = figures.get("measures", {}).get(measure)
        rate = figures["requests_per_s"]
        rate = f"{rate:,.0f}" if rate and rate >= 10 else f"{rate:.1f}" if rate else "–"
        cells = [
            title if not lines else "", words, str(Estimate(**figures["accuracy"])),
            f"{measure} {Estimate(**second)}" if second else "", f"{figures['accuracy']['n']:,}", rate,
            f"{figures['p50_ms']:,.0f} ms", f"${figures['cost_usd_per_1k']:.2g}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    print("| set | path | accuracy or exact match [95 %] | | n | requests/s | p50 | per 1,000 |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SETS:
        print("\n".join(rows(name)) or f"| {name}: not measured | | | | | | | |")


if __name__ == "__main__":
    main()
