"""Train the tagger on sets of kind extract, measure it on their official test rows, and write results/tagger.md.

    python -m benchmarks.accuracy.tagger snips_slots                 # also restaurant8k, hosted_invoices
    python -m benchmarks.accuracy.tagger snips_slots --epochs 4 --encoder FOLDER --rows 500
    python -m benchmarks.accuracy.tagger --speed restaurant8k        # requests/s of the model trained before
    python -m benchmarks.accuracy.tagger --page                      # the page alone, from results/tagger.json

Rows are read from SMALLFIRST_DATA, else from ../shared/datasets. Of hosted_invoices the 20 layouts of train.jsonl.gz are
learned and the 4 others of validation.jsonl.gz measured, beside the answers that a hosted large model gave to the same rows.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.datasets import RESULTS, ROOT, task_file
from smallfirst.data.dataset import Dataset, Example, Message, fold_text
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.models.loading import load_model
from smallfirst.paths import home
from smallfirst.project.project import Project
from smallfirst.registry.runs import open_run
from smallfirst.stats.intervals import wilson
from smallfirst.tasks.extract import Extract
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.contrastive import with_learning_rate
from smallfirst.training.recipes.tagging import TaggingRecipe
from smallfirst.training.run import train

FIGURES = RESULTS / "tagger.json"
SEED = 0


def data_folder(name: str) -> Path:
    import os

    places = [Path(os.environ["SMALLFIRST_DATA"])] if "SMALLFIRST_DATA" in os.environ else []
    return next(place / name for place in [*places, ROOT.parent / "shared" / "datasets"] if (place / name).is_dir())


def rows_of(name: str) -> tuple[Extract, dict[str, Dataset], list[dict[str, Any]]]:
    """Return the task, its parts train, selection and test, and the hosted model's rows where there are such."""
    folder = data_folder(name)
    if name != "hosted_invoices":
        project = Project.read(task_file(name, folder))
        rows, task = project.rows, project.task
        assert isinstance(task, Extract)
        return task, {"train": rows.train, "selection": rows.selection, "test": rows.test}, []
    schema = {
        k: v for k, v in json.loads((folder / "schema.json").read_text()).items() if k not in ("$schema", "title")
    }
    read = {part: _invoices(folder / f"{part}.jsonl.gz") for part in ("train", "validation")}
    random.Random(SEED).shuffle(read["train"])
    parts = {"train": read["train"][200:], "selection": read["train"][:200], "test": read["validation"]}
    data = {part: Dataset(name=part, examples=tuple(map(_example, found))) for part, found in parts.items()}
    return Extract(name=name, json_schema=schema), data, read["validation"]


def _invoices(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _example(row: dict[str, Any]) -> Example:
    answer = json.dumps(row["target"], ensure_ascii=False)
    return Example(
        messages=(Message(role="user", content=row["text"]),), answer=answer, shape="target", group=row["template"]
    )


def measure(name: str, encoder: str, epochs: int, n_rows: int | None) -> dict[str, Any]:
    """Train and return the figures on all test rows."""
    task, data, hosted = rows_of(name)
    rows = Dataset(name="train", examples=data["train"].examples[:n_rows])
    base = find_weights(encoder)
    config = TrainConfig(duration=f"{epochs}ep", max_seq_tokens=512 if hosted else 256, seed=SEED)
    config = with_learning_rate(config, base)
    folder = home() / "tagger" / f"{name}-{Path(encoder).name}-{len(rows)}"
    recipe = TaggingRecipe(task, rows, data["selection"])
    with open_run(f"tagger-{name}", folder.name) as tracked:
        run = train(
            recipe, config, base=(encoder, base), tracked=tracked, folder=folder,
            on_step=lambda step: print(f"{step.progress:.3f} loss {step.loss:.3f}", flush=True) if step.ends_epoch else None,
        )  # fmt: skip
    print(run.validation_curve, flush=True)
    found = asyncio.run(_evaluate(run.folder, task, data["test"]))
    right = [row.score >= task.pass_score for row in found.rows]
    seen = {fold_text(example.text) for example in rows.examples}
    fresh = [
        ok for ok, example in zip(right, data["test"].examples, strict=True) if fold_text(example.text) not in seen
    ]
    wrong = [row.wrong_fields or () for row in found.rows]
    figures = {
        "set": name, "encoder": encoder, "n_train": len(rows), "epochs": epochs, "learning_rate": config.learning_rate,
        "best_epoch": run.best_epoch, "minutes": round(run.seconds / 60, 1), "tokens_per_s": round(run.tokens_per_s),
        "selection": [value for _, value in run.validation_curve], "n_selection": len(data["selection"]),
        "n_test": len(right), "right": sum(right), "n_fresh": len(fresh), "right_fresh": sum(fresh),
        "wrong_fields": dict(Counter(field for fields in wrong for field in fields).most_common()),
        "field_f1": found.measures["field_f1"].value, "confidence_kept": _kept(found.rows, right),
    }  # fmt: skip
    if hosted:
        figures |= _beside_hosted(task, hosted, right, wrong)
    print(json.dumps(figures), flush=True)
    return figures


async def _evaluate(folder: Path, task: Extract, test: Dataset) -> Any:
    model = load_model(folder)
    try:
        return await evaluate(model, EvaluationSetup(task, test, split="test"), candidate="tagger")
    finally:
        await model.aclose()


def _kept(rows: Any, right: list[bool]) -> list[float]:
    """Return the share of rows right among the half, and the nine tenths, of highest confidence."""
    order = sorted(range(len(rows)), key=lambda i: -(rows[i].confidence or 0))
    return [sum(right[i] for i in order[: int(share * len(order))]) / int(share * len(order)) for share in (0.5, 0.9)]


def _beside_hosted(task: Extract, hosted: list[dict[str, Any]], right: list[bool], wrong: list[Any]) -> dict[str, Any]:
    golds = [json.dumps(row["target"], ensure_ascii=False) for row in hosted]
    theirs = [task.wrong_fields([gold], task.parse(row["answer"])) for gold, row in zip(golds, hosted, strict=True)]
    by_layout = {}
    for layout in sorted({row["template"] for row in hosted}):
        at = [i for i, row in enumerate(hosted) if row["template"] == layout]
        by_layout[layout] = [
            sum(right[i] for i in at),
            len(at),
            dict(Counter(f for i in at for f in wrong[i]).most_common()),
        ]
    return {
        "by_layout": by_layout, "hosted_right": sum(not fields for fields in theirs),
        "hosted_wrong_fields": dict(Counter(field for fields in theirs for field in fields).most_common()),
        "hosted_usd_per_1000": 1000 * sum(row["cost_usd"] for row in hosted) / len(hosted),
        "hosted_p50_ms": sorted(row["latency_ms"] for row in hosted)[len(hosted) // 2],
    }  # fmt: skip


def speed(name: str, encoder: str) -> dict[str, Any]:
    """Return requests/s of the tagger and, in turn with it, texts/s of the frozen encoder alone; medians of 5."""
    _, data, _ = rows_of(name)
    folder = max(
        (home() / "tagger").glob(f"{name}-{Path(encoder).name}-*/model"), key=lambda path: path.stat().st_mtime
    )
    texts = [example.text for example in data["test"].examples[:512]]
    tagger, frozen = load_model(folder)._scorer, SentenceEncoder(find_weights(encoder))  # type: ignore[attr-defined]
    rates: dict[str, list[float]] = {"tagger": [], "encoder": [], "tagger_alone": [], "encoder_alone": []}
    for _ in range(5):
        for key, call, part in (
            ("tagger", tagger.answer, texts), ("encoder", frozen.embed, texts),
            ("tagger_alone", lambda ts: [tagger.answer([t]) for t in ts], texts[:60]),
            ("encoder_alone", lambda ts: [frozen.embed([t]) for t in ts], texts[:60]),
        ):  # fmt: skip
            began = time.perf_counter()
            call(part)
            rates[key].append(len(part) / (time.perf_counter() - began))
    medians = {key: sorted(values)[2] for key, values in rates.items()}
    return {"set": name, "encoder": encoder, "speed": medians}


def write_page(figures: dict[str, Any]) -> None:
    """Write results/tagger.md from the figures."""
    lines = [
        "# The tagger on sets of kind extract", "",
        "`python -m benchmarks.accuracy.tagger SET`, 2026-11-27, one of 2 shared cores (Zen 5, 24 GB), other work beside.",
        "Official test rows, one seed; exact match: every field right, with 95 % intervals (Wilson). The epoch is chosen on the",
        "selection rows; nothing was chosen on test rows. Fresh: test rows whose text, folded, is not among the training rows.", "",
        "| set | encoder | trained on | epochs, rate | minutes | selection (n) | exact match, test (n) | fresh rows (n) | field F1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    runs = [one for one in figures.values() if "n_test" in one]
    for one in runs:
        whole, fresh = wilson(one["right"], one["n_test"]), wilson(one["right_fresh"], one["n_fresh"])
        lines.append(
            f"| {one['set']} | {Path(one['encoder']).name} | {one['n_train']:,} | {one['best_epoch']} of {one['epochs']}, "
            f"{one['learning_rate']:g} | {one['minutes']:.0f} | {max(one['selection']):.3f} ({one['n_selection']}) | "
            f"**{whole.value:.3f}** [{whole.low:.3f}, {whole.high:.3f}] ({one['n_test']:,}) | {fresh.value:.3f} ({fresh.n:,}) | "
            f"{one['field_f1']:.3f} |"
        )
    lines += ["", "Fields that were wrong, by number of test rows:", ""]
    for one in runs:
        named = ", ".join(f"{field} {n}" for field, n in list(one["wrong_fields"].items())[:10]) or "none"
        half, most = one["confidence_kept"]
        lines.append(
            f"- {one['set']} ({Path(one['encoder']).name}): {named}. Of the half of highest confidence {half:.3f} are right, "
            f"of the nine tenths {most:.3f}."
        )
    for one in (one for one in runs if "by_layout" in one):
        theirs = wilson(one["hosted_right"], one["n_test"])
        lines += ["", f"## Invoices of new layouts, {Path(one['encoder']).name}", "",
            "Rows of a layout are near-copies of each other, so the interval over rows is too narrow for layouts that nobody has",
            f"seen: four layouts are four observations. Hosted model (deepseek-v4-flash, same {one['n_test']} rows): {theirs.value:.3f} "
            f"[{theirs.low:.3f}, {theirs.high:.3f}], ${one['hosted_usd_per_1000']:.3f} per 1,000, p50 {one['hosted_p50_ms']:.0f} ms; "
            f"wrong: {one['hosted_wrong_fields']}.", "",
            "| layout | right | wrong fields |", "|---|---|---|"]  # fmt: skip
        for layout, (n_right, n, fields) in one["by_layout"].items():
            lines.append(
                f"| {layout} | {n_right} of {n} | {', '.join(f'{f} {k}' for f, k in fields.items()) or 'none'} |"
            )
    speeds = [one for one in figures.values() if "speed" in one]
    if speeds:
        lines += ["", "## Requests a second", "", "One process, one thread, 512 test texts at once and 60 one by one, in turn with the frozen encoder alone (medians of 5).", "",
            "| set | tagger, all at once | frozen encoder | ratio | tagger, one by one | frozen encoder | ratio |", "|---|---|---|---|---|---|---|"]  # fmt: skip
        for one in speeds:
            s = one["speed"]
            lines.append(
                f"| {one['set']} | {s['tagger']:.0f} | {s['encoder']:.0f} | {s['tagger'] / s['encoder']:.2f} | "
                f"{s['tagger_alone']:.0f} | {s['encoder_alone']:.0f} | {s['tagger_alone'] / s['encoder_alone']:.2f} |"
            )
    (RESULTS / "tagger.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("set", nargs="?")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    if not asked.page:
        one = (
            speed(asked.set, asked.encoder)
            if asked.speed
            else measure(asked.set, asked.encoder, asked.epochs, asked.rows)
        )
        figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
        figures[f"{asked.set} {Path(asked.encoder).name}{' speed' * asked.speed}"] = one
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    write_page(json.loads(FIGURES.read_text()))


if __name__ == "__main__":
    main()
