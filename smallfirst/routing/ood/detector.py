"""The profile of a task: how unlike the task's own requests a text is, as a score in [0, 1].

Words decide the clear cases. In a grey zone the vectors of a frozen sentence encoder reorder the texts, so the
threshold keeps the same share of the task's own requests with and without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pydantic

from smallfirst.data.dataset import Dataset
from smallfirst.errors import ConfigError, DataError
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder, open_encoder
from smallfirst.models.state_features import HiddenStateProfile, HiddenStates
from smallfirst.records import Record
from smallfirst.routing.ood.conformal import ConformalScorer, ScoreFusion
from smallfirst.routing.ood.text_features import TextFeatures

KEEP_SHARE = 0.97
"""Share of the task's own requests that is kept."""
GREY_ZONE = (0.5, 0.999)
"""Word scores between which hidden states are read."""
MIN_ROWS = 20
"""Selection rows, and training rows, below which ranks would follow chance."""
MAX_NATS = 10.0
"""Features above that count as that: so unlike is one of 22,000 own requests, and the tail is a guess."""
PROFILE_FILE, STATES_FILE = "signature.json", "encoder.safetensors"
"""The first is written last, so a folder without one holds no profile."""

Reader = Callable[[Sequence[str]], HiddenStates]
"""Return the hidden states of texts, in order."""


class ProfileParameters(Record):
    """Everything fitted of a profile except its words and states."""

    limit: float = pydantic.Field(ge=0, le=1)
    """Largest score of a request that belongs to the task."""
    grey: tuple[float, float] = GREY_ZONE
    """Word scores between which hidden states are read."""
    conversations: bool = False
    """True if the task's rows have several turns; else a conversation does not belong to the task."""
    words: ScoreFusion
    """From the text features to a score."""
    states: ScoreFusion | None = None
    """From the words' nonconformity and the state features to one nonconformity; None if states are not read."""
    within: ConformalScorer | None = None
    """Of that nonconformity, on the selection rows in the grey zone."""
    encoder: str = ""
    """Name of the frozen encoder whose states are read."""
    encoder_int8: bool = False
    """True if it reads in int8, where the processor supports it."""


class StateScorer(NamedTuple):
    """Hidden states of one model, and their profile."""

    read: Reader
    profile: HiddenStateProfile

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        return self.profile.nonconformity(self.read(texts))


class TextScores(NamedTuple):
    """What the words of some texts give."""

    features: np.ndarray
    """Text features (texts, features)."""
    ood_score: np.ndarray
    """In [0, 1] (texts,)."""


class ProfileScore(NamedTuple):
    """How unlike the task's own requests one text is."""

    value: float
    """In [0, 1]."""
    by_states: bool


class MeasuredText(NamedTuple):
    """A text compared with the task's own requests."""

    ood_score: float
    """In [0, 1]."""
    features: tuple[float, ...]
    """By the words and each feature of the hidden states, -log of the share of own requests that are as unlike, in
    nats, at most MAX_NATS."""


class TaskProfile:
    """The requests of one task, to compare others with."""

    def __init__(self, parameters: ProfileParameters, text_features: TextFeatures, encoder: StateScorer | None) -> None:
        self.parameters, self.text_features, self.encoder = parameters, text_features, encoder

    @property
    def threshold(self) -> float:
        return self.parameters.limit

    def score_words(self, texts: Sequence[str]) -> TextScores:
        features = self.text_features.scores(texts)
        return TextScores(features, self.parameters.words.ood_score(features))

    def refine(self, texts: Sequence[str], words: TextScores, *, read: bool = True) -> list[ProfileScore]:
        low, high = self.parameters.grey
        scores = words.ood_score.copy()
        grey = (scores > low) & (scores < high) & (read and self.encoder is not None)
        if grey.any() and self.parameters.states:
            chosen = [text for text, is_grey in zip(texts, grey, strict=True) if is_grey]
            columns = _columns(self.parameters.words, words.features[grey], self.encoder, chosen)
            scores[grey] = self._rank_by_states(columns)
        return [ProfileScore(float(value), bool(again)) for value, again in zip(scores, grey, strict=True)]

    def score(self, texts: Sequence[str]) -> list[ProfileScore]:
        """Score each text, in order; independent of the other texts but for an encoder's rounding."""
        return self.refine(texts, self.score_words(texts)) if texts else []

    def measure(self, texts: Sequence[str]) -> list[MeasuredText]:
        """Return score and features of each text, in order; the hidden states of all are read, once."""
        words, (low, high) = self.score_words(texts), self.parameters.grey
        columns = _columns(self.parameters.words, words.features, self.encoder, texts)
        scores = words.ood_score.copy()
        if self.parameters.states is None:
            features = self.parameters.words.fused.neg_log_p_values(columns[:, 0])[:, None]
        else:
            features = self.parameters.states.neg_log_p_values(columns)
            grey = (scores > low) & (scores < high)
            scores[grey] = self._rank_by_states(columns[grey])
        features = np.minimum(features, MAX_NATS)
        return [MeasuredText(float(s), tuple(f)) for s, f in zip(scores, features.tolist(), strict=True)]

    def _rank_by_states(self, columns: np.ndarray) -> np.ndarray:
        assert self.parameters.states is not None
        assert self.parameters.within is not None
        low, high = self.parameters.grey
        found: np.ndarray = self.parameters.within.ood_score(self.parameters.states.nonconformity(columns))
        return low + (high - low) * found

    def save(self, folder: Path) -> None:
        self.text_features.save(folder)
        if self.encoder is not None:
            self.encoder.profile.save(folder / STATES_FILE)
        self.parameters.save(folder / PROFILE_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a profile and the encoder that it reads, so that no request waits or pays for that.

        Raise ConfigError without a profile, WeightsNotFound.
        """
        if not (folder / PROFILE_FILE).is_file():
            raise ConfigError(
                f"{folder} holds no {PROFILE_FILE}", hint="fit_task_profile(train, selection).save(folder)"
            )
        parameters, encoder = ProfileParameters.load(folder / PROFILE_FILE), None
        if parameters.encoder:
            opened = open_encoder(find_weights(parameters.encoder), int8=parameters.encoder_int8)
            encoder = StateScorer(functools.partial(_embed, opened), HiddenStateProfile.load(folder / STATES_FILE))
        return cls(parameters, TextFeatures.load(folder), encoder)


def fit_task_profile(
    train: Dataset, selection: Dataset, *, encoder: tuple[str, SentenceEncoder] | None = None
) -> TaskProfile:
    """Fit the profile of the task with these rows; its threshold keeps KEEP_SHARE of the selection rows.

    Vectors come from `encoder`, given with its name. With fewer than MIN_ROWS selection rows a fifth of the training
    rows joins them. Raise DataError if there are too few rows for that.
    """
    train, selection = _with_enough_selection(train, selection)
    texts, own = _texts(train), _texts(selection)
    text_features, scorer = TextFeatures.fit(texts), None
    if encoder is not None:
        read = functools.partial(_embed, encoder[1])
        scorer = StateScorer(read, HiddenStateProfile.fit(read(texts), _label_numbers(train)))
    several = any(sum(m.role != "system" for m in e.messages) > 1 for e in train.examples)
    of_own = text_features.scores(own)
    words = ScoreFusion.fit(of_own)
    parameters = ProfileParameters(limit=KEEP_SHARE, grey=GREY_ZONE, conversations=several, words=words)
    if encoder is not None:
        columns = _columns(words, of_own, scorer, own)
        states, scores = ScoreFusion.fit(columns), words.ood_score(of_own)
        nonconformity = states.nonconformity(columns)
        inside = (scores > GREY_ZONE[0]) & (scores < GREY_ZONE[1])
        within = ConformalScorer.fit(nonconformity[inside] if inside.any() else nonconformity)
        known = {"states": states, "within": within, "encoder": encoder[0], "encoder_int8": encoder[1].int8}
        parameters = parameters.model_copy(update=known)
    return TaskProfile(parameters, text_features, scorer)


def _columns(words: ScoreFusion, features: np.ndarray, encoder: StateScorer | None, texts: Sequence[str]) -> np.ndarray:
    return np.column_stack([words.nonconformity(features), *([encoder.scores(texts)] if encoder else [])])


def _with_enough_selection(train: Dataset, selection: Dataset) -> tuple[Dataset, Dataset]:
    if len(selection) >= MIN_ROWS:
        return train, selection
    moved, kept = train.examples[::5], tuple(e for i, e in enumerate(train.examples) if i % 5)
    if len(kept) < MIN_ROWS:
        raise DataError(
            f"a task profile needs {MIN_ROWS} selection rows, or {MIN_ROWS * 5 // 4} training rows to take some "
            f"from (got {len(selection)} and {len(train)})"
        )
    return train.subset(train.name, kept), selection.subset(selection.name, (*selection.examples, *moved))


def _texts(data: Dataset) -> list[str]:
    return [example.text for example in data.examples]


def _label_numbers(train: Dataset) -> np.ndarray:
    if not all(example.shape == "label" for example in train.examples):
        return np.zeros(len(train), dtype=int)
    index = {label: i for i, label in enumerate(train.labels())}
    return np.array([index[example.answer] for example in train.examples])


def _embed(encoder: SentenceEncoder, texts: Sequence[str]) -> HiddenStates:
    vectors = encoder.embed(texts)
    return HiddenStates(vectors, np.zeros((len(vectors), 0), dtype=np.float32))
