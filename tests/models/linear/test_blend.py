"""A blend: weights that lower the loss, members dropped where they gain nothing, prices added up."""

from pathlib import Path

import numpy as np
import pytest

from smallfirst.data.dataset import Dataset
from smallfirst.models.linear.blend import MEMBERS_FOLDER, choose_weights, mix
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.loading import load_model
from smallfirst.models.manifest import Manifest, write_manifest
from smallfirst.models.pricing import MachinePrice
from smallfirst.models.protocol import Capability, Request, label_probability_model
from smallfirst.tasks.classify import Classify


def noisy(gold: np.ndarray, seed: int, strength: float) -> np.ndarray:
    """Log-probabilities that know the gold label to some degree."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1, (len(gold), 4))
    logits[np.arange(len(gold)), gold] += strength
    return mix([logits], [1.0])


def test_the_mixture_is_the_geometric_mean() -> None:
    first, second = np.log([[0.8, 0.2]]), np.log([[0.4, 0.6]])
    mixed = np.exp(mix([first, second], [0.5, 0.5]))[0]
    assert mixed == pytest.approx(np.sqrt([0.8 * 0.4, 0.2 * 0.6]) / np.sqrt([0.8 * 0.4, 0.2 * 0.6]).sum())


def test_models_that_err_apart_are_mixed_and_a_copy_or_noise_is_left_out() -> None:
    gold = np.arange(400) % 4
    first, second = noisy(gold, 0, 2.0), noisy(gold, 1, 2.0)
    weights = choose_weights({"first": first, "copy": first, "second": second, "noise": noisy(gold, 2, 0.0)}, gold)
    assert len(weights) == 2
    assert "second" in weights
    assert "noise" not in weights
    assert sum(weights.values()) == pytest.approx(1)
    assert choose_weights({"first": first, "copy": first}, gold) == {"first": 1.0}


async def test_a_blend_answers_from_its_own_folder_at_the_price_of_all(
    toy_task: Classify, toy_rows: Dataset, tmp_path: Path
) -> None:
    for name in ("words", "again"):
        classifier = LinearClassifier.fit("words", toy_rows, toy_task)
        classifier.save(tmp_path / MEMBERS_FOLDER / name, Manifest(kind="words", task=toy_task, base=""))
    weights = {"words": 0.3, "again": 0.7}
    write_manifest(tmp_path, Manifest(kind="blend", task=toy_task, base="", member_weights=weights, temperature=2.0))
    price = MachinePrice(usd_per_hour=1.0)
    blend, alone = load_model(tmp_path, price=price), load_model(tmp_path / MEMBERS_FOLDER / "words", price=price)
    assert blend.capabilities == {Capability.CHOSEN, Capability.LABEL_PROBABILITIES, Capability.READINESS}
    text = toy_rows.examples[0].text
    mixed, single = [(await label_probability_model(m).probabilities([text]))[0] for m in (blend, alone)]  # type: ignore[union-attr]
    answer = await blend.complete(Request.ask(text))
    tempered = np.sqrt(single.probabilities)
    assert mixed.probabilities == pytest.approx(tempered / tempered.sum())
    assert (answer.text, answer.confidence) == (toy_rows.examples[0].answer, max(mixed.probabilities))
    assert answer.cost_usd > 0
    await blend.aclose()
    await alone.aclose()
