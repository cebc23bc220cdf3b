"""The terms of a teacher are found by its own name, the name it was asked by, and that of its versions."""

from __future__ import annotations

import pytest

from smallfirst.base.errors import ConfigError
from smallfirst.traffic import task_source
from smallfirst.traffic.learning import learn, read_source
from smallfirst.traffic.settings import GatewaySettings
from smallfirst.traffic.task_source import SOURCE_FILE, AnswerFormat, TaskSource

TERMS = GatewaySettings.model_validate(
    {
        "upstreams": {"default": {"base_url": "https://api.example.com/v1"}},
        "teachers": {
            "gpt-4o": {"licence": "no training", "training_allowed": False},
            "gpt-4o-mini": {"licence": "as agreed", "training_allowed": True},
            "open-model": {"licence": "MIT"},
        },
    }
)
SETTINGS = """
upstreams: {default: {base_url: "https://api.example.com/v1"}}
teachers: {gpt-4o: {licence: no training, training_allowed: false}}
"""


def source(model="gpt-4o-2024-08-06"):
    teacher = task_source.Teacher(model=model)
    return TaskSource(name="tickets", templates=(), answer_format=AnswerFormat(kind="label"), teacher=teacher)


@pytest.mark.parametrize(
    ("model", "asked_as", "licence", "allowed"),
    [
        ("gpt-4o", (), "no training", False),
        ("gpt-4o-2024-08-06", (), "no training", False),
        ("gpt-4o-mini-2024-07-18", (), "as agreed", True),
        ("served-name", ("gpt-4o",), "no training", False),
        ("open-model", (), "MIT", True),  # nobody has said that it is forbidden
        ("gpt-4", (), "", True),
    ],
)
def test_terms_by_name(model, asked_as, licence, allowed):
    found = TERMS.teacher_of(model, *asked_as)
    assert (found.model, found.licence, found.training_allowed) == (model, licence, allowed)


def test_terms_that_are_written_after_discover_hold(tmp_path):
    folder = tmp_path / "discovered" / "tickets"
    folder.mkdir(parents=True)
    source().save(folder / SOURCE_FILE)
    assert read_source(folder) == source()
    (tmp_path / "gateway.yaml").write_text(SETTINGS)
    assert not read_source(folder).teacher.training_allowed
    source("another").save(folder / SOURCE_FILE)
    assert read_source(folder) == source("another")


def test_learn_refuses_to_train_on_answers_that_may_only_measure(tmp_path):
    (tmp_path / "gateway.yaml").write_text(SETTINGS)
    (tmp_path / "task.yaml").write_text("kind: classify\nlabels: [a, b]\ndata: {train: rows.jsonl}\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n')
    source().save(tmp_path / SOURCE_FILE)
    with pytest.raises(ConfigError, match="used for measuring only, and people have answered 0 of its rows") as refused:
        learn(tmp_path)
    assert "corrections.jsonl" in str(refused.value)
