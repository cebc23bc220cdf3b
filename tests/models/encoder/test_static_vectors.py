"""Static vectors: the mean of a text's tokens, scaled to length 1, read from safetensors and a JSON tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures.static_vectors import TABLE, write_static_vectors
from safetensors.numpy import save_file

from smallfirst.data.dataset import Dataset
from smallfirst.errors import WeightsNotFound
from smallfirst.models.encoder.static_vectors import StaticVectors
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.tasks.classify import Classify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_static_vectors(tmp_path / "vectors")


def test_a_vector_is_the_mean_of_all_tokens_at_length_one(folder: Path) -> None:
    vectors = StaticVectors(folder).embed(["card", "card pin", "pin card pin", "", "who"])
    assert vectors.dtype == np.float32
    mean = np.array([[3, 4, 0], [3, 4, 2], [3, 4, 4]])  # sums: the length does not matter
    assert vectors[:3] == pytest.approx(mean / np.linalg.norm(mean, axis=1, keepdims=True), abs=1e-6)
    assert not vectors[3:].any()


def test_a_folder_with_another_table_is_refused(folder: Path) -> None:
    save_file({"embedding.weight": TABLE, "mlp.weight": TABLE}, folder / "model.safetensors")
    with pytest.raises(WeightsNotFound, match="does not hold one table of token vectors and one tokenizer"):
        StaticVectors(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsNotFound, match="does not hold one table"):
        StaticVectors(folder)


def test_a_linear_model_on_static_vectors_is_saved_and_finds_them_again(
    folder: Path, toy_rows: Dataset, toy_task: Classify, tmp_path: Path
) -> None:
    fitted = LinearClassifier.fit("static", toy_rows, toy_task, encoder=StaticVectors(folder))
    fitted.save(tmp_path, Manifest(kind="static", task=toy_task, base=str(folder)))
    texts = ["card", "fee please", ""]
    again = LinearClassifier.load(tmp_path, read_manifest(tmp_path)).score(texts)
    for ours, theirs in zip(fitted.score(texts), again, strict=True):
        assert theirs.log_probabilities == pytest.approx(ours.log_probabilities, abs=1e-6)
    assert not np.allclose(again[0].log_probabilities, again[1].log_probabilities)
