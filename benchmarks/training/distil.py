"""Distillation on Banking77: 1,000 labels of people, 8,000 rows labelled by the best teacher they make, or all labels.

    python -m benchmarks.training.distil OUT_FOLDER [--small]

1,000 rows are drawn from the 9,000 training rows; 850 of them train, 150 choose: the teacher (the most accurate of
words + linear, frozen encoder + linear, encoder fine-tuned at two rates) and the minimum confidence of a label. The teacher
labels the other rows through `smallfirst label`; their human labels are read only afterwards, to measure how often it
was right. Every student is then trained on three sets: the 1,000 alone, the 1,000 with the teacher's rows, all labels;
all are measured on the official 3,080 test rows. `--small` adds SmolLM2-135M, the upper half of its layers trained.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.accuracy.run import data_folder
from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.evaluation.calibration import accuracy_and_temperature
from smallfirst.improvement.labelling.label import label
from smallfirst.improvement.labelling.result import LabelOptions
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.local.label_scorer import LabelScorer
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.project.task_file import DEFAULT_ENCODER, read_task_file
from smallfirst.registry import runs
from smallfirst.stats import intervals as stats
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.contrastive import EncoderRecipe
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import train

N_HUMAN, N_CHOOSE, SEED = 1000, 150, 0
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
RATES = (1e-4, 3e-4)
EPOCHS_TOKENS = 220_000
"""Training tokens of the fine-tuned encoder, whatever the number of rows; at least two epochs."""
SURE = (0.0, 0.3, 0.5, 0.7, 0.9)


class Pupil(NamedTuple):
    """A fitted model and its accuracy on the selection rows."""

    name: str
    scorer: LinearClassifier | LabelScorer
    chosen_on: float
    folder: Path


class Bench:
    """The rows, the task and a folder to work in."""

    def __init__(self, out: Path) -> None:
        self.out, source = out, data_folder("banking77")
        out.mkdir(parents=True, exist_ok=True)
        rows = [json.loads(line) for line in (source / "train.jsonl").open(encoding="utf-8")]
        random.Random(SEED).shuffle(rows)
        write(out / "human.jsonl", rows[: N_HUMAN - N_CHOOSE])
        write(out / "choose.jsonl", rows[N_HUMAN - N_CHOOSE : N_HUMAN])
        write(out / "unlabelled.jsonl", [{"text": row["text"]} for row in rows[N_HUMAN:]])
        self.gold = {row["text"]: row["label"] for row in rows[N_HUMAN:]}
        self.human, self.choose = load_rows(out / "human.jsonl"), load_rows(out / "choose.jsonl")
        self.everything = load_rows(source / "train.jsonl")
        self.test = load_rows(source / "test.jsonl")
        labels = tuple(sorted({example.answer for example in self.everything.examples}))
        self.task = Classify(name="distil", labels=labels, about="Messages of an online bank's customers.")
        self.encoder = SentenceEncoder(find_weights(DEFAULT_ENCODER))

    def linear(self, kind: str, rows: Dataset, tag: str) -> Pupil:
        """Fit a linear model on words or on the frozen encoder."""
        scorer = LinearClassifier.fit(kind, rows, self.task, encoder=self.encoder if kind == "encoder" else None)
        accuracy, temperature = accuracy_and_temperature(scorer.score(texts(self.choose)), self.choose, self.task)
        base = DEFAULT_ENCODER if kind == "encoder" else ""
        folder = self.out / f"{kind}-{tag}"
        scorer.save(folder, Manifest(kind=kind, task=self.task, base=base, temperature=temperature))
        return Pupil(kind, scorer, accuracy, folder)

    def tuned(self, rows: Dataset, tag: str, rate: float) -> Pupil:
        """The encoder fine-tuned."""
        n_tokens = sum(len(self.encoder.tokenizer.encode(text)) for text in texts(rows))
        epochs = max(2, min(10, round(EPOCHS_TOKENS / n_tokens)))
        config = TrainConfig(duration=f"{epochs}ep", learning_rate=rate, max_seq_tokens=256)
        folder = self.out / f"tuned-{tag}-{rate:g}"
        with runs.open_run("distil", folder.name, params={}) as tracked:
            run = train(
                EncoderRecipe(self.task, rows, self.choose),
                config,
                base=(DEFAULT_ENCODER, find_weights(DEFAULT_ENCODER)),
                tracked=tracked,
                folder=folder,
            )
        say(f"tuned on {tag} at {rate:g}: {epochs} epochs in {run.seconds:.0f} s, {run.validation_curve}")
        scorer = LinearClassifier.load(run.folder, read_manifest(run.folder))
        return Pupil("tuned", scorer, max(v for _, v in run.validation_curve), run.folder)

    def small(self, rows: Dataset, tag: str) -> Pupil:
        """Fine-tune the small causal model with its lower half frozen."""
        config = TrainConfig(duration="4ep", frozen_layers=15)
        folder = self.out / f"small-{tag}"
        with runs.open_run("distil", folder.name, params={}) as tracked:
            recipe = TaskRecipe(self.task, rows, self.choose)
            run = train(recipe, config, base=(SMALL, find_weights(SMALL)), tracked=tracked, folder=folder)
        say(f"small on {tag}: {run.seconds:.0f} s, {run.validation_curve}")
        scorer = LabelScorer.load(run.folder, read_manifest(run.folder))
        return Pupil("small", scorer, max(v for _, v in run.validation_curve), run.folder)

    def right(self, pupil: Pupil) -> list[bool]:
        """Return for each test row whether the student is right."""
        return rightness(pupil.scorer.score(texts(self.test)), self.test, self.task)

    def taught_by(self, teacher: Pupil) -> Dataset:
        """Return the rows labelled by people and the teacher; the minimum confidence is chosen with words + linear."""
        wish = {
            "train": "human.jsonl",
            "validation": "choose.jsonl",
            "test": str(data_folder("banking77") / "test.jsonl"),
        }
        wishes = {"name": "distil", "data": wish, "routing": {"selection_share": 0.5}, "register_to": "a.b.distil"}
        (self.out / "task.yaml").write_text(json.dumps(wishes), encoding="utf-8")
        file = read_task_file(self.out / "task.yaml")
        best: tuple[float, float, Dataset] | None = None
        for sure in SURE:
            made = self.out / f"labelled-{sure:g}.jsonl"
            options = LabelOptions(teacher=teacher.folder, out=made, min_confidence=sure, yes=True)
            found = label(file, self.out / "unlabelled.jsonl", options=options)
            rows = load_rows(made)
            both = self.human.subset("taught", self.human.examples + rows.examples)
            accuracy = self.linear("words", both, f"sure-{sure:g}").chosen_on
            true = [self.gold[e.text] == e.answer for e in rows.examples]
            say(f"sure from {sure:g}: {len(true)} rows kept, {sum(true) / len(true):.3f} of them right")
            say(f"  words taught by them: {accuracy:.3f} on the rows that choose")
            say(f"  {found.counts}")
            if best is None or accuracy > best[0]:
                best = accuracy, sure, both
        assert best is not None
        say(f"kept: sure from {best[1]:g}")
        return best[2]


def rightness(scored: Sequence[LabelLogProbs], data: Dataset, task: Classify) -> list[bool]:
    best = [task.closed[max(range(len(s.log_probabilities)), key=s.log_probabilities.__getitem__)] for s in scored]
    return [answer == example.answer for answer, example in zip(best, data.examples, strict=True)]


def texts(data: Dataset) -> list[str]:
    return [example.text for example in data.examples]


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


BEGAN = time.perf_counter()


def say(words: str) -> None:
    print(f"[{(time.perf_counter() - BEGAN) / 60:5.1f} min] {words}", flush=True)


def main() -> None:
    bench = Bench(Path(sys.argv[1]))
    candidates = [bench.linear(kind, bench.human, "human") for kind in ("words", "encoder")]
    candidates += [bench.tuned(bench.human, "human", rate) for rate in RATES]
    for pupil in candidates:
        say(f"candidate teacher {pupil.name}: {pupil.chosen_on:.3f} of {N_CHOOSE} right")
    teacher = max(candidates, key=lambda pupil: pupil.chosen_on)
    rate = RATES[0] if candidates[2].chosen_on >= candidates[3].chosen_on else RATES[1]
    own = bench.right(teacher)
    say(f"teacher {teacher.name} on test: {stats.wilson(sum(own), len(own))}")
    taught = bench.taught_by(teacher)
    sets = {"human": bench.human, "taught": taught, "everything": bench.everything}
    for kind in ("words", "encoder", "tuned", *(["small"] if "--small" in sys.argv else [])):
        right = {}
        for tag, rows in sets.items():
            if kind in ("words", "encoder"):
                pupil = bench.linear(kind, rows, tag)
            else:
                pupil = bench.tuned(rows, tag, rate) if kind == "tuned" else bench.small(rows, tag)
            right[tag] = bench.right(pupil)
            found = stats.wilson(sum(right[tag]), len(right[tag]))
            say(f"{kind} on {tag} ({len(rows)} rows): {found.value:.4f} [{found.low:.3f}, {found.high:.3f}]")
        gain = stats.paired_difference(right["taught"], right["human"])
        left = stats.paired_difference(right["everything"], right["taught"])
        say(f"{kind}: taught − human {gain.value:+.4f} [{gain.low:+.3f}, {gain.high:+.3f}]")
        say(f"{kind}: everything − taught {left.value:+.4f} [{left.low:+.3f}, {left.high:+.3f}]")


if __name__ == "__main__":
    main()
