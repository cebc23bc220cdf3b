"""int8 is kept only where rows show equal answers; the comparison is recorded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from smallfirst.data.dataset import Dataset
from smallfirst.errors import DataError
from smallfirst.models.encoder.sentence_encoder import open_encoder
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.local.int8_check import check_int8, compare
from smallfirst.models.local.int8_matmul import int8_supported
from smallfirst.models.local.label_tokens import choose_label_tokens
from smallfirst.models.manifest import INT8_FILE, Int8Check, Manifest, int8_allowed, write_manifest
from smallfirst.tasks.classify import Classify

MANIFEST = Manifest(
    kind="label_tokens", task=Classify(name="t", labels=("a", "b")), base="tiny", weights_fingerprint="f00"
)


def rows(*first: float) -> list[LabelLogProbs]:
    """Rows with these probabilities of the first of two labels."""
    return [LabelLogProbs([math.log(p), math.log(1 - p)], 3, 0.0) for p in first]


def test_equal_answers_on_enough_rows_keep_int8() -> None:
    found = compare(rows(*[0.8] * 250), rows(*[0.7] * 250), [0] * 200 + [1] * 50, manifest=MANIFEST, rows="validation")
    assert found.kept
    assert (found.agreement.value, found.agreement.n) == (1.0, 250)
    assert found.agreement.low == pytest.approx(250 / (250 + 1.959964**2))  # Wilson, all alike
    assert (found.exact_right, found.int8_right) == (200, 200)
    assert found.mean_shift == pytest.approx(0.1)
    assert (found.weights_fingerprint, found.rows) == ("f00", "validation")
    assert "the same label on 1.000" in found.why


@pytest.mark.parametrize(("n", "kept"), [(99, False), (100, True)])
def test_too_few_rows_decide_nothing(n: int, kept: bool) -> None:
    assert compare(rows(*[0.8] * n), rows(*[0.8] * n), [0] * n, manifest=MANIFEST, rows="v").kept is kept


def test_different_answers_are_not_kept() -> None:
    exact, int8 = rows(*[0.8] * 300), rows(*[0.8] * 290, *[0.3] * 10)
    found = compare(exact, int8, [0] * 300, manifest=MANIFEST, rows="v")
    assert not found.kept
    assert found.agreement.value == pytest.approx(290 / 300)
    assert found.exact_right == 300
    assert "at least 98% is required" in found.why


def test_lost_accuracy_is_not_kept_even_if_labels_mostly_agree() -> None:
    exact, int8 = rows(*[0.8] * 1000), rows(*[0.8] * 985, *[0.3] * 15)
    found = compare(exact, int8, [0] * 1000, manifest=MANIFEST, rows="v")
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-0.015)
    assert (found.exact_right, found.int8_right) == (1000, 985)
    assert not found.kept
    assert "no more than 1% may be lost" in found.why
    assert compare(exact, int8, [1] * 1000, manifest=MANIFEST, rows="v").kept  # the same labels, now for the better


def test_no_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="v: no rows to check int8 on"):
        compare([], [], [], manifest=MANIFEST, rows="v")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, toy_task: Classify) -> Path:
    from smallfirst.models.local.weights import load_causal

    made = tmp_path / "model"
    made.mkdir()
    for file in tiny_folder.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    codes = choose_label_tokens(toy_task.labels, load_causal(made)[1])
    manifest = Manifest(kind="label_tokens", task=toy_task, base="tiny", label_tokens=codes, weights_fingerprint="f00")
    write_manifest(made, manifest)
    return made


@pytest.mark.skipif(not int8_supported(), reason="this processor has no fast int8 products")
def test_the_record_is_written_beside_the_weights(folder: Path, toy_selection: Dataset) -> None:
    many = Dataset(name="selection", examples=toy_selection.examples * 10)
    found = check_int8(folder, many)
    assert found is not None
    assert found.agreement.n == 240
    assert Int8Check.load(folder / INT8_FILE) == found
    assert int8_allowed(folder, MANIFEST) is found.kept
    assert not int8_allowed(folder, MANIFEST.model_copy(update={"weights_fingerprint": "f01"}))


@pytest.mark.parametrize("kept", [True, False])
def test_an_encoder_is_checked_and_read_as_it_was_decided(
    kept: bool, tiny_encoder_folder: Path, toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify, tmp_path: Path
) -> None:
    exact = LinearClassifier.fit("encoder", toy_rows, toy_task, encoder=open_encoder(tiny_encoder_folder))
    manifest = exact.save(tmp_path, Manifest(kind="encoder", task=toy_task, base=str(tiny_encoder_folder)))
    found = check_int8(tmp_path, Dataset(name="selection", examples=toy_selection.examples * 10))
    assert found is not None
    assert (found.agreement.n, found.mean_shift > 0) == (240, True)
    found.model_copy(update={"kept": kept}).save(tmp_path / INT8_FILE)
    loaded = LinearClassifier.load(tmp_path, manifest)
    assert loaded.encoder is not None
    assert loaded.encoder.int8 is kept
    later = manifest.model_copy(update={"weights_fingerprint": f"{manifest.weights_fingerprint}-1234"})
    assert int8_allowed(tmp_path, later) is kept


def test_models_without_an_int8_form_are_not_checked(tmp_path: Path, toy_selection: Dataset) -> None:
    write_manifest(tmp_path, MANIFEST.model_copy(update={"kind": "words"}))
    assert check_int8(tmp_path, toy_selection) is None
    assert not int8_allowed(tmp_path, MANIFEST)
