"""Detect the task of a request, or none: CLINC150's out-of-scope requests, and three tasks behind `auto`.

    python -m benchmarks.routing.out_of_domain FOLDER

CLINC150: every model is trained on the 15,000 in-scope rows, none of the out-of-scope ones; temperatures, ranks and the
operating point come from the 3,000 in-scope validation rows. `auto`: signatures of Banking77, SNIPS slots and MedQuAD from
their own training and selection rows; the open requests (four sets) are used for nothing but the measurement.

Weights are in SMALLFIRST_HOME. Models and scores are stored in FOLDER, so a rerun takes two minutes; from scratch it
takes about an hour on one core, most of it fine-tuning.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.datasets import RESULTS, data_folder, read_lines, task_file
from smallfirst.base.stats import intervals as stats
from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.state_features import LOGIT_FEATURES, STATE_FEATURES, HiddenStateProfile, logit_features
from smallfirst.path.project.project import Project
from smallfirst.registry import runs
from smallfirst.routing.auto import TaskSelector
from smallfirst.routing.domain import PROFILE_FILE, ConformalScorer, ScoreFusion, fit_task_profile
from smallfirst.tasks.classify import Classify
from smallfirst.training.config import TrainConfig
from smallfirst.training.encoders import EncoderRecipe
from smallfirst.training.run import train

PARTS = ("validation", "test", "oos_test")
LEAST_ACCURACY = 0.965
"""Lowest in-scope accuracy of the operating point on validation rows, where a rejected row counts as wrong: half a point
above the target of 0.96, since the models were chosen on the same rows."""
RESAMPLES = 300
TASKS = ("banking77", "snips_slots", "medquad_short")
OPEN = {"nq_open": "test", "ifeval": "test", "mt_bench": "test", "self_instruct_seed": "train"}
"""Open requests and the file of each set."""
KINDS = {"words": "words only", "encoder": "words and the frozen encoder"}
TIMED = 600
"""Requests whose time is told."""


# CLINC150


class Scope(NamedTuple):
    """CLINC150 without its out-of-scope rows, which are held separately."""

    task: Classify
    train: Dataset
    parts: dict[str, Dataset]

    @classmethod
    def read(cls) -> Scope:
        whole = {part: load_rows(data_folder("clinc150") / f"{part}.jsonl") for part in ("train", "validation", "test")}

        def rows(part: str, oos: bool) -> Dataset:
            return whole[part].subset(part, tuple(e for e in whole[part].examples if (e.answer == "oos") == oos))

        train = rows("train", False)
        parts = {"validation": rows("validation", False), "test": rows("test", False)}
        parts["oos_test"] = rows("test", True)
        about = "You tell what a person wants from an assistant."
        return cls(Classify(name="clinc150", labels=train.labels(), about=about), train, parts)

    def gold(self, part: str) -> np.ndarray:
        index = {label: i for i, label in enumerate(self.task.labels)}
        data = self.train if part == "train" else self.parts[part]
        return np.array([index[e.answer] for e in data.examples])


def fitted(kind: Literal["words", "encoder"], scope: Scope, folder: Path) -> LinearClassifier:
    if not (folder / "smallfirst.json").exists():
        base = DEFAULT_ENCODER if kind == "encoder" else ""
        encoder = SentenceEncoder(find_weights(base)) if base else None
        scorer = LinearClassifier.fit(kind, scope.train, scope.task, encoder=encoder)
        scorer.save(folder, Manifest(kind=kind, task=scope.task, base=base))
    return LinearClassifier.load(folder, read_manifest(folder))


def tuned(scope: Scope, folder: Path) -> LinearClassifier:
    """Start or continue the run in the folder until it is finished."""
    recipe = EncoderRecipe(scope.task, scope.train, scope.parts["validation"])
    config = TrainConfig(duration="6ep", learning_rate=2e-4, max_seq_tokens=256)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'mlflow.db'}")
    with runs.open_run("out_of_domain", folder.name, params={}) as tracked:
        base = (DEFAULT_ENCODER, find_weights(DEFAULT_ENCODER))
        train(recipe, config, base=base, tracked=tracked, folder=folder)
    return LinearClassifier.load(folder / "model", read_manifest(folder / "model"))


MODELS: dict[str, tuple[Callable[[Scope, Path], LinearClassifier], str]] = {
    "words": (partial(fitted, "words"), "words + linear"),
    "frozen": (partial(fitted, "encoder"), "frozen MiniLM + linear"),
    "tuned": (tuned, "fine-tuned MiniLM"),
}


def states_of(scorer: LinearClassifier, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    features = scorer.features([example.text for example in data.examples])
    logits = np.asarray(features @ scorer.weights.T) + scorer.bias
    return logits if isinstance(scorer.features, TfidfFeatures) else features, logits


def see(name: str, scope: Scope, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Return a model's logits and signals by part, and milliseconds of one core a text; store them in the folder."""
    kept = folder / f"{name}.npz"
    if not kept.exists():
        scorer = MODELS[name][0](scope, folder / name)
        profile = HiddenStateProfile.fit(states_of(scorer, scope.train)[0], scope.gold("train"))
        arrays: dict[str, np.ndarray] = {}
        began = time.process_time()
        for part, data in scope.parts.items():
            hidden, logits = states_of(scorer, data)
            signals = np.column_stack([logit_features(logits), profile.nonconformity(hidden)])
            arrays |= {f"logits/{part}": logits, f"signals/{part}": signals}
        ms = 1000 * (time.process_time() - began) / sum(map(len, scope.parts.values()))
        np.savez(kept, ms=ms, **arrays)
    file = np.load(kept)
    logits, signals = ({part: file[f"{kind}/{part}"] for part in PARTS} for kind in ("logits", "signals"))
    return logits, signals, float(file["ms"])


class Answers(NamedTuple):
    """Right or wrong for each in-scope row of two parts, and a score by which rows are rejected (larger: stranger)."""

    right: dict[str, np.ndarray]
    strange: dict[str, np.ndarray]

    def limit(self) -> float:
        """Return the lowest limit that keeps LEAST_ACCURACY on validation rows, else the one with most right.

        Only rejecting right rows costs accuracy, so the limit is the score of one of them.
        """
        right = np.sort(self.strange["validation"][self.right["validation"]])
        needed = int(np.ceil(LEAST_ACCURACY * len(self.right["validation"])))
        return float(right[min(needed, len(right)) - 1])

    def line(self, name: str) -> str:
        limit, test, oos = self.limit(), self.strange["test"], self.strange["oos_test"]
        kept = self.right["test"] & (test <= limit)
        inside, outside = stats.wilson(int(kept.sum()), len(kept)), stats.wilson(int((oos > limit).sum()), len(oos))
        both, is_oos = np.concatenate([test, oos]), np.repeat([False, True], [len(test), len(oos)])

        def auroc(rows: np.ndarray) -> float:
            return float(roc_auc_score(is_oos[rows], both[rows]))

        def let_in(rows: np.ndarray) -> float:
            return float((both[rows][is_oos[rows]] <= np.quantile(both[rows][~is_oos[rows]], 0.95)).mean())

        area, fpr = (stats.bootstrap_share(m, len(both), resamples=RESAMPLES) for m in (auroc, let_in))
        return f"| {name} | {inside} | {outside} | {area} | {fpr} |"

    def by_share(self, name: str) -> list[str]:
        """Return a table row for each share of validation rows that the limit accepts."""
        ranks, found = ConformalScorer.fit(self.strange["validation"]), []
        for keep in (0.995, 0.99, 0.98, 0.97, 0.95):
            kept, gone = (ranks.ood_score(self.strange[part]) <= keep for part in ("test", "oos_test"))
            shares = [(kept, len(kept)), (kept & self.right["test"], len(kept)), (~gone, len(gone))]
            cells = [str(stats.wilson(int(one.sum()), n)) for one, n in shares]
            found.append(f"| {name} | {keep} | {' | '.join(cells)} |")
        return found


def clinc(folder: Path) -> dict[str, list[str]]:
    scope = Scope.read()
    gold = {part: scope.gold(part) for part in ("validation", "test")}
    closed, rejected, kept = [CLOSED], [REJECTED], [KEPT]
    for name, (_, title) in MODELS.items():
        logits, signals, ms = see(name, scope, folder)
        right = {part: logits[part].argmax(axis=1) == gold[part] for part in gold}
        accuracy = stats.wilson(int(right["test"].sum()), len(right["test"]))
        closed.append(f"| {title} | {accuracy} | {ms:.1f} |")
        for at, signal in enumerate((*LOGIT_FEATURES, *STATE_FEATURES)):
            rejected.append(Answers(right, {p: signals[p][:, at] for p in PARTS}).line(f"{title} | {signal}"))
        fusion = ScoreFusion.fit(signals["validation"])
        fused = Answers(right, {part: fusion.neg_log_p_values(signals[part]).sum(axis=1) for part in PARTS})
        rejected.append(fused.line(f"{title} | its four, fused"))
    kept += fused.by_share(title)
    return {"closed": closed, "clinc": rejected, "kept": kept}


# `auto`


def rows_of(task: str) -> tuple[Dataset, Dataset, Dataset]:
    """Return training, selection and test rows of a task, split as every stage splits them."""
    parts = Project.read(task_file(task, data_folder(task))).rows
    return parts.train, parts.selection, parts.test


def requests() -> dict[str, list[str]]:
    found = {task: [e.text for e in rows_of(task)[2].examples] for task in TASKS}
    for name, part in OPEN.items():
        lines = read_lines(data_folder(name) / f"{part}.jsonl")
        found[name] = [line.get("prompt") or line["question"] for line in lines]
    return found


def selector(kind: str, folder: Path) -> TaskSelector:
    """Return the selector over the tasks' signatures; fit missing ones."""
    encoder = (DEFAULT_ENCODER, SentenceEncoder(find_weights(DEFAULT_ENCODER))) if kind == "encoder" else None
    for task in TASKS:
        if not (folder / kind / task / PROFILE_FILE).exists():
            fit_task_profile(*rows_of(task)[:2], encoder=encoder).save(folder / kind / task)
    return TaskSelector.load({task: (folder / kind / task, None) for task in TASKS})


def auto(folder: Path) -> list[str]:
    asked, lines, times = requests(), list[str](), list[str]()
    for kind, title in KINDS.items():
        front, ms = selector(kind, folder), list[float]()
        lines += [f"\n**{title[0].upper()}{title[1:]}**\n"]
        lines += [f"| from | n | {' | '.join(TASKS)} | none | right |", "|---" * (len(TASKS) + 4) + "|"]
        for source, texts in asked.items():
            choices = []
            for text in texts:
                began = time.perf_counter()
                choices.append(front.select(text))
                ms.append(1000 * (time.perf_counter() - began))
            counts = Counter(choice.task or "none" for choice in choices)
            right = stats.wilson(counts[source if source in TASKS else "none"], len(texts))
            cells = " | ".join(str(counts[task]) for task in (*TASKS, "none"))
            lines.append(f"| {source} | {len(texts)} | {cells} | {right} |")
        half, most = np.quantile(ms[:: -(-len(ms) // TIMED)], [0.5, 0.99])
        times.append(f"| {title} | {half:.1f} | {most:.1f} |")
    return [*lines, "\n| one request at a time | p50 ms | p99 ms |", "|---|---|---|", *times]


CLOSED = "| answers by | in-scope accuracy, nothing rejected | ms of one core a text |\n|---|---|---|"
REJECTED = """| answers by | rejected by | in-scope accuracy | out-of-scope recall | AUROC | FPR at 95 % TPR |
|---|---|---|---|---|---|"""

KEPT = """| limit accepts, of validation rows | share | in-scope rows accepted | in-scope accuracy | out-of-scope recall |
|---|---|---|---|---|"""

PAGE = """# Out of domain

`python -m benchmarks.routing.out_of_domain FOLDER`, {today}, one of 2 shared cores, Zen 5, 24 GB.

## CLINC150 without out-of-scope training rows

Official splits: 15,000 training, 3,000 validation and 4,500 test rows in scope, 1,000 test rows out of it. No model
has seen an out-of-scope row, and all is chosen on in-scope validation rows: epoch, ranks, and the limit, which is the strictest that leaves {least:.1%} of validation rows
right and accepted. **In-scope accuracy counts a rejected row as wrong**, as Larson et al. (2019) do; their BERT has 0.962
with an out-of-scope recall of 0.523, or 0.969 with 0.403. AUROC: probability that a row out of scope scores higher than one in scope.
FPR at 95 % TPR: rows out of scope accepted by a limit that accepts 95 % of the test rows in scope. 95 % intervals: Wilson;
bootstrap over {resamples} resamples for the last two columns.

{closed}

{clinc}

The limit chosen by the accuracy target accepts about 98 % of the rows in scope. By the share that a limit accepts, as
`fit_signature(keep=...)` sets it, with the four signals fused without out-of-scope rows:

{kept}

How scores are fused was fixed before a test row was scored: by Fisher's method.

## `auto`: three tasks and open requests

Signatures of three tasks from their own training and selection rows (of Banking77 {n_banking77} selection rows, SNIPS
{n_snips_slots}, MedQuAD {n_medquad_short}); the limit of each is to refuse at most 2 % of its requests. Rows are test requests; none of the open ones was fitted on, but where it says so. `right`: went to its task, or to none for open requests.

{auto}
"""


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).absolute()
    for name in ("clinc", "auto"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    parts = {**clinc(folder / "clinc"), "auto": auto(folder / "auto")}
    told: dict[str, object] = {f"n_{task}": len(rows_of(task)[1]) for task in TASKS}
    told |= {"today": date.today(), "least": LEAST_ACCURACY, "resamples": RESAMPLES}
    text = PAGE.format(**told, **{name: "\n".join(lines) for name, lines in parts.items()})
    (RESULTS / "out_of_domain.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
