"""The answers of a batch become training rows: the sure ones, once each, and none that is held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.cli import call, failed

from smallfirst.batch.score import ScoreOptions, score
from smallfirst.data.dataset import Dataset
from smallfirst.improvement.labelling import scored
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest
from smallfirst.progress import Progress
from smallfirst.tasks.classify import Classify

pq = pytest.importorskip("pyarrow.parquet")


def test_sure_answers_become_rows_once_and_held_out_ones_do_not(
    tmp_path: Path, toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify
) -> None:
    parts = {"train": toy_rows, "validation": toy_selection, "test": toy_selection}
    for part, rows in parts.items():
        lines = [json.dumps({"text": f"{e.text} {part}", "label": e.answer}) for e in rows.examples]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(lines))
    (tmp_path / "task.yaml").write_text(json.dumps({"name": "toy", "data": {p: f"{p}.jsonl" for p in parts}}))
    model = tmp_path / "words"
    model.mkdir()
    LinearClassifier.fit("words", toy_rows, toy_task).save(model, Manifest(kind="words", task=toy_task, base=""))
    known = f"{toy_selection.examples[0].text} test"
    texts = ["a lost parcel of mine", "A lost parcel, of mine!", known, "pin code forgotten again", "qq zz 77"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = ScoreOptions(model=str(model), keep=("text",), part_rows=2)
    score(tmp_path, str(tmp_path / "rows.jsonl"), tmp_path / "scored", options=options, progress=Progress(quiet=True))
    table = pq.read_table(sorted((tmp_path / "scored").glob("part-*"))).to_pylist()
    sure = 1.0001 * table[4]["confidence"]
    assert sure < min(row["confidence"] for row in table[:4])

    out = tmp_path / "labelled.jsonl"
    told = call("label", tmp_path, tmp_path / "scored", "--out", out, "--min-confidence", sure)
    assert told.output.startswith(f"2 of 5 rows labelled by {model} in {out}; 1 unsure or with an error\n")
    assert "equal to held-out rows" in told.output
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in written] == [texts[0], texts[3]]
    assert [row["label"] for row in written] == [table[0]["answer"], table[3]["answer"]]
    assert {row["teacher"] for row in written} == {str(model)}
    assert "exists already" in failed(call("label", tmp_path, tmp_path / "scored", "--out", out), 2)
    options = options.model_copy(update={"keep": ()})
    score(tmp_path, str(tmp_path / "rows.jsonl"), tmp_path / "bare", options=options, progress=Progress(quiet=True))
    assert "smallfirst score … --keep text" in failed(call("label", tmp_path, tmp_path / "bare", "--out", "x.jsonl"), 2)


def test_a_large_input_is_labelled_a_part_at_a_time_and_not_answered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_rows: Dataset, toy_task: Classify
) -> None:
    monkeypatch.setattr(scored, "BULK_BYTES", 100)
    model = tmp_path / "words"
    model.mkdir()
    LinearClassifier.fit("words", toy_rows, toy_task).save(model, Manifest(kind="words", task=toy_task, base=""))
    lines = [json.dumps({"text": e.text, "label": e.answer}) for e in toy_rows.examples]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "task.yaml").write_text('{"name": "toy", "data": {"train": "train.jsonl"}}')
    texts = [f"pin code {i} forgotten again" for i in range(30)]
    rows = tmp_path / "rows"
    rows.mkdir()
    for i in (0, 1):
        part = "".join(json.dumps({"text": text}) + "\n" for text in texts[i::2])
        (rows / f"part-{i}.jsonl").write_text(part)
    told = call("label", tmp_path, rows, "--teacher", model, "--out", tmp_path / "labelled.jsonl")
    assert told.stdout.startswith("30 of 30 rows labelled by"), told.output
    written = [json.loads(line)["text"] for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert sorted(written) == sorted(texts)
    monkeypatch.setattr("smallfirst.batch.score._ask_here", None)
    again = call("label", tmp_path, rows, "--teacher", model, "--out", tmp_path / "again.jsonl")
    assert again.exit_code == 0, again.output
    answered = call("label", tmp_path, tmp_path / "train.jsonl", "--teacher", model, "--out", tmp_path / "x.jsonl")
    assert "its rows have answers already (column 'label')" in failed(answered, 1)
