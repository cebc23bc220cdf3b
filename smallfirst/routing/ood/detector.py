"""A task's own signature: how much a text looks like what the task is asked, as a doubt in [0, 1].

Fitted on the task's own rows alone, so that tasks come and go without touching each other; examples of foreign requests
make it better but are not needed. A first look reads words and decides the clear cases. Only in a grey zone of doubt is
a second one taken, at hidden states of a frozen encoder or of the task's own small model; it orders the texts within
the zone anew, so the limit keeps the same share of the task's own requests with it and without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pydantic

from smallfirst.data.dataset import Dataset
from smallfirst.errors import ConfigError, DataError
from smallfirst.models.catalog import find_weights
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.linear.sentence_encoder import SentenceEncoder
from smallfirst.models.state_features import HiddenStateProfile, HiddenStates, compute_states
from smallfirst.records import Record
from smallfirst.routing.ood.conformal import ConformalScorer, ScoreFusion
from smallfirst.routing.ood.text_features import TextFeatures

if TYPE_CHECKING:
    from smallfirst.models.local.label_scorer import LabelScorer

KEEP_SHARE = 0.97
"""Share of the task's own requests that is kept unless another is asked for."""
GREY_ZONE = (0.5, 0.999)
"""Word doubts between which a second look is taken."""
MIN_ROWS = 20
"""Selection rows, and training rows, below which ranks would follow chance."""
PROFILE_FILE = "signature.json"
"""Written last, so a folder without one holds no signature."""

Reader = Callable[[Sequence[str]], HiddenStates]
"""Hidden states, and logits if there are labels, of texts in order."""


class ProfileParameters(Record):
    """What was fitted of a signature, but for its words and states."""

    limit: float = pydantic.Field(ge=0, le=1)
    """The most doubt that a request of the task may raise."""
    grey: tuple[float, float] = GREY_ZONE
    """Word doubts between which a second look is taken."""
    conversations: bool = False
    """True if the task's rows have several turns; else a conversation is not the task's."""
    words: ScoreFusion
    """From the scores of the words to a doubt."""
    states: ScoreFusion | None = None
    """From the words' strangeness and the signals of the second look to strangeness; None: there is no second look."""
    within: ConformalScorer | None = None
    """That strangeness of the selection rows in the grey zone."""
    encoder: str = ""
    """Frozen encoder of the second look, by name."""


class StateScorer(NamedTuple):
    """One thing that is read in the second look."""

    read: Reader
    profile: HiddenStateProfile

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Its signals (texts, 2 or 4)."""
        return self.profile.nonconformity(self.read(texts))


class TextScores(NamedTuple):
    """What words say of some texts."""

    scores: np.ndarray
    """The wording's (texts, scores)."""
    doubt: np.ndarray
    """In [0, 1] (texts,)."""


class ProfileScore(NamedTuple):
    """What a signature makes of a text."""

    doubt: float
    """In [0, 1]."""
    second: bool
    """True if the words left it open."""


class TaskProfile:
    """One task's own requests, as the first thing that a request meets sees them."""

    def __init__(self, fitted: ProfileParameters, wording: TextFeatures, seconds: dict[str, StateScorer]) -> None:
        """`seconds` by name, `encoder` or `model`, in the order in which they were fitted."""
        self.fitted, self.wording, self.seconds = fitted, wording, seconds

    @property
    def limit(self) -> float:
        """The most doubt that a request of the task may raise."""
        return self.fitted.limit

    def first(self, texts: Sequence[str]) -> TextScores:
        """What the words of each text say, in order."""
        scores = self.wording.scores(texts)
        return TextScores(scores, self.fitted.words.doubt(scores))

    def second(self, texts: Sequence[str], first: TextScores, wanted: np.ndarray | None = None) -> list[ProfileScore]:
        """Doubt of each text once those that the first look left open are looked at again; of these the `wanted`."""
        low, high = self.fitted.grey
        doubt = first.doubt.copy()
        grey = (doubt > low) & (doubt < high) & bool(self.seconds)
        if wanted is not None:
            grey &= wanted
        if grey.any() and self.fitted.states and self.fitted.within:
            chosen = [text for text, is_open in zip(texts, grey, strict=True) if is_open]
            columns = _columns(self.fitted.words, first.scores[grey], self.seconds, chosen)
            rank = self.fitted.within.doubt(self.fitted.states.nonconformity(columns))
            doubt[grey] = low + (high - low) * rank
        return [ProfileScore(float(value), bool(again)) for value, again in zip(doubt, grey, strict=True)]

    def look(self, texts: Sequence[str]) -> list[ProfileScore]:
        """Both looks at each text, in order: the same whatever stands beside it, but for an encoder's rounding."""
        return self.second(texts, self.first(texts)) if texts else []

    def save(self, folder: Path) -> None:
        """Write words, states and, last, what was fitted. The encoder's and the model's own weights are not copied."""
        self.wording.save(folder)
        for name, second in self.seconds.items():
            second.profile.save(folder / f"{name}.safetensors")
        self.fitted.save(folder / PROFILE_FILE)

    @classmethod
    def load(cls, folder: Path, *, model: LinearClassifier | LabelScorer | None = None) -> Self:
        """Read back what `save` wrote; an encoder is opened when it is first needed.

        Raises ConfigError if there is no signature, or if it was fitted with a model and none is given.
        """
        if not (folder / PROFILE_FILE).is_file():
            raise ConfigError(f"{folder} holds no {PROFILE_FILE}", hint="fit_signature(train, selection).save(folder)")
        fitted = ProfileParameters.load(folder / PROFILE_FILE)
        readers: dict[str, Reader] = {"encoder": functools.partial(_embed, fitted.encoder)} if fitted.encoder else {}
        if (folder / "model.safetensors").exists():
            if model is None:
                raise ConfigError(f"{folder} was fitted with the task's own model; load it and give it as `model`")
            readers["model"] = functools.partial(compute_states, model)
        profiles = {name: HiddenStateProfile.load(folder / f"{name}.safetensors") for name in readers}
        return cls(fitted, TextFeatures.load(folder), {n: StateScorer(readers[n], profiles[n]) for n in readers})


def fit_task_profile(
    train: Dataset,
    selection: Dataset,
    *,
    other: Dataset | None = None,
    encoder: tuple[str, SentenceEncoder] | None = None,
    model: LinearClassifier | LabelScorer | None = None,
    keep: float = KEEP_SHARE,
    grey: tuple[float, float] = GREY_ZONE,
) -> TaskProfile:
    """The signature of the task with these rows; its limit keeps a share `keep` of the selection rows.

    `other` are foreign requests that are known. The second look reads the `encoder` (its name, and the encoder), the
    task's own `model`, or both. With fewer than FEWEST_ROWS selection rows a fifth of the training rows joins them.
    Raises DataError if there are too few rows for that, ConfigError for a share or a zone outside [0, 1].
    """
    if not 0 < keep <= 1 or not 0 <= grey[0] < grey[1] <= 1:
        raise ConfigError(f"keep must lie in (0, 1] and grey be two rising doubts in [0, 1] (got {keep} and {grey})")
    train, selection = _enough(train, selection)
    readers: dict[str, Reader] = {}
    if encoder is not None:
        readers["encoder"] = functools.partial(_states_of, encoder[1])
    if model is not None:
        readers["model"] = functools.partial(compute_states, model)
    texts, gold = _texts(train), _places(train)
    wording = TextFeatures.fit(texts)
    seconds = {name: StateScorer(read, HiddenStateProfile.fit(read(texts), gold)) for name, read in readers.items()}
    fitted = _fit(wording, seconds, _texts(selection), _texts(other) if other else [], grey)
    several = any(sum(m.role != "system" for m in e.messages) > 1 for e in train.examples)
    told = {"limit": keep, "conversations": several, "encoder": encoder[0] if encoder else ""}
    return TaskProfile(fitted.model_copy(update=told), wording, seconds)


def _fit(
    wording: TextFeatures,
    seconds: dict[str, StateScorer],
    own: list[str],
    foreign: list[str],
    grey: tuple[float, float],
) -> ProfileParameters:
    """The fusions and ranks of the selection rows' texts."""
    scores, strange = wording.scores(own), wording.scores(foreign) if foreign else None
    words = ScoreFusion.fit(scores, strange)
    if not seconds:
        return ProfileParameters(limit=KEEP_SHARE, grey=grey, words=words)
    columns = _columns(words, scores, seconds, own)
    states = ScoreFusion.fit(columns, None if strange is None else _columns(words, strange, seconds, foreign))
    doubt, strangeness = words.doubt(scores), states.nonconformity(columns)
    inside = (doubt > grey[0]) & (doubt < grey[1])
    within = ConformalScorer.fit(strangeness[inside] if inside.any() else strangeness)
    return ProfileParameters(limit=KEEP_SHARE, grey=grey, words=words, states=states, within=within)


def _columns(
    words: ScoreFusion, scores: np.ndarray, seconds: dict[str, StateScorer], texts: Sequence[str]
) -> np.ndarray:
    """The words' strangeness and the signals of the second look (texts, 1 + signals)."""
    return np.column_stack([words.nonconformity(scores), *(second.scores(texts) for second in seconds.values())])


def _enough(train: Dataset, selection: Dataset) -> tuple[Dataset, Dataset]:
    """The rows, some training ones moved if there are too few selection rows."""
    if len(selection) >= MIN_ROWS:
        return train, selection
    moved, kept = train.examples[::5], tuple(e for i, e in enumerate(train.examples) if i % 5)
    if len(kept) < MIN_ROWS:
        raise DataError(
            f"a signature needs {MIN_ROWS} selection rows, or {MIN_ROWS * 5 // 4} training rows to take some "
            f"from (got {len(selection)} and {len(train)})"
        )
    return train.subset(train.name, kept), selection.subset(selection.name, (*selection.examples, *moved))


def _texts(data: Dataset) -> list[str]:
    return [example.text for example in data.examples]


def _places(train: Dataset) -> np.ndarray:
    """Number of each row's label; 0 for all where answers are no labels."""
    if not all(example.shape == "label" for example in train.examples):
        return np.zeros(len(train), dtype=int)
    index = {label: i for i, label in enumerate(train.labels())}
    return np.array([index[example.answer] for example in train.examples])


def _states_of(encoder: SentenceEncoder, texts: Sequence[str]) -> HiddenStates:
    vectors = encoder.embed(texts)
    return HiddenStates(vectors, np.zeros((len(vectors), 0), dtype=np.float32))


def _embed(name: str, texts: Sequence[str]) -> HiddenStates:
    return _remembered(name, tuple(texts))


@functools.lru_cache(maxsize=1)
def _remembered(name: str, texts: tuple[str, ...]) -> HiddenStates:
    """States of the latest texts: several tasks with one encoder ask for the same ones, one after the other."""
    return _states_of(_opened(name), texts)


@functools.lru_cache(maxsize=1)
def _opened(name: str) -> SentenceEncoder:
    return SentenceEncoder(find_weights(name))
