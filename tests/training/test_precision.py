"""A model learns in the precision that its own steps are faster in; a run that goes on keeps the one it began in."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from smallfirst.models.local.weights import load_causal
from smallfirst.training import precision
from smallfirst.training.precision import fastest_precision, in_precision, step_seconds


@pytest.mark.parametrize(
    ("of_fp32", "of_bf16", "words"),
    [
        (1.0, 3.0, "fp32, where bf16 takes 3.00 times as long"),
        (2.0, 1.0, "bf16, where fp32 takes 2.00 times as long"),
        (1.0, 1.0, "fp32, where fp32 takes 1.00 times as long"),
    ],
)
def test_the_faster_precision_is_taken_unless_the_run_began_in_another(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, of_fp32: float, of_bf16: float, words: str
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(precision, "_MEASURED", {})
    monkeypatch.setattr(
        precision, "step_seconds", lambda *given: (measured.append(given), {"fp32": of_fp32, "bf16": of_bf16})[1]
    )
    model, _ = load_causal(tiny_folder)
    for began_in in ("fp32", "bf16"):
        assert fastest_precision(model, torch.zeros, began_in) == (began_in, f"{began_in}, as it began")  # type: ignore[arg-type]
    assert not measured
    assert fastest_precision(model, torch.zeros) == fastest_precision(model, torch.zeros) == (words[:4], words)
    assert len(measured) == 1  # once for an architecture


def test_a_step_is_timed_in_both_on_the_last_layers_and_the_model_is_as_before(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = load_causal(tiny_folder)
    layers = model.model.layers
    layers.insert(0, copy.deepcopy(layers[1]).requires_grad_(False))  # as `frozen_layers` does
    order, before, seen = list(layers), [p.detach() for p in model.parameters()], set()
    times = itertools.accumulate(itertools.cycle([0.0, 1.0, 0.0, 3.0]))  # the clock: fp32 takes 1, bf16 3
    monkeypatch.setattr(precision.time, "process_time", lambda: next(times))

    def loss() -> torch.Tensor:
        seen.add((model.dtype, len(layers)))
        return model(input_ids=torch.tensor([[5, 6, 7]])).logits.float().sum()  # type: ignore[no-any-return]

    assert step_seconds(model, loss) == {"fp32": 1.0, "bf16": 3.0}
    assert seen == {(torch.float32, 2), (torch.bfloat16, 2)}
    assert list(layers) == order
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert parameter.data_ptr() == value.data_ptr()
    with pytest.raises(ZeroDivisionError), in_precision(model, torch.float32):
        raise ZeroDivisionError
    assert model.dtype == torch.bfloat16
