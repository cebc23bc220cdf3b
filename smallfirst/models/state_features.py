"""What a small model shows of a text beside its answer: hidden state and label logits, from the pass that answers it.

A classifier names a label for anything. Whether the text is like those it learnt from shows in four numbers: the energy
of its logits (Liu et al. 2020), the largest label probability (Hendrycks and Gimpel 2017), the Mahalanobis distance of
its hidden state to the nearest label (Lee et al. 2018; Podolskiy et al. 2021), and how near its nearest training texts
are (Sun et al. 2022). They cost some matrix products beside the pass; the fitting costs one pass over the training
texts, whose states are kept: 4 bytes times rows times width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from smallfirst.files import write_atomically
from smallfirst.models.linear.classifier import LinearClassifier, TfidfFeatures

if TYPE_CHECKING:
    from smallfirst.models.local.label_scorer import LabelScorer

STATE_FEATURES = ("energy", "probability", "mahalanobis", "neighbour")
"""Columns of what a StateProfile gives; each is larger the stranger a text is."""
N_NEIGHBOURS = 5
"""Training texts over which the neighbour signal averages."""
BATCH_ROWS = 512
"""Texts compared with all training texts at a time."""


class HiddenStates(NamedTuple):
    """What a model made of some texts."""

    hidden: np.ndarray
    """Last hidden state (texts, width), float32; the logits again where a model has none."""
    logits: np.ndarray
    """Of the labels, not normalised (texts, labels), float32; no columns for a model without labels."""


class HiddenStateProfile:
    """Where a task's own training texts lie among the hidden states of its model."""

    def __init__(self, means: np.ndarray, whitening: np.ndarray, rows: np.ndarray) -> None:
        """`means` (labels, width) are already multiplied by `whitening` (width, width); `rows` are unit vectors."""
        self.means, self.whitening, self.rows = means, whitening, rows

    @classmethod
    def fit(cls, states: HiddenStates, gold: Sequence[int] | np.ndarray) -> HiddenStateProfile:
        """From the training texts and the place of each one's label.

        One covariance is shared by all labels and shrunk as Ledoit and Wolf (2004) do, so it can be inverted even where
        there are fewer texts than dimensions.
        """
        from sklearn.covariance import LedoitWolf

        hidden, label = states.hidden.astype(np.float64), np.asarray(gold)
        seen, place = np.unique(label, return_inverse=True)
        means = np.stack([hidden[label == one].mean(axis=0) for one in seen])
        fitted = LedoitWolf(assume_centered=True).fit(hidden - means[place])
        whitening = np.linalg.cholesky(fitted.precision_)  # |x @ whitening|² is x's squared Mahalanobis length
        arrays = (means @ whitening, whitening, _unit(hidden))
        return cls(*(array.astype(np.float32) for array in arrays))

    def nonconformity(self, states: HiddenStates) -> np.ndarray:
        """The SIGNALS (texts, 4), float64; of states without logits the last two alone."""
        of_logits = logit_features(states.logits) if states.logits.shape[1] else ()
        return np.column_stack([*of_logits, self._mahalanobis(states), self._neighbour(states)])

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        from safetensors.numpy import save

        write_atomically(path, save({"means": self.means, "whitening": self.whitening, "rows": self.rows}))

    @classmethod
    def load(cls, path: Path) -> HiddenStateProfile:
        """Read back what `save` wrote."""
        from safetensors.numpy import load_file

        return cls(**load_file(path))

    def _mahalanobis(self, states: HiddenStates) -> np.ndarray:
        """Distance to the nearest label's mean."""
        white = states.hidden @ self.whitening
        squares = (white**2).sum(axis=1, keepdims=True) - 2 * white @ self.means.T + (self.means**2).sum(axis=1)
        distance: np.ndarray = np.sqrt(np.maximum(squares.min(axis=1), 0))
        return distance

    def _neighbour(self, states: HiddenStates) -> np.ndarray:
        """1 less the mean cosine to the NEAREST training texts."""
        unit, k = _unit(states.hidden), min(N_NEIGHBOURS, len(self.rows))
        strange = np.zeros(len(unit))
        for start in range(0, len(unit), BATCH_ROWS):
            cosines = unit[start : start + BATCH_ROWS] @ self.rows.T
            strange[start : start + BATCH_ROWS] = 1 - np.partition(cosines, -k, axis=1)[:, -k:].mean(axis=1)
        return strange


def logit_features(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy and minus the largest log-probability of each text: larger is stranger."""
    from scipy.special import logsumexp

    whole = logsumexp(logits.astype(np.float64), axis=1)
    return -whole, whole - logits.max(axis=1)


def compute_states(scorer: LinearClassifier | LabelScorer, texts: Sequence[str]) -> HiddenStates:
    """Hidden states and logits of texts, in order, from one pass of the model over each."""
    if not isinstance(scorer, LinearClassifier):
        return _causal_states(scorer, texts)
    features = scorer.features(list(texts))
    logits = np.asarray(features @ scorer.weights.T) + scorer.bias
    return HiddenStates(logits if isinstance(scorer.features, TfidfFeatures) else features, logits)


def _causal_states(scorer: LabelScorer, texts: Sequence[str]) -> HiddenStates:
    from smallfirst.models.local.tokenizer import encode_prompt

    task, most = scorer.manifest.task, scorer.manifest.max_tokens
    encoded = [encode_prompt(scorer.tokenizer, task.prompt(text), most) for text in texts]
    hidden = np.zeros((len(encoded), scorer.model.config.hidden_size), dtype=np.float32)
    logits = np.zeros((len(encoded), len(scorer.manifest.codes)), dtype=np.float32)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), scorer.batch_rows):
        chosen = order[start : start + scorer.batch_rows]
        hidden[chosen], logits[chosen] = _pass(scorer, [encoded[i] for i in chosen])
    return HiddenStates(hidden, logits)


def _pass(scorer: LabelScorer, batch: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """State at the last token (texts, width) and its product with the codes' rows of the output matrix."""
    import torch

    device, lengths = scorer.model.device, torch.tensor([len(ids) for ids in batch])
    ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
    for at, row in enumerate(batch):
        ids[at, : len(row)] = torch.tensor(row)
    with torch.inference_mode():
        states = scorer.model.model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        last = states[torch.arange(len(batch)), lengths - 1].float()
        head = scorer.model.get_output_embeddings().weight[scorer.codes.to(device)].float()
        return last.cpu().numpy(), (last @ head.T).cpu().numpy()


def _unit(vectors: np.ndarray) -> np.ndarray:
    """The rows scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(length > 0, length, 1)
    return unit
