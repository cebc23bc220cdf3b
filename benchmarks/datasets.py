"""Where the parts of the benchmarks are, and the public sets that they read.

Run every benchmark from the project's root: `python -m benchmarks.FOLDER.NAME`. Sets are read from the folder
SMALLFIRST_DATA, else from ../shared/datasets beside the repository; benchmarks/sets names their sources.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smallfirst.data.sources.load import load_rows
from smallfirst.models.protocol import Request
from smallfirst.models.recorded import request_key
from smallfirst.path.project.task_file import TaskFile, read_task_file

ROOT = Path(__file__).parents[1]
"""The project's root."""
RESULTS = ROOT / "benchmarks" / "results"
"""Pages and figures that the benchmarks write."""
SETS = ROOT / "benchmarks" / "sets"
"""One task file for each set in full."""
HOSTED = {"hosted_banking77": "deepseek-v4.1-flash", "hosted_invoices": "deepseek-v4-flash-0731"}
"""Sets with the answers, tokens and bills of a hosted model, and the model."""


def data_folder(name: str) -> Path:
    """Return the folder of a set. Exit if there is none."""
    root = Path(os.environ.get("SMALLFIRST_DATA") or ROOT.parent / "shared" / "datasets")
    if not (root / name).is_dir():
        sys.exit(f"{name} was not found in {root}: convert it to JSON lines and set SMALLFIRST_DATA")
    return root / name


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON Lines file, which may be packed by gzip."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    yield from map(json.loads, text.strip().split("\n"))


def task_file(name: str, folder: Path) -> TaskFile:
    """Return the benchmark's task file with its rows in `folder`."""
    file = read_task_file(SETS / f"{name}.yaml")
    data = file.data.model_copy(update={part: folder / f"{part}.jsonl" for part in ("train", "validation", "test")})
    return file.model_copy(update={"data": data})


def hosted_rows(name: str, folder: Path) -> Path:
    """Write rows and recorded answers of a hosted set to `folder`/rows unless they are there; return that folder."""
    place = folder / "rows"
    if (place / "recorded.jsonl").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    answers: dict[str, dict[str, Any]] = {}
    for packed in sorted(data_folder(name).glob("*.jsonl.gz")):
        rows, path = list(read_lines(packed)), place / packed.name.removesuffix(".gz")
        kept = ("text", "label", "target", "template")
        lines = (json.dumps({k: row[k] for k in kept if k in row}, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        for example, row in zip(load_rows(path).examples, rows, strict=True):
            answers[request_key(Request(messages=example.messages))] = row
    header = {"model": HOSTED[name], "made_at": "2026-09-26", "smallfirst": "-", "n": len(answers)}
    header |= {"command": "a hosted API, temperature 0", "prompt": "the labels or the rules, no examples"}
    measured = ("prompt_tokens", "completion_tokens", "latency_ms", "cost_usd")
    out = [json.dumps({"recorded": header})]
    for key, row in answers.items():
        answer = row.get("answer_label") or row["answer"]
        out.append(json.dumps({"key": key, "text": row["text"], "answer": answer, **{m: row[m] for m in measured}}))
    (place / "recorded.jsonl").write_text("\n".join(out) + "\n", encoding="utf-8")
    return place


def processor() -> str:
    """Return the processor's name, if the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
