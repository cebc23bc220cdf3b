"""Every candidate for labels that runs on an encoder, and their blend: accuracy, minutes to fit, time of a request.

    python -m benchmarks.accuracy.encoders FOLDER [SETTING ...]

Settings: banking77 (all 9,000 training rows), banking77_10_SEED and banking77_5_SEED (so many rows a label, drawn with
that seed; nobody publishes official draws), clinc150. All validation rows are selection rows: epochs, temperatures,
limits and the blend's weights are chosen on them. Each candidate's probabilities of the test rows are computed once,
after it is fitted, and stored in FOLDER, so that a rerun only writes the page. One thread; minutes are processor time.

Rows are found as benchmarks/accuracy/run.py finds them, weights in SMALLFIRST_HOME.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.datasets import RESULTS, data_folder, task_file
from smallfirst.base.errors import NothingGained
from smallfirst.base.progress import Progress
from smallfirst.base.stats import intervals as stats
from smallfirst.data.dataset import Dataset
from smallfirst.models.linear.blend import label_scores
from smallfirst.path.project.candidates import get_candidate
from smallfirst.path.project.project import Project
from smallfirst.path.project.run_folder import RunFolder

RESULT = RESULTS / "encoder_candidates.md"
SETTINGS = ("banking77_5_0", "banking77_5_1", "banking77_10_0", "banking77_10_1", "banking77", "clinc150")
CANDIDATES = ("words", "encoder", "larger_encoder", "tuned", "larger_tuned", "blend")
REFERENCE = "encoder"
"""The candidate that the others are compared with, row by row."""
PROBES = 100
"""Test rows answered one at a time for the milliseconds of a request."""


class Setting:
    """A set, the rows of it that are trained on, and a folder for what was measured."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        self.set, *draw = name.split("_")
        file = task_file(self.set, data_folder(self.set))
        project = Project.read(file, Progress())
        rows = project.rows
        held = (*rows.selection.examples, *rows.left_out.examples, *rows.calibration.examples)
        train = few(rows.train, *map(int, draw)) if draw else rows.train
        everything = {"train": train, "selection": rows.selection.subset("validation", held)}
        self.project = project._replace(rows=rows.model_copy(update=everything))

    def measure(self, name: str) -> None:
        """Fit a candidate and store its probabilities, unless that was done."""
        kept = self.folder / f"{name}.json"
        if kept.exists():
            return
        candidate, run_folder = get_candidate(name), RunFolder(self.folder / "run")
        began = time.process_time()
        try:
            candidate.fit(self.project, run_folder)
        except NothingGained as why:
            kept.write_text(json.dumps({"none": str(why)}))
            return
        minutes = (time.process_time() - began) / 60
        model, rows = candidate.load(self.project, run_folder), self.project.rows
        found: dict[str, Any] = {"minutes": minutes}

        async def answer() -> None:
            for part, data in (("validation", rows.selection), ("test", rows.test)):
                texts = [example.text for example in data.examples]
                scores = await label_scores(model, texts)
                probabilities = np.array([one.probabilities for one in scores], dtype=np.float32)
                np.save(self.folder / f"{name}.{part}.npy", probabilities)
                found[f"usd_{part}"] = sum(one.cost_usd for one in scores) / len(scores)
            took = []
            for text in texts[:PROBES]:
                start = time.process_time()
                await label_scores(model, [text])
                took.append(1000 * (time.process_time() - start))
            found["ms"] = float(np.median(took))
            await model.aclose()

        asyncio.run(answer())
        kept.write_text(json.dumps(found))

    def right(self, name: str, part: str) -> np.ndarray:
        rows, labels = self.project.rows, self.project.task.closed
        data = rows.test if part == "test" else rows.selection
        said = np.load(self.folder / f"{name}.{part}.npy").argmax(axis=1)
        return np.array([labels[at] in e.golds for at, e in zip(said, data.examples, strict=True)])

    def lines(self) -> list[str]:
        lines, labels, other = [], self.project.task.closed, getattr(self.project.task, "other", None)
        for name in CANDIDATES:
            path = self.folder / f"{name}.json"
            found = json.loads(path.read_text()) if path.exists() else {"none": "not measured"}
            if "none" in found:
                lines.append(f"| {name} | {found['none']} |" + " |" * 6)
                continue
            right, own = self.right(name, "test"), self.right(name, "validation")
            accuracy = stats.wilson(int(right.sum()), len(right))
            pair = "" if name == REFERENCE else self._difference(right)
            cells = [f"{own.mean():.3f}", str(accuracy), pair, f"{found['minutes']:.1f}", f"{found['ms']:.1f}"]
            if other is not None:
                is_other = np.array([e.answer == other for e in self.project.rows.test.examples])
                said = np.load(self.folder / f"{name}.test.npy").argmax(axis=1) == labels.index(other)
                inside = stats.wilson(int(right[~is_other].sum()), int((~is_other).sum()))
                cells += [str(inside), str(stats.wilson(int(said[is_other].sum()), int(is_other.sum())))]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return lines

    def _difference(self, right: np.ndarray) -> str:
        before = self.folder / f"{REFERENCE}.test.npy"
        if not before.exists():
            return ""
        found = stats.paired_difference(right.tolist(), self.right(REFERENCE, "test").tolist())
        return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def few(train: Dataset, per_label: int, seed: int) -> Dataset:
    draw, by_label = random.Random(seed), defaultdict(list)
    for example in train.examples:
        by_label[example.answer].append(example)
    return train.subset("few", tuple(e for label in sorted(by_label) for e in draw.sample(by_label[label], per_label)))


HEAD = """# Encoder candidates

`python -m benchmarks.accuracy.encoders FOLDER`, {today}, one of 2 shared cores, Zen 5, 24 GB, one thread. Official test
rows: Banking77 3,080, CLINC150 5,500 (1,000 out of scope). 95 % intervals: Wilson; differences to the frozen MiniLM
(`encoder`) are paired. All settings are the defaults of `task.yaml`. Chosen on validation rows, which are all selection
rows here: epochs, temperatures, the limit of `other`, the blend's members and weights. Test rows were scored once.

Minutes are processor time of one core, from the base model to the fitted candidate; a blend's are those of the mixing
alone. ms: processor time of a
request that is alone. `larger_*`: all-mpnet-base-v2; the others MiniLM.
"""
COLUMNS = "| candidate | validation | test accuracy | to the frozen MiniLM | minutes | ms |"
TITLES = {
    "banking77": "Banking77, 9,000 training rows",
    "banking77_10": "Banking77, 10 rows a label, drawn with seed {}",
    "banking77_5": "Banking77, 5 rows a label, drawn with seed {}",
    "clinc150": "CLINC150, 15,100 training rows (100 out of scope)",
}


def page(settings: list[Setting]) -> str:
    lines = [HEAD.format(today=date.today().isoformat())]
    for setting in settings:
        kind, _, seed = setting.name.rpartition("_")
        title = TITLES[kind or setting.name].format(seed)
        columns = COLUMNS
        if getattr(setting.project.task, "other", None) is not None:
            columns += " in scope | out-of-scope recall |"
        lines += ["", f"## {title}", "", columns, "|---" * (columns.count("|") - 1) + "|", *setting.lines()]
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder, wanted = Path(sys.argv[1]), sys.argv[2:] or SETTINGS
    for setting in (Setting(name, folder) for name in wanted):
        setting.folder.mkdir(parents=True, exist_ok=True)
        for name in CANDIDATES:
            setting.measure(name)
    done = [Setting(name, folder) for name in SETTINGS if (folder / name).is_dir()]
    RESULT.write_text(page(done), encoding="utf-8")


if __name__ == "__main__":
    main()
