"""Train the tagger on sets of kind extract, measure it on their official test rows, and write results/tagger.md.

python -m benchmarks.accuracy.tagger snips_slots                 # also restaurant8k
python -m benchmarks.accuracy.tagger snips_slots --epochs 4 --encoder FOLDER --rows 500
python -m benchmarks.accuracy.tagger snips_pairs --rows 2000 # or snips_broken: sets made by rule, see MADE
python -m benchmarks.accuracy.tagger snips_pairs --rows 300 --small --tests 100   # the language model instead
python -m benchmarks.accuracy.tagger --page                      # the page alone, from results/tagger.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.datasets import RESULTS, data_folder, read_lines, task_file
from smallfirst.base.paths import home
from smallfirst.base.stats.intervals import wilson
from smallfirst.data.dataset import Dataset, fold_text
from smallfirst.measuring.evaluate import EvaluationSetup, evaluate
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER
from smallfirst.models.loading import load_model
from smallfirst.path.project.project import Project
from smallfirst.registry.runs import open_run
from smallfirst.tasks.extract import Extract
from smallfirst.training.config import TrainConfig
from smallfirst.training.encoders import suited_to
from smallfirst.training.marking import TaggingRecipe
from smallfirst.training.recipe import TaskRecipe
from smallfirst.training.run import train

FIGURES = RESULTS / "tagger.json"
SEED = 0


Row = dict[str, Any]


def pairs(rows: list[Row], draw: random.Random) -> list[Row]:
    """Join rows in pairs by " and then ": a list of intents, and both rows' slots."""
    draw.shuffle(rows)
    found = []
    for one, two in zip(rows[::2], rows[1::2], strict=False):
        (a, b), slots = (one["target"], two["target"]), dict[str, list[str]]()
        for name, values in [*a["slots"].items(), *b["slots"].items()]:
            slots.setdefault(name, []).extend(values)
        intents = sorted({a["intent"], b["intent"]})
        found.append({"text": f"{one['text']} and then {two['text']}", "target": {"intents": intents, "slots": slots}})
    return found


def broken(rows: list[Row], draw: random.Random) -> list[Row]:
    """Break lines: of the spaces within the text every other one, by chance."""
    return [row | {"text": "".join(draw.choice(" \n") if c == " " else c for c in row["text"])} for row in rows]


MADE: dict[str, Callable[[list[Row], random.Random], list[Row]]] = {"snips_pairs": pairs, "snips_broken": broken}
"""Sets made of snips_slots by rule, with seed 0: not real documents, but of real requests."""


def _project(name: str) -> Project:
    if name not in MADE:
        return Project.read(task_file(name, data_folder(name)))
    place = home() / "tagger" / "rows" / name
    place.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation", "test"):
        made = MADE[name](list(read_lines(data_folder("snips_slots") / f"{part}.jsonl")), random.Random(SEED))
        lines = (json.dumps({key: row[key] for key in ("text", "target")}) + "\n" for row in made)
        (place / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Project.read(task_file("snips_slots", place))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    name, encoder, epochs = asked.set, asked.encoder, asked.epochs
    project = _project(name)
    task, test = project.task, project.rows.test
    assert isinstance(task, Extract)
    rows = Dataset(name="train", examples=project.rows.train.examples[: asked.rows])
    test = test.subset("test", test.examples[: asked.tests])
    if asked.small:
        encoder = project.file.small.base
    base = find_weights(encoder)
    config = TrainConfig(duration=f"{epochs}ep", max_seq_tokens=256, seed=SEED)
    config = config.model_copy(update={"learning_rate": 3e-4}) if asked.small else suited_to(config, base)
    folder = home() / "tagger" / f"{name}-{Path(encoder).name}-{len(rows)}"
    selection = project.rows.selection
    if asked.small:
        selection = selection.subset("selection", selection.examples[:40])
    recipe = (TaskRecipe if asked.small else TaggingRecipe)(task, rows, selection)
    with open_run(f"tagger-{name}", folder.name) as tracked:
        run = train(
            recipe, config, base=(encoder, base), tracked=tracked, folder=folder,
            on_step=lambda step: print(f"{step.progress:.3f} loss {step.loss:.3f}", flush=True) if step.ends_epoch else None,
        )  # fmt: skip
    print(run.validation_curve, flush=True)
    found = asyncio.run(_evaluate(run.folder, task, test))
    right = [row.score >= task.pass_score for row in found.rows]
    seen = {fold_text(example.text) for example in rows.examples}
    fresh = [ok for ok, example in zip(right, test.examples, strict=True) if fold_text(example.text) not in seen]
    wrong = [row.wrong_fields or () for row in found.rows]
    figures = {
        "set": name, "encoder": encoder, "n_train": len(rows), "epochs": epochs, "learning_rate": config.learning_rate,
        "best_epoch": run.best_epoch, "minutes": round(run.seconds / 60, 1), "tokens_per_s": round(run.tokens_per_s),
        "selection": [value for _, value in run.validation_curve], "n_selection": len(selection),
        "n_test": len(right), "right": sum(right), "n_fresh": len(fresh), "right_fresh": sum(fresh),
        "wrong_fields": dict(Counter(field for fields in wrong for field in fields).most_common()),
        "field_f1": found.measures["field_f1"].value, "confidence_kept": _kept(found.rows, right), "requests_per_s": found.requests_per_s,
    }  # fmt: skip
    print(json.dumps(figures), flush=True)
    return figures


async def _evaluate(folder: Path, task: Extract, test: Dataset) -> Any:
    model = load_model(folder)
    try:
        return await evaluate(model, EvaluationSetup(task, test, split="test"), candidate="tagger", probe_rows=20)
    finally:
        await model.aclose()


def _kept(rows: Any, right: list[bool]) -> list[float]:
    """Return the share of rows right among the half, and the nine tenths, of highest confidence."""
    order = sorted(range(len(rows)), key=lambda i: -(rows[i].confidence or 0))
    return [sum(right[i] for i in order[: int(share * len(order))]) / int(share * len(order)) for share in (0.5, 0.9)]


def write_page(figures: dict[str, Any]) -> None:
    lines = [
        "# The tagger on sets of kind extract", "",
        "`python -m benchmarks.accuracy.tagger SET`, 2026-11-27, one of 2 shared cores (Zen 5, 24 GB), other work beside.",
        "Official test rows, one seed; exact match: every field right, with 95 % intervals (Wilson). The epoch is chosen on the",
        "selection rows; nothing was chosen on test rows. Fresh: test rows whose text, folded, is not among the training rows.", "",
        "| set | encoder | trained on | epochs, rate | minutes | selection (n) | exact match, test (n) | fresh rows (n) | field F1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    runs = [one for one in figures.values() if one["set"] not in MADE]
    made = [one for one in figures.values() if one["set"] in MADE]
    for one in runs:
        fresh = wilson(one["right_fresh"], one["n_fresh"])
        rate, chosen = f", {one['learning_rate']:g}", f" {max(one['selection']):.3f} ({one['n_selection']}) |"
        lines.append(f"{_line(one, rate, chosen)} {fresh.value:.3f} ({fresh.n:,}) | {one['field_f1']:.3f} |")
    lines += _made_lines(made)
    lines += ["", "Fields that were wrong, by number of test rows:", ""]
    for one in runs:
        named = ", ".join(f"{field} {n}" for field, n in list(one["wrong_fields"].items())[:10]) or "none"
        half, most = one["confidence_kept"]
        lines.append(
            f"- {one['set']} ({Path(one['encoder']).name}): {named}. Of the half of highest confidence {half:.3f} are right, "
            f"of the nine tenths {most:.3f}."
        )
    (RESULTS / "tagger.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(one: dict[str, Any], rate: str = "", chosen: str = "") -> str:
    whole, epochs = wilson(one["right"], one["n_test"]), f"{one['best_epoch']} of {one['epochs']}{rate}"
    return (
        f"| {one['set']} | {Path(one['encoder']).name} | {one['n_train']:,} | {epochs} | {one['minutes']:.0f} |{chosen} "
        f"**{whole.value:.3f}** [{whole.low:.3f}, {whole.high:.3f}] ({one['n_test']:,}) |"
    )


def _made_lines(made: list[dict[str, Any]]) -> list[str]:
    lines = [
        "", "## Fields that real JSON has", "",
        "`python -m benchmarks.accuracy.tagger SET --rows N`, 2026-12-01, 2 shared Intel cores without AMX, other work beside. Both sets are",
        "made of SNIPS by rule with seed 0. `snips_pairs`: two requests joined by \" and then \", with a list of both intents and the",
        "slots of both. `snips_broken`: half of the spaces are line breaks. Before, values broken over lines and lists of labels were",
        "refused, and the language model alone was left. The threshold of labels is chosen on selection rows.", "",
        "| set | model | trained on | epochs | minutes | exact match, test (n) | field F1 | requests/s |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in made:
        rate = f"{one['requests_per_s']:.1f}" if one.get("requests_per_s") else "-"
        lines.append(f"{_line(one)} {one['field_f1']:.3f} | {rate} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("set", nargs="?")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--tests", type=int)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    if not asked.page:
        one = measure(asked)
        figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
        figures[f"{asked.set} {Path(one['encoder']).name}"] = one
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    write_page(json.loads(FIGURES.read_text()))


if __name__ == "__main__":
    main()
