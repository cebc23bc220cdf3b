"""A manifest is read as it was written, and a folder without one is not a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallfirst.errors import ConfigError
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import Manifest, read_manifest, write_manifest
from smallfirst.tasks.classify import Classify

TASK = Classify(name="digits", labels=tuple(f"label-{i}" for i in range(7)))


def test_a_manifest_comes_back_as_written(tmp_path: Path) -> None:
    manifest = Manifest(
        kind="label_tokens",
        task=TASK.model_copy(update={"descriptions": {"label-1": "Größe «1»"}}),
        base="org/base",
        label_tokens=(5, 9, 2, 1, 3, 4, 8),
        temperature=1.25,
        max_tokens=99,
        weights_fingerprint="ab",
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_a_folder_without_a_manifest_is_no_model(tmp_path: Path) -> None:
    expected = f"{tmp_path} has no smallfirst.json, so it is not a model of smallfirst"
    for read in (read_manifest, load_model):
        with pytest.raises(ConfigError) as caught:
            read(tmp_path)
        assert str(caught.value) == expected


def test_a_manifest_with_a_wrong_key_names_file_and_key(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest(kind="words", task=TASK, base=""))
    plain = json.loads((tmp_path / "smallfirst.json").read_text())
    (tmp_path / "smallfirst.json").write_text(json.dumps(plain | {"temprature": 2}))
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path)
    assert caught.value.args[0] == (
        f'{tmp_path}/smallfirst.json:\n  temprature: unknown setting — did you mean "temperature"?'
    )
