"""Guesses in task.yaml: the setting that is meant stands in the message, ready to copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.project.setting_names import _OTHER_NAMES, setting_paths
from smallfirst.project.task_file import TaskFile, read_task_file
from smallfirst.tasks.classify import Classify


def message(tmp_path: Path, setting: str) -> str:
    """What follows the place in the message on the only wrong setting of a file."""
    (tmp_path / "task.yaml").write_text(f"name: desk\ndata: {{train: train.jsonl}}\n{setting}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_task_file(tmp_path)
    (line,) = str(caught.value).splitlines()[1:]
    return line.partition(": unknown setting")[2]


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("epochs: 5", "small.training.duration: 5ep   (small: {training: {duration: 5ep}})"),
        ("small: {lr: 0.001}", "small.training.learning_rate: 0.001   (small: {training: {learning_rate: 0.001}})"),
        ("batch_size: 8", "small.training.batch_tokens: TOKENS   (small: {training: {batch_tokens: TOKENS}})"),
        ("labels_column: topic", "data.columns.label: topic   (data: {columns: {label: topic}})"),
        ("question_field: asked", "data.columns.question: asked   (data: {columns: {question: asked}})"),
        ("threshold: 0.9", "gate.accuracy_at_least: 0.9   (gate: {accuracy_at_least: 0.9})"),
        ("max_error: 0.05", "routing.guarantee.max_error: 0.05   (routing: {guarantee: {max_error: 0.05}})"),
        ("classes: [a, b]", "labels: [a, b]"),
        (
            "routing: {guarantee: {max_p95_ms: 300}}",
            "gate.p95_ms_at_most: 300   (gate: {p95_ms_at_most: 300})",
        ),
        (
            "routing: {guarantee: {max_usd_per_1k: 2}}",
            "gate.routed.cost_at_most: SHARE_OF_LARGE   (gate: {routed: {cost_at_most: SHARE_OF_LARGE}})",
        ),
        (
            "routing: {guarantee: {max_escalation_rate: 0.2}}",
            "routing.budget: {usd: USD, per: day}   (routing: {budget: {usd: USD, per: day}})",
        ),
        ("epochs: {few: 1}", "small.training.duration: …   (small: {training: {duration: …}})"),
    ],
)
def test_what_other_tools_call_it_or_where_it_is_looked_for_leads_to_the_setting(
    tmp_path: Path, setting: str, meant: str
) -> None:
    assert message(tmp_path, setting) == f"; write {meant}"


def test_a_setting_below_the_same_place_comes_first_and_two_meanings_are_both_told(tmp_path: Path) -> None:
    other = "large.endpoint.model: m   (large: {endpoint: {model: m}})"
    assert message(tmp_path, "large: {gguf: a.gguf, model: m}") == f"; write {other}"
    assert message(tmp_path, "model: m") == f"; write small.base: m   (small: {{base: m}}) or {other}"


def test_a_path_with_dots_is_written_as_it_stands_in_a_file(tmp_path: Path) -> None:
    assert message(tmp_path, "small.training.seed: 3") == "; write small: {training: {seed: 3}}"


def test_a_secret_is_not_repeated_and_a_misspelt_setting_has_its_nearest(tmp_path: Path) -> None:
    assert "sk-123" not in message(tmp_path, "api_key: sk-123")
    assert message(tmp_path, "ruting: {}") == ' — did you mean "routing"?'


def test_every_setting_of_the_table_exists() -> None:
    known = {".".join(path) for path in setting_paths(TaskFile)} | set(Classify.setting_names())
    assert {setting.partition(": ")[0] for setting in _OTHER_NAMES} <= known
