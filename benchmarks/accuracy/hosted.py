"""Small candidates beside a hosted model whose answers, bills and latencies are on record, on the same rows.

    python -m benchmarks.accuracy.hosted FOLDER SET --fit words encoder      # fit candidates; FOLDER keeps them
    python -m benchmarks.accuracy.hosted FOLDER SET --measure words encoder  # ask them every row, then 200 one at a time
    python -m benchmarks.accuracy.hosted FOLDER SET --logits NAME FILE.npz   # a classifier's stored test logits instead
    python -m benchmarks.accuracy.hosted FOLDER                              # write benchmarks/results/hosted.md

Sets: `hosted_banking77` (the 3,080 official test rows) and `hosted_invoices` (the 400 validation rows, whose four layouts
none of the 2,000 training rows has). A logits file has `labels`, `logits/test` (rows, labels) in the order of the test file,
and may have `ms/test`, processor time of one row in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paths import RESULTS
from benchmarks.routing.verdict_sets import HOSTED, task_file
from smallfirst.evaluation.evaluate import EvaluationSetup, compare, evaluate, score_row, summarize
from smallfirst.evaluation.results import Evaluation
from smallfirst.models.protocol import Completion
from smallfirst.models.recorded.replay import ReplayModel
from smallfirst.pricing.money import format_usd
from smallfirst.progress import Progress
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder

PROBE_ROWS = 200
LARGE = "large"

HEAD = """# Small candidates beside a hosted model on record

`python -m benchmarks.accuracy.hosted`, {date}, 2 shared cores (Zen 5), 24 GB, busy with other work, so own costs and times are
upper bounds. The hosted model's answers, bills and wall-clock latencies were recorded on 2026-09-26 (temperature 0, the labels or the
rules and no examples in its prompt, no reasoning); nothing was tuned on the rows below. Own cost: measured time at
$0.10 an hour for the machine, busy 30 % of it. Accuracy: share of right answers (for JSON every field right) with a 95 % Wilson
interval; difference: candidate minus hosted on the same rows, 95 %. p50 and p95 of small candidates: {probes} rows asked one at a
time, in the process; candidates without one were scored from stored logits of a fit on the 9,000 training rows of
`benchmarks/sets/banking77.yaml`, and cost and requests/s are those of one row's processor time on one core.
"""


class Hosted:
    """One set: its project, with the held-out rows as test rows, and the folder of what was fitted and measured."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.place = name, (folder / name).resolve()
        self.place.mkdir(parents=True, exist_ok=True)
        file = task_file(name, self.place)
        if name == "hosted_invoices":  # the four layouts that training rows do not have
            columns = file.data.columns.model_copy(update={"group": "template"})
            data = file.data.model_copy(update={"test": self.place / "rows" / "validation.jsonl", "columns": columns})
            file = file.model_copy(update={"data": data})
        self.project = Project.read(file, Progress())
        self.run_folder = RunFolder(self.place / "fitted")
        self.setup = EvaluationSetup(self.project.task, self.project.rows.test, split="test")

    def fit(self, name: str) -> None:
        """Fit a candidate, and note the minutes."""
        self.run_folder.path.mkdir(exist_ok=True)
        began = time.monotonic()
        get_candidate(name).fit(self.project, self.run_folder)
        minutes = (time.monotonic() - began) / 60
        (self.place / f"{name}.minutes").write_text(f"{minutes:.2f}")
        print(f"{self.name}: {name} fitted in {minutes:.2f} min")

    def measure(self, name: str) -> None:
        """Measure a fitted candidate on all test rows."""

        async def asked() -> Evaluation:
            model = get_candidate(name).load(self.project, self.run_folder)
            try:
                return await evaluate(model, self.setup, candidate=name, probe_rows=PROBE_ROWS)
            finally:
                await model.aclose()

        self.save(asyncio.run(asked()))

    def add_logits(self, name: str, path: Path) -> None:
        """Score stored logits of a classifier that was fitted elsewhere on the training rows."""
        with np.load(path, allow_pickle=False) as stored:
            labels = [str(label) for label in stored["labels"]]
            said = [labels[i] for i in np.argmax(stored["logits/test"], axis=1)]
            ms = float(stored["ms/test"]) if "ms/test" in stored else 0.0
        examples = self.project.rows.test.examples
        assert len(said) == len(examples), f"{path} has {len(said)} rows, the test file {len(examples)}"
        usd = self.project.file.prices.machine.cost_usd(ms / 1000)
        common: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "answered_by": name, "latency_ms": ms}
        rows = [
            score_row(e, Completion(text=answer, cost_usd=usd, **common), self.project.task, name)
            for e, answer in zip(examples, said, strict=True)
        ]
        rate = 1000 / ms if ms else None
        self.save(summarize(rows, self.setup, candidate=name, model=name, latencies_ms=[], requests_per_s=rate))

    def hosted(self) -> Evaluation:
        """Return the recorded model on the test rows."""
        large = self.project.file.large
        assert large is not None
        assert large.recorded is not None
        model = ReplayModel.load(self.project.file.path(large.recorded))
        return asyncio.run(evaluate(model, self.setup, candidate=LARGE, note=model.note))

    def save(self, found: Evaluation) -> None:
        print(f"{self.name}: {found.candidate} {found.in_words}")
        found.save(self.place / f"{found.candidate}.json")

    def page(self) -> list[str]:
        """Lines of the page: a table, and for JSON the fields that fail."""
        hosted = self.hosted()
        found = sorted((Evaluation.load(path) for path in self.place.glob("*.json")), key=lambda e: e.accuracy.value)
        rows, n = self.project.rows, len(self.project.rows.test)
        lines = [f"\n## {self.name}: {n:,} rows, {HOSTED[self.name]}", ""]
        lines += [f"Fitted on {len(rows.train):,} rows; {len(rows.selection):,} selection rows chose settings.", ""]
        if self.name == "hosted_invoices":
            lines += [
                "The rows are of four layouts, near-copies of each other: intervals take rows for independent draws and are too narrow.",
                "",
            ]
        lines += [
            "| | accuracy | minus hosted | right alone / hosted alone | cost per 1,000 | of the bill | p50 | p95 | requests/s | minutes to fit |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        for one in [hosted, *found]:
            lines.append(self._line(one, hosted))
        if not found:
            lines += ["", "No small candidate has been measured on these rows yet."]
        if any(one.parts and self.project.task.part == "field" for one in found):
            lines += ["", *self._fields([hosted, *found])]
        return lines

    def _line(self, one: Evaluation, hosted: Evaluation) -> str:
        minutes = self.place / f"{one.candidate}.minutes"
        cells = [one.candidate if one is not hosted else f"**{one.model}**", f"{one.accuracy}, n={one.accuracy.n:,}"]
        if one is hosted:
            cells += ["", ""]
        else:
            pair = compare(one, hosted)
            cells += [f"{pair.difference.value:+.3f} [{pair.difference.low:+.3f}, {pair.difference.high:+.3f}]"]
            cells += [f"{pair.only_first:,} / {pair.only_second:,}"]
        cost = one.cost_usd_per_1k
        cells += [format_usd(cost) if cost else "–", f"{100 * cost / hosted.cost_usd_per_1k:.1f} %" if cost else "–"]
        cells += [f"{ms:,.1f} ms" if ms else "–" for ms in (one.p50_ms, one.p95_ms)]
        cells += [f"{one.requests_per_s:,.0f}" if one.requests_per_s else "recorded" if one is hosted else "–"]
        cells += [minutes.read_text() if minutes.exists() else "–"]
        return "| " + " | ".join(cells) + " |"

    def _fields(self, found: list[Evaluation]) -> list[str]:
        names = [part.name for part in found[0].parts]
        lines = ["| field: share of rows right | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        for one in found:
            wrong = [set(row.wrong_fields or ()) if row.answer is not None else set(names) for row in one.rows]
            shares = [1 - sum(name in fields for fields in wrong) / len(wrong) for name in names]
            lines.append(f"| {one.candidate} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("set", nargs="?", choices=sorted(HOSTED))
    parser.add_argument("--fit", nargs="+", default=[])
    parser.add_argument("--measure", nargs="+", default=[])
    parser.add_argument("--logits", nargs=2, action="append", default=[])
    arguments = parser.parse_args()
    if arguments.set is None:
        lines = [HEAD.format(date=date.today().isoformat(), probes=PROBE_ROWS)]
        for name in HOSTED:
            lines += Hosted(arguments.folder, name).page()
        (RESULTS / "hosted.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    bench = Hosted(arguments.folder, arguments.set)
    for name in arguments.fit:
        bench.fit(name)
    for name in arguments.measure:
        bench.measure(name)
    for name, path in arguments.logits:
        bench.add_logits(name, Path(path))


if __name__ == "__main__":
    main()
