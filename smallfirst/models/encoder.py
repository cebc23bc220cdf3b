"""A frozen sentence encoder: a text to one unit vector, by mean pooling over its tokens.

Used by the linear rung of the ladder and to find the training rows nearest to a request. Frozen means cheap: nothing is
trained, and 22 M parameters read a short text in a few milliseconds on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smallfirst.models.local import quiet_transformers

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


class Encoder:
    """A sentence encoder on this machine."""

    max_tokens = 256
    batch_rows = 32

    def __init__(self, folder: Path) -> None:
        transformers = quiet_transformers("The sentence encoder")
        import torch

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        self.model = model.eval()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (texts, width) in float32, in order."""
        import torch

        encoded = [self.tokenizer.encode(text, truncation=True, max_length=self.max_tokens) for text in texts]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        vectors = np.zeros((len(encoded), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), self.batch_rows):
            chosen = order[start : start + self.batch_rows]
            width = max(len(encoded[i]) for i in chosen)
            ids = torch.zeros(len(chosen), width, dtype=torch.long)
            mask = torch.zeros(len(chosen), width, dtype=torch.long)
            for at, i in enumerate(chosen):
                ids[at, : len(encoded[i])] = torch.tensor(encoded[i])
                mask[at, : len(encoded[i])] = 1
            with torch.inference_mode():
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                weight = mask.unsqueeze(-1).float()  # (batch, time, 1)
                mean = (hidden * weight).sum(1) / weight.sum(1)
                vectors[chosen] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return vectors
