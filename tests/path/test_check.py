"""The whole look before a run: lengths as training counts them, needs of the tiny model, and what cannot be known."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.preflight import task_of, things

from smallfirst.path import check as module
from smallfirst.path.check import check_stage
from smallfirst.path.project.project import Project
from smallfirst.training.estimates import FreeMemory
from smallfirst.training.recipe import TaskRecipe

LONG = "card " * 60


def desk(folder: Path, base: object, *, more: str = "", rows: list[dict[str, Any]] | None = None) -> Project:
    """A task of 90 rows, or of these, with this base model."""
    small = {"base": str(base), "training": {"duration": "2ep", "batch_tokens": 128, "max_seq_tokens": 64}}
    return task_of(folder, {"train": rows or things(90)}, small=small, **(yaml.safe_load(more) or {}))


def test_the_needs_are_those_of_the_run_that_would_follow(tmp_path: Path, tiny_folder: Path) -> None:
    import transformers

    project = desk(tmp_path, tiny_folder)
    needs = check_stage(project).needs
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    recipe = TaskRecipe(project.task, project.rows.train, project.rows.selection)
    lengths = [len(row.ids) for row in recipe.prepare(tokenizer, project.file.small.training, "tiny").rows]
    assert needs.tokens == 2 * (sum(lengths) - len(lengths))  # the last token of a row is only a target
    assert (needs.epochs, needs.method) == (2, "full")
    assert 0 < needs.seconds.low < needs.seconds.high
    assert needs.free_bytes is not None
    assert needs.cost_usd is None
    assert "first steps" in needs.pace


def test_rows_over_the_limit_are_named_in_full(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{"text": f"{LONG} {i}{i * 7919 % 1000}", "label": "ab"[i % 2]} for i in range(60)]
    project = desk(tmp_path, tiny_folder, rows=rows)
    found = check_stage(project)
    [over] = [f for f in found.rows.findings if f.what.startswith("train rows over 64 tokens")]
    assert (over.level, over.n, len(over.where)) == ("stop", len(project.rows.train), len(project.rows.train))
    assert found.verdict == "NO"


def test_without_the_weights_lengths_are_guessed_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smallfirst.models import catalog as base

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(base, "pull_weights", no_network)
    rows = [{"text": f"{LONG} {i}{i * 7919 % 1000}", "label": "ab"[i % 2]} for i in range(60)]
    found = check_stage(desk(tmp_path, "HuggingFaceTB/SmolLM2-135M-Instruct", rows=rows))
    assert found.needs is None
    guesses = [f.level for f in found.rows.findings if "probably over 64 tokens" in f.what]
    assert guesses == ["note"] * 3
    last = found.in_words.splitlines()[-2:]
    assert last[0].startswith("time and memory of the fine-tune: unknown, no weights found")
    assert last[1] == "  next: smallfirst models pull HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_base_without_a_tokenizer_is_said_to_have_none(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    found = check_stage(desk(tmp_path, tmp_path / "bare"))
    assert found.needs is None
    assert "cannot be read" in found.unknown


def test_a_fine_tune_that_cannot_fit_stops(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: FreeMemory(1000, 0, gpu=False))
    found = check_stage(desk(tmp_path, tiny_folder))
    [finding] = [f for f in found.rows.findings if f.what.startswith("the fine-tune needs at least")]
    assert (finding.level, found.verdict) == ("stop", "NO")
    assert found.rows.findings[0] == finding
    monkeypatch.setattr(module, "free_memory", lambda: FreeMemory(1000, 10**12, gpu=False))
    assert check_stage(desk(tmp_path, tiny_folder)).verdict != "NO"


def test_linear_models_alone_are_checked_without_tokens_and_without_an_estimate(tmp_path: Path) -> None:
    found = check_stage(desk(tmp_path, "no-such-model", more="ladder: [words]\nrouting: {small: words}\n"))
    assert (found.needs, found.unknown) == (None, "")


def test_stated_languages_that_no_candidate_reads_and_no_row_is_in_are_a_note(tmp_path: Path) -> None:
    rows = [{"text": f"{LONG} {i}{i * 7919 % 1000}", "label": "ab"[i % 2]} for i in range(60)]

    def unread(ladder: str, languages: str, own: str = "") -> list[str]:
        more = f"ladder: {ladder}\nrouting: {{guarantee: {{languages: {languages}}}}}\n{own}"
        found = check_stage(desk(tmp_path, "no-such-model", rows=rows, more=more)).rows.findings
        return [one.what for one in found if one.what.startswith("languages that no candidate reads")]

    assert unread("[words]", "[en, de, fi]") == ["languages that no candidate reads: de, fi"]
    assert unread("[words, encoder, multilingual]", "[en, de, fi]") == ["languages that no candidate reads: fi"]
    assert unread("[words, multilingual]", "[en, de]") == unread("[words]", "[en]") == unread("[words]", "[]") == []


def test_what_a_run_can_end_with_is_in_the_report_and_the_json(tmp_path: Path) -> None:
    found = check_stage(desk(tmp_path, "no-such-model", more="gate: {accuracy_at_least: 0.5}\n"))
    n = len(desk(tmp_path, "no-such-model").rows.test)
    assert f"gate: {n} test rows show accuracy at least 0.500 only from a measured " in found.in_words
    whats = {finding.what.removeprefix("certificate: ") for finding in found.rows.findings}
    assert found.foretold.certificate.in_words in whats
    values = json.loads(found.in_json)
    assert values["foretold"]["gate"][0]["reachable"] is True
    assert values["foretold"]["fewest"]["n_data_rows"] > 0
    assert values["foretold"]["fewest"]["chance"] > 0.5
    assert (values["large"], found.verdict) == (None, "FIX")


def test_one_system_message_is_the_task_s_job_and_different_ones_are_a_finding(tmp_path: Path) -> None:
    def row(i: int, system: str) -> dict[str, Any]:
        turns = [("system", system), ("user", f"question {i}{i * 7919 % 1000}"), ("assistant", f"answer {i}")]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    more = "kind: chat\nladder: [small]\n"
    project = desk(tmp_path, "no-such-model", more=more, rows=[row(i, "Be brief.") for i in range(40)])
    assert project.task.system_message() == "Be brief."
    whats = [finding.what for finding in check_stage(project).rows.findings]
    assert not any("system messages" in what for what in whats)
    project = desk(tmp_path, "no-such-model", more=more, rows=[row(i, f"Be {i % 2}.") for i in range(40)])
    [finding] = [found for found in check_stage(project).rows.findings if "system messages" in found.what]
    assert (finding.level, finding.n) == ("fix", 2)
    assert {place.rpartition(" has ")[2] for place in finding.where} == {'"Be 0."', '"Be 1."'}
