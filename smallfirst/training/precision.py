"""The precision in which a model learns, bf16 or fp32: what is faster on this processor, by its own last layers.

Products alone do not tell: a step also has many smaller operations, which gain nothing by bf16; and Intel cores
multiply bf16 five times as fast as fp32 or half as fast, depending on whether a virtual machine hides their AMX.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from smallfirst.training.config import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEASURED_LAYERS, MEASURED_ROUNDS, MEASURED_TOKENS = 2, 3, 512


class ChosenPrecision(NamedTuple):
    """In what a model learns."""

    name: Precision
    words: str
    """With the reason, such as `fp32, where bf16 takes 1.90 times as long`."""


_MEASURED: dict[str, dict[Precision, float]] = {}
"""Seconds of processor time by precision, of each architecture that was measured in this process."""


def fastest_precision(
    body: Any, loss: Callable[[], torch.Tensor], began_in: Precision | None = None
) -> ChosenPrecision:
    """Return the precision in which a step of `body`, forwards to `loss` and backwards, is fastest; fp32 of equals.

    A run that goes on keeps what it `began_in`. Takes a second or two for the first model of an architecture.
    """
    if began_in is not None:
        return ChosenPrecision(began_in, f"{began_in}, as it began")
    architecture = body.config.to_json_string()
    if architecture not in _MEASURED:
        _MEASURED[architecture] = step_seconds(body, loss)
    spent = _MEASURED[architecture]
    best = min(spent, key=lambda name: spent[name])
    other = max(spent, key=lambda name: spent[name])
    return ChosenPrecision(best, f"{best}, where {other} takes {spent[other] / spent[best]:.2f} times as long")


def step_seconds(body: Any, loss: Callable[[], torch.Tensor]) -> dict[Precision, float]:
    """Return the least processor time of a step by precision, with the last layers alone: all are alike.

    Other programs change processor time little. Gradients of `body` are cleared.
    """
    layers = max((part for part in body.modules() if isinstance(part, torch.nn.ModuleList)), key=len)
    whole = list(layers)
    del layers[:-MEASURED_LAYERS]  # the lowest ones may be frozen
    spent = dict.fromkeys(DTYPES, float("inf"))
    try:
        for number in range(1 + MEASURED_ROUNDS):
            for name, dtype in DTYPES.items():
                with in_precision(body, dtype):
                    began = time.process_time()
                    loss().backward()  # type: ignore[no-untyped-call]
                    took = time.process_time() - began
                    if number:  # the first one is slower
                        spent[name] = min(spent[name], took)
                    body.zero_grad()
    finally:
        del layers[:]
        layers.extend(whole)
    return spent


@contextmanager
def in_precision(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block the parameters have this precision; afterwards they are exactly what they were."""
    exact = [parameter.detach() for parameter in model.parameters()]
    set_precision(model, dtype)
    try:
        yield
    finally:
        for parameter, value in zip(model.parameters(), exact, strict=True):
            parameter.data = value


def set_precision(model: Any, dtype: torch.dtype) -> None:
    """Convert the parameters; buffers, such as the frequencies of positions, stay in fp32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
