"""The sets of `verdicts.py` as task files: public sets, the demo, and two with a hosted model's answers and bills."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.accuracy.run import data_folder
from benchmarks.paths import ROOT, SETS
from smallfirst.data.sources.load import load_rows
from smallfirst.models.protocol import Request
from smallfirst.models.recorded.replay import request_key
from smallfirst.project.task_file import TaskFile
from smallfirst.records import parse_record
from smallfirst.tasks import TASK_KINDS

DEMO = ROOT / "examples" / "claims_desk" / "task.yaml"
CLOSED = ["words", "encoder"]
"""Candidates for closed answers; a fine-tune of the language model was no better on these sets (docs/measured.md)."""

NO_LARGE: dict[str, Any] = {
    "large": None,
    "gate": {"not_worse_than_large_by": None, "score_not_worse_than_large_by": None},
}
"""Without the large model, which takes 10 s and more an answer here: what is not kept small goes to a person then."""

CHANGES: dict[str, dict[str, Any]] = {
    "banking77": {"ladder": ["encoder"], "large": {"gguf": None, "recorded": "recorded.jsonl"}},
    "clinc150": {"ladder": ["encoder"], **NO_LARGE},
    "claims-desk": {"ladder": CLOSED},
    "pubmedqa": {"ladder": CLOSED, **NO_LARGE},
    "restaurant8k": {
        "ladder": ["small"],
        "small": {"training": {"duration": "1ep", "learning_rate": 3.0e-4, "batch_tokens": 512, "frozen_layers": 20}},
        **NO_LARGE,
    },
    "hosted_invoices": {"small": {"training": {"frozen_layers": 20}}},
    "snips_slots": {
        "ladder": ["small"],
        "small": {"training": {"duration": "90_000tok", "frozen_layers": 20}},
        **NO_LARGE,
    },
    "medquad_short": {"ladder": ["small"], "small": {"training": {"frozen_layers": 15}}, **NO_LARGE},
}
"""Settings that differ from benchmarks/sets, so that all nine sets take hours and not days on two cores."""
HOSTED = {"hosted_banking77": "deepseek-v4.1-flash", "hosted_invoices": "deepseek-v4-flash-0731"}
ORDER = (
    "hosted_banking77", "banking77", "clinc150", "claims-desk", "pubmedqa",
    "restaurant8k", "hosted_invoices", "snips_slots", "medquad_short",
)  # fmt: skip
"""By importance."""


def task_file(name: str, folder: Path) -> TaskFile:
    """Return the task file of a set; what has to be converted first is written to `folder`."""
    if name == "claims-desk":
        path, data = DEMO, DEMO.parent
    elif name in HOSTED:
        path, data = SETS / f"{name}.yaml", hosted_rows(name, folder)
    else:
        path, data = SETS / f"{name}.yaml", data_folder(name)
    answers = hosted_rows("hosted_banking77", folder) if name == "banking77" else data
    values = merged(yaml.safe_load(path.read_text(encoding="utf-8")), CHANGES.get(name, {}))
    for setting in ("train", "validation", "test", "open_ended"):
        if setting in values["data"]:
            values["data"][setting] = str(data / values["data"][setting])
    for setting in {"recorded", "recorded_open"} & (values["large"] or {}).keys():
        values["large"][setting] = str(answers / values["large"][setting])
    values = {**values, "folder": str(folder)}
    if values.get("kind", "classify") in TASK_KINDS.names():
        values = TASK_KINDS.get(values.get("kind", "classify")).expand_settings(values, data)
    return parse_record(TaskFile, values, where=name)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the changes, which may be nested."""
    found = dict(values)
    for name, change in changes.items():
        found[name] = merged(found.get(name, {}), change) if isinstance(change, Mapping) else change
    return found


def hosted_rows(name: str, folder: Path) -> Path:
    """Write rows and recorded answers of a hosted set to `folder` unless they are there; return the folder."""
    root = Path(os.environ.get("SMALLFIRST_DATA", ROOT.parent / "shared" / "datasets")) / name
    if not root.is_dir():
        sys.exit(f"{name} was not found in {root.parent}; set SMALLFIRST_DATA")
    place = folder / "rows"
    if (place / "recorded.jsonl").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    answers: dict[str, dict[str, Any]] = {}
    splits = [path.name.removesuffix(".jsonl.gz") for path in sorted(root.glob("*.jsonl.gz"))]
    for split in splits:
        with gzip.open(root / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        kept = ("text", "label", "target", "template")
        text = "".join(json.dumps({k: row[k] for k in kept if k in row}, ensure_ascii=False) + "\n" for row in rows)
        (place / f"{split}.jsonl").write_text(text, encoding="utf-8")
        for example, row in zip(load_rows(place / f"{split}.jsonl").examples, rows, strict=True):
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
