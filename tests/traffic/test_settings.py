"""The terms of a teacher are found by its own name, the name it was asked by, and that of its versions."""

import json

import pytest
from fixtures.takeover import cases, source, write_draft

from smallfirst.base.errors import ConfigError
from smallfirst.traffic.learning import learn, read_source
from smallfirst.traffic.settings import GatewaySettings

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


def test_terms_that_are_written_after_discover_hold_and_learn_refuses(tmp_path):
    folder = write_draft(tmp_path / "discovered" / "queues", cases(20))
    assert read_source(folder) == source()
    upstreams = {"default": {"base_url": "https://api.example.com/v1"}}
    terms = {"upstreams": upstreams, "teachers": {"big": {"licence": "no training", "training_allowed": False}}}
    (tmp_path / "gateway.yaml").write_text(json.dumps(terms))
    with pytest.raises(ConfigError, match="used for measuring only, and people have answered 0 of its rows") as refused:
        learn(folder)
    assert "corrections.jsonl" in str(refused.value)
