"""int8 is kept only where rows show equal answers; the comparison is recorded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from smallfirst.base.errors import DataError
from smallfirst.data.dataset import Dataset
from smallfirst.models.encoder.int8_check import check_int8, compare
from smallfirst.models.encoder.sentence_encoder import open_encoder
from smallfirst.models.label_model import LabelLogProbs
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import INT8_FILE, Int8Check, Manifest, int8_allowed, write_manifest
from smallfirst.tasks.classify import Classify

MANIFEST = Manifest(kind="encoder", task=Classify(name="t", labels=("a", "b")), base="tiny", weights_fingerprint="f00")


def rows(*first: float) -> list[LabelLogProbs]:
    """Rows with these probabilities of the first of two labels."""
    return [LabelLogProbs([math.log(p), math.log(1 - p)], 3, 0.0) for p in first]


def compared(exact: list[LabelLogProbs], int8: list[LabelLogProbs], gold: list[int]) -> Int8Check:
    return compare(exact, int8, gold, weights_fingerprint="f00")


def test_equal_answers_on_enough_rows_keep_int8() -> None:
    found = compared(rows(*[0.8] * 250), rows(*[0.7] * 250), [0] * 200 + [1] * 50)
    assert found.kept
    assert (found.agreement.value, found.agreement.n) == (1.0, 250)
    assert found.agreement.low == pytest.approx(250 / (250 + 1.959964**2))  # Wilson, all alike
    assert (found.weights_fingerprint, found.difference.value) == ("f00", 0)
    assert "the same label on 1.000" in found.why


@pytest.mark.parametrize(("n", "kept"), [(99, False), (100, True)])
def test_too_few_rows_decide_nothing(n: int, kept: bool) -> None:
    assert compared(rows(*[0.8] * n), rows(*[0.8] * n), [0] * n).kept is kept


def test_different_answers_are_not_kept() -> None:
    found = compared(rows(*[0.8] * 300), rows(*[0.8] * 290, *[0.3] * 10), [0] * 300)
    assert not found.kept
    assert found.agreement.value == pytest.approx(290 / 300)
    assert "at least 98% is required" in found.why


def test_lost_accuracy_is_not_kept_even_if_labels_mostly_agree() -> None:
    exact, int8 = rows(*[0.8] * 1000), rows(*[0.8] * 985, *[0.3] * 15)
    found = compared(exact, int8, [0] * 1000)
    assert found.difference.value == pytest.approx(-0.015)
    assert not found.kept
    assert "no more than 1% may be lost" in found.why
    assert compared(exact, int8, [1] * 1000).kept  # the same labels, now for the better


def test_no_rows_are_an_error() -> None:
    with pytest.raises(DataError, match="no rows to check int8 on"):
        compared([], [], [])


@pytest.mark.parametrize("kept", [True, False])
def test_an_encoder_is_checked_and_read_as_it_was_decided(
    kept: bool, tiny_encoder_folder: Path, toy_rows: Dataset, toy_selection: Dataset, toy_task: Classify, tmp_path: Path
) -> None:
    exact = LinearClassifier.fit("encoder", toy_rows, toy_task, encoder=open_encoder(tiny_encoder_folder))
    manifest = exact.save(tmp_path, Manifest(kind="encoder", task=toy_task, base=str(tiny_encoder_folder)))
    found = check_int8(tmp_path, Dataset(name="selection", examples=toy_selection.examples * 10))
    assert found is not None
    assert found.agreement.n == 240
    assert Int8Check.load(tmp_path / INT8_FILE) == found
    found.model_copy(update={"kept": kept}).save(tmp_path / INT8_FILE)
    loaded = LinearClassifier.load(tmp_path, manifest)
    assert loaded.encoder is not None
    assert loaded.encoder.int8 is kept
    later = manifest.model_copy(update={"weights_fingerprint": f"{manifest.weights_fingerprint}-1234"})
    assert int8_allowed(tmp_path, later) is kept
    assert not int8_allowed(tmp_path, manifest.model_copy(update={"weights_fingerprint": "f01"}))


def test_models_without_an_int8_form_are_not_checked(tmp_path: Path, toy_selection: Dataset) -> None:
    write_manifest(tmp_path, MANIFEST.model_copy(update={"kind": "words"}))
    assert check_int8(tmp_path, toy_selection) is None
    assert not int8_allowed(tmp_path, MANIFEST)
