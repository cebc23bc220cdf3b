"""Answers marked in a context: XQuAD's English questions, split by context, and the same with unanswerable questions.

    SMALLFIRST_DATA=FOLDER python -m benchmarks.accuracy.reader overlap reader unanswerable   # an hour on one core
    SMALLFIRST_DATA=FOLDER python -m benchmarks.accuracy.reader small    # the fine-tuned 135M, as long again
    SMALLFIRST_DATA=FOLDER python -m benchmarks.accuracy.reader speed    # both side by side, a minute on two cores

XQuAD has test rows alone: its 240 contexts are drawn into training 60 %, selection 10 %, calibration 10 % (not used
here) and test 20 %, with seed 0. The epoch is chosen on selection rows. Every part writes its figures into the
state folder and benchmarks/results/reader.md anew from all of them; a part that was interrupted is continued.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.paths import RESULTS, ROOT
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate, score_row
from smallfirst.evaluation.results import EvaluatedRow
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Completion, Request
from smallfirst.paths import home
from smallfirst.registry.runs import open_run
from smallfirst.stats.intervals import wilson
from smallfirst.tasks.answer import Answer, split_context
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.reading import ReadingRecipe
from smallfirst.training.recipes.recipe import Recipe, TaskRecipe
from smallfirst.training.run import train

RESULT = RESULTS / "reader.md"
SEED = 0
SHARES = {"train": 0.6, "selection": 0.1, "calibration": 0.1, "test": 0.2}
"""Of the contexts."""
READER = TrainConfig(duration="10ep", learning_rate=2e-4, batch_tokens=2048, max_seq_tokens=384, patience=3)
SMALL = TrainConfig(duration="3ep", learning_rate=2e-4, batch_tokens=1024, frozen_layers=15)
LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TASK = Answer(name="xquad", about="Answer the question with words of the text.")
WITH_NONE = TASK.model_copy(update={"name": "xquad-none", "not_answerable": "not in the text"})
EVERY = 3
"""Every so many rows, a copy asks its question of another context of the part: not answerable."""
TITLES = {
    "overlap": "sentence with most of the question's words",
    "reader": "encoder that marks the answer (MiniLM)",
    "small": "fine-tuned 135M",
    "unanswerable": "encoder that marks the answer (MiniLM), with unanswerable questions",
}
MEASURES = ("exact_match", "token_f1", "answerable_f1", "abstain_precision", "abstain_recall")


def parts() -> dict[str, Dataset]:
    """Return the rows by part; no context is in two of them."""
    folder = Path(os.environ.get("SMALLFIRST_DATA") or ROOT.parent / "shared" / "datasets")
    path = folder / "xquad_en" / "test.jsonl"
    if not path.is_file():
        sys.exit(f"{path} was not found; XQuAD's English rows as JSON lines, see SMALLFIRST_DATA")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    contexts = sorted({row["context"] for row in rows})
    random.Random(SEED).shuffle(contexts)
    part_of, begun, share = {}, 0, 0.0
    for name, own in SHARES.items():
        share += own
        part_of |= dict.fromkeys(contexts[begun : round(share * len(contexts))], name)
        begun = round(share * len(contexts))
    return {
        name: Dataset(name=name, examples=tuple(_example(row) for row in rows if part_of[row["context"]] == name))
        for name in SHARES
    }


def with_unanswerable(data: Dataset) -> Dataset:
    """Return the rows and copies of some, whose question is asked of a context that another row has."""
    draw, contexts = random.Random(SEED), [split_context(example.text)[0] for example in data.examples]
    made = []
    for i, example in enumerate(data.examples):
        if i % EVERY == 0:
            other = draw.choice([context for context in contexts if context != contexts[i]])
            question = split_context(example.text)[1]
            made.append(_example({"context": other, "question": question, "answer": WITH_NONE.not_answerable}))
    return data.subset(data.name, (*data.examples, *made))


def best_sentence(text: str) -> str:
    """Return the sentence of the context that holds most words of the question, each by its rarity in the context."""
    context, question = split_context(text)
    sentences = re.split(r"(?<=[.!?])\s+", context)
    known = Counter(word for sentence in sentences for word in set(_words(sentence)))
    asked = set(_words(question))
    return max(sentences, key=lambda sentence: sum(1 / known[word] for word in asked & set(_words(sentence))))


def measure(part: str) -> None:
    rows = parts()
    test = rows["test"].examples
    if part == "overlap":
        said = [(e, Completion(text=best_sentence(e.text), answered_by=part, latency_ms=0, cost_usd=0)) for e in test]
        _keep(part, TASK, tuple(score_row(example, one, TASK, part) for example, one in said), {})
    elif part == "small":
        recipe = TaskRecipe(TASK, rows["train"], rows["selection"])
        folder, notes = _trained(part, recipe, SMALL, LANGUAGE_MODEL)
        _keep(part, TASK, _answers_of(folder, TASK, rows["test"]), notes)
    elif part == "reader":
        recipe = ReadingRecipe(TASK, rows["train"], rows["selection"])
        folder, notes = _trained(part, recipe, READER, DEFAULT_ENCODER)
        _keep(part, TASK, _answers_of(folder, TASK, rows["test"]), notes)
    elif part == "unanswerable":
        recipe = ReadingRecipe(WITH_NONE, with_unanswerable(rows["train"]), with_unanswerable(rows["selection"]))
        folder, notes = _trained(part, recipe, READER, DEFAULT_ENCODER)
        _keep(part, WITH_NONE, _answers_of(folder, WITH_NONE, with_unanswerable(rows["test"])), notes)
    elif part == "speed":
        folders = {name: _state() / name / "model" for name in ("reader", "small")}
        folders = {name: folder for name, folder in folders.items() if folder.is_dir()}
        speeds: dict[str, list[float]] = {name: [] for name in folders}
        for _ in range(3):
            for name, folder in folders.items():
                speeds[name].append(asyncio.run(_requests_per_s(folder, test[:60])))
        found = {name: statistics.median(own) for name, own in speeds.items()}
        (_state() / "speed.json").write_text(json.dumps(found))
    else:
        sys.exit(f"which part? {', '.join(TITLES)}, speed")
    write_page({name: len(data) for name, data in rows.items()})


def write_page(n_rows: dict[str, int]) -> None:
    found = {name: json.loads(path.read_text()) for name in TITLES if (path := _state() / f"{name}.json").is_file()}
    lines = [
        "# Answers marked in a context: XQuAD",
        "",
        f"`python -m benchmarks.accuracy.reader {' '.join(found)}`, {date.today().isoformat()}, 2 shared cores, Zen 5, "
        "24 GB, other work beside.",
        "",
        "XQuAD's 1,190 English questions have no training rows. Its 240 contexts were split with seed 0 into training, "
        f"selection, calibration (not used) and test: {' / '.join(str(n) for n in n_rows.values())} rows. The epoch "
        "was chosen on selection rows, other settings were fixed before any row was answered. No model has seen another question-answering set.",
        "",
        "| who | n | " + " | ".join(name.replace("_", " ") for name in MEASURES) + " | selection | training |",
        "|---|---|" + "---|" * (len(MEASURES) + 2),
    ]
    for name, one in found.items():
        cells = [one["measures"].get(measure, "–") for measure in MEASURES]
        notes = one["notes"]
        selection = f"{notes['selection']:.3f}" if notes else "–"
        minutes = f"{notes['minutes']:.0f} min, epoch {notes['epoch']:g}" if notes else "–"
        lines.append(f"| {TITLES[name]} | {one['n']} | {' | '.join(cells)} | {selection} | {minutes} |")
    if "overlap" in found:
        lines += ["", found["overlap"]["says"]]
    if (speed := _state() / "speed.json").is_file():
        rates = json.loads(speed.read_text())
        words = " · ".join(f"{TITLES[name]}: {rate:.1f} requests/s" for name, rate in rates.items())
        lines += ["", f"60 test rows at once, medians of 3, in turn in one process: {words}."]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _example(row: dict[str, str]) -> Example:
    asked = Message(role="user", content=f"{row['context'].strip()}\n\n{row['question'].strip()}")
    return Example(messages=(asked,), answer=row["answer"], shape="question")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _state() -> Path:
    folder = home() / "reader-benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _trained(name: str, recipe: Recipe, config: TrainConfig, base: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the model and notes on its training; a finished one is not trained again."""
    folder = _state() / name
    with open_run("xquad", name) as tracked:
        run = train(recipe, config, base=(base, find_weights(base)), tracked=tracked, folder=folder)
    score = dict(run.validation_curve)[run.best_epoch]
    return folder / "model", {"selection": score, "minutes": run.seconds / 60, "epoch": run.best_epoch}


def _answers_of(folder: Path, task: Answer, data: Dataset) -> tuple[EvaluatedRow, ...]:
    async def answers() -> tuple[EvaluatedRow, ...]:
        model = load_model(folder)
        try:
            found = await evaluate(model, EvaluationSetup(task, data, split="test"), candidate=folder.parent.name)
        finally:
            await model.aclose()
        return found.rows

    return asyncio.run(answers())


async def _requests_per_s(folder: Path, examples: Sequence[Example]) -> float:
    model = load_model(folder)
    await model.complete(Request.ask(examples[0].text))
    began = time.perf_counter()
    await asyncio.gather(*(model.complete(Request(messages=e.messages)) for e in examples))
    elapsed_s = time.perf_counter() - began
    await model.aclose()
    return len(examples) / elapsed_s


def _keep(part: str, task: Answer, rows: Sequence[EvaluatedRow], notes: dict[str, Any]) -> None:
    measures = {name: str(value) for name, value in task.measures([row.answered for row in rows]).items()}
    kept = {"n": len(rows), "measures": measures, "notes": notes}
    if part == "overlap":
        holds = wilson(sum(row.gold in (row.answer or "") for row in rows), len(rows))
        kept["says"] = f"That sentence holds the answer in {holds} of the test rows."
    (_state() / f"{part}.json").write_text(json.dumps(kept))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["page"]:
        measure(chosen)
