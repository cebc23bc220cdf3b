"""Fine-tune a small model on Restaurant-8k and write what it says, field by field, as a table.

    python -m benchmarks.routing.field_tables OUT_FOLDER

SmolLM2-135M-Instruct, upper third of its layers, one epoch of 2,000 training rows: a weak model, so that there is
something to certify. Answers to all 820 validation rows and to 900 test rows by content hash. A line of
OUT_FOLDER/restaurant8k.jsonl: key, part, group, confidence (the probability of the answer's tokens), correct and, by
field of the schema, confidence and correct.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.datasets import data_folder, task_file
from smallfirst.data.dataset import Dataset, Example
from smallfirst.data.sources.load import load_rows
from smallfirst.models.catalog import find_weights
from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Request
from smallfirst.registry import runs
from smallfirst.tasks.extract import Extract
from smallfirst.training.config import TrainConfig
from smallfirst.training.recipes.recipe import TaskRecipe
from smallfirst.training.run import train

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> None:
    name, out = "restaurant8k", Path(sys.argv[1])
    train_rows, parts, task, config = restaurant8k()
    with runs.open_run("field-tables", name, params={}) as tracked:
        recipe = TaskRecipe(task, train_rows, Dataset(name=name, examples=train_rows.examples[:20]))
        found = train(recipe, config, base=(SMALL, find_weights(SMALL)), tracked=tracked, folder=out / name)
    print(f"trained: {found.seconds / 60:.1f} min, {found.tokens_per_s:.0f} tokens/s", flush=True)
    lines = asyncio.run(answer_all(found.folder, task, parts))
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    for part in parts:
        of_part = [line for line in lines if line["part"] == part]
        fields = [field["correct"] for line in of_part for field in line["fields"].values()]
        right = sum(line["correct"] for line in of_part) / len(of_part)
        print(f"{part}: {len(of_part)} rows, all right {right:.3f}, fields right {sum(fields) / len(fields):.3f}")


def restaurant8k() -> tuple[Dataset, dict[str, Dataset], Extract, TrainConfig]:
    file = task_file("restaurant8k", data_folder("restaurant8k"))
    columns = file.data.columns
    rows = {part: load_rows(getattr(file.data, part), columns=columns) for part in ("train", "validation", "test")}
    settings = Extract.complete_settings(
        {"name": "restaurant8k", "about": file.model_dump()["about"]}, rows["train"], []
    )
    parts = {"validation": rows["validation"], "test": hashed(rows["test"], 900)}
    config = TrainConfig(duration="1ep", learning_rate=3e-4, batch_tokens=512, method="lora")
    return hashed(rows["train"], 2000), parts, Extract(**settings), config


def hashed(rows: Dataset, n: int) -> Dataset:
    """Return the first `n` rows in the order of a hash of their content."""
    order = sorted(rows.examples, key=lambda e: hashlib.sha256(e.key.encode()).hexdigest())
    return Dataset(name=rows.name, examples=tuple(order[:n]))


async def answer_all(folder: Path, task: Extract, parts: dict[str, Dataset]) -> list[dict[str, Any]]:
    model, lines, done = load_model(folder), [], 0
    n = sum(map(len, parts.values()))
    busy = asyncio.Semaphore(16)

    async def ask(part: str, example: Example) -> dict[str, Any]:
        nonlocal done
        async with busy:
            completion = await model.complete(Request(messages=example.messages))
        done += 1
        if done % 50 == 0:
            print(f"{done} of {n}", flush=True)
        answer = task.parse(completion.text)
        wrong = task.wrong_fields(example.golds, answer)
        confidence = completion.field_confidence
        return {
            "key": example.key, "part": part, "group": example.group, "confidence": completion.confidence,
            "correct": task.score(example.golds, answer) == 1, "gold": json.loads(example.answer),
            "answer": completion.text,
            "fields": {
                name: {"confidence": confidence.get(name, 0.0), "correct": name not in wrong}
                for name in task.json_schema["properties"]
            },
        }  # fmt: skip

    try:
        for part, rows in parts.items():
            lines += await asyncio.gather(*(ask(part, example) for example in rows.examples))
    finally:
        await model.aclose()
    return lines


if __name__ == "__main__":
    main()
