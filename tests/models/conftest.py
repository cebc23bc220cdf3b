"""What several tests of models share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def lively(tiny_fp32: tuple[Any, Any]) -> tuple[Any, Any]:
    """The tiny model with larger weights, so that it does not say one token for ever."""
    import torch

    model, tokenizer = tiny_fp32
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.4)
    return model, tokenizer
