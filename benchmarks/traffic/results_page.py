"""The page benchmarks/results/discovery.md, of which each benchmark writes a section."""

from __future__ import annotations

from benchmarks.datasets import RESULTS

PAGE = RESULTS / "discovery.md"
_HEAD = """# What is discovered in traffic

2026-11-27, 2 shared cores (Zen 5), 24 GB, no GPU, Python 3.11, busy with other work. The log is made by
`benchmarks/traffic/mixed_log.py` from ten public sets: 24,000 requests, 15 % of them noise, 41 wordings of 11 tasks.
The wordings of the collections `report` and `unseen` are others than those of `development`, on which the miner was developed.
"""


def write_section(title: str, command: str, text: str) -> None:
    """Write or replace the section with this title."""
    content = PAGE.read_text(encoding="utf-8") if PAGE.exists() else _HEAD
    head, *sections = content.split("\n## ")
    kept = [section for section in sections if section.partition("\n")[0] != title]
    kept.append(f"{title}\n\n{command}\n\n{text.rstrip()}\n")
    parts = [head.rstrip() + "\n", *(section.rstrip() + "\n" for section in sorted(kept, reverse=True))]
    PAGE.write_text("\n## ".join(parts), encoding="utf-8")
