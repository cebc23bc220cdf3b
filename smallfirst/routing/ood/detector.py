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
from smallfirst.models.catalog import find
from smallfirst.models.linear.classifier import LinearScorer
from smallfirst.models.linear.sentence_encoder import Encoder
from smallfirst.models.state_features import StateProfile, States, read_states
from smallfirst.records import Record
from smallfirst.routing.ood.conformal import Fusion, Ranks
from smallfirst.routing.ood.text_features import Wording

if TYPE_CHECKING:
    from smallfirst.models.local.label_scorer import LabelScorer

KEEP = 0.97
"""Share of the task's own requests that is kept unless another is asked for."""
GREY = (0.5, 0.999)
"""Word doubts between which a second look is taken."""
FEWEST_ROWS = 20
"""Selection rows, and training rows, below which ranks would follow chance."""
SIGNATURE = "signature.json"
"""Written last, so a folder without one holds no signature."""

Reader = Callable[[Sequence[str]], States]
"""Hidden states, and logits if there are labels, of texts in order."""


class Fitted(Record):
    """What was fitted of a signature, but for its words and states."""

    limit: float = pydantic.Field(ge=0, le=1)
    """The most doubt that a request of the task may raise."""
    grey: tuple[float, float] = GREY
    """Word doubts between which a second look is taken."""
    conversations: bool = False
    """True if the task's rows have several turns; else a conversation is not the task's."""
    words: Fusion
    """From the scores of the words to a doubt."""
    states: Fusion | None = None
    """From the words' strangeness and the signals of the second look to strangeness; None: there is no second look."""
    within: Ranks | None = None
    """That strangeness of the selection rows in the grey zone."""
    encoder: str = ""
    """Frozen encoder of the second look, by name."""


class Second(NamedTuple):
    """One thing that is read in the second look."""

    read: Reader
    profile: StateProfile

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Its signals (texts, 2 or 4)."""
        return self.profile.strangeness(self.read(texts))


class First(NamedTuple):
    """What words say of some texts."""

    scores: np.ndarray
    """The wording's (texts, scores)."""
    doubt: np.ndarray
    """In [0, 1] (texts,)."""


class Look(NamedTuple):
    """What a signature makes of a text."""

    doubt: float
    """In [0, 1]."""
    second: bool
    """True if the words left it open."""


class Signature:
    """One task's own requests, as the first thing that a request meets sees them."""

    def __init__(self, fitted: Fitted, wording: Wording, seconds: dict[str, Second]) -> None:
        """`seconds` by name, `encoder` or `model`, in the order in which they were fitted."""
        self.fitted, self.wording, self.seconds = fitted, wording, seconds

    @property
    def limit(self) -> float:
        """The most doubt that a request of the task may raise."""
        return self.fitted.limit

    def first(self, texts: Sequence[str]) -> First:
        """What the words of each text say, in order."""
        scores = self.wording.scores(texts)
        return First(scores, self.fitted.words.doubt(scores))

    def second(self, texts: Sequence[str], first: First, wanted: np.ndarray | None = None) -> list[Look]:
        """Doubt of each text once those that the first look left open are looked at again; of these the `wanted`."""
        low, high = self.fitted.grey
        doubt = first.doubt.copy()
        grey = (doubt > low) & (doubt < high) & bool(self.seconds)
        if wanted is not None:
            grey &= wanted
        if grey.any() and self.fitted.states and self.fitted.within:
            chosen = [text for text, is_open in zip(texts, grey, strict=True) if is_open]
            columns = _columns(self.fitted.words, first.scores[grey], self.seconds, chosen)
            rank = self.fitted.within.doubt(self.fitted.states.strangeness(columns))
            doubt[grey] = low + (high - low) * rank
        return [Look(float(value), bool(again)) for value, again in zip(doubt, grey, strict=True)]

    def look(self, texts: Sequence[str]) -> list[Look]:
        """Both looks at each text, in order: the same whatever stands beside it, but for an encoder's rounding."""
        return self.second(texts, self.first(texts)) if texts else []

    def save(self, folder: Path) -> None:
        """Write words, states and, last, what was fitted. The encoder's and the model's own weights are not copied."""
        self.wording.save(folder)
        for name, second in self.seconds.items():
            second.profile.save(folder / f"{name}.safetensors")
        self.fitted.save(folder / SIGNATURE)

    @classmethod
    def load(cls, folder: Path, *, model: LinearScorer | LabelScorer | None = None) -> Self:
        """Read back what `save` wrote; an encoder is opened when it is first needed.

        Raises ConfigError if there is no signature, or if it was fitted with a model and none is given.
        """
        if not (folder / SIGNATURE).is_file():
            raise ConfigError(f"{folder} holds no {SIGNATURE}", hint="fit_signature(train, selection).save(folder)")
        fitted = Fitted.load(folder / SIGNATURE)
        readers: dict[str, Reader] = {"encoder": functools.partial(_embed, fitted.encoder)} if fitted.encoder else {}
        if (folder / "model.safetensors").exists():
            if model is None:
                raise ConfigError(f"{folder} was fitted with the task's own model; load it and give it as `model`")
            readers["model"] = functools.partial(read_states, model)
        profiles = {name: StateProfile.load(folder / f"{name}.safetensors") for name in readers}
        return cls(fitted, Wording.load(folder), {n: Second(readers[n], profiles[n]) for n in readers})


def fit_signature(
    train: Dataset,
    selection: Dataset,
    *,
    other: Dataset | None = None,
    encoder: tuple[str, Encoder] | None = None,
    model: LinearScorer | LabelScorer | None = None,
    keep: float = KEEP,
    grey: tuple[float, float] = GREY,
) -> Signature:
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
        readers["model"] = functools.partial(read_states, model)
    texts, gold = _texts(train), _places(train)
    wording = Wording.fit(texts)
    seconds = {name: Second(read, StateProfile.fit(read(texts), gold)) for name, read in readers.items()}
    fitted = _fit(wording, seconds, _texts(selection), _texts(other) if other else [], grey)
    several = any(sum(m.role != "system" for m in e.messages) > 1 for e in train.examples)
    told = {"limit": keep, "conversations": several, "encoder": encoder[0] if encoder else ""}
    return Signature(fitted.model_copy(update=told), wording, seconds)


def _fit(
    wording: Wording, seconds: dict[str, Second], own: list[str], foreign: list[str], grey: tuple[float, float]
) -> Fitted:
    """The fusions and ranks of the selection rows' texts."""
    scores, strange = wording.scores(own), wording.scores(foreign) if foreign else None
    words = Fusion.fit(scores, strange)
    if not seconds:
        return Fitted(limit=KEEP, grey=grey, words=words)
    columns = _columns(words, scores, seconds, own)
    states = Fusion.fit(columns, None if strange is None else _columns(words, strange, seconds, foreign))
    doubt, strangeness = words.doubt(scores), states.strangeness(columns)
    inside = (doubt > grey[0]) & (doubt < grey[1])
    within = Ranks.fit(strangeness[inside] if inside.any() else strangeness)
    return Fitted(limit=KEEP, grey=grey, words=words, states=states, within=within)


def _columns(words: Fusion, scores: np.ndarray, seconds: dict[str, Second], texts: Sequence[str]) -> np.ndarray:
    """The words' strangeness and the signals of the second look (texts, 1 + signals)."""
    return np.column_stack([words.strangeness(scores), *(second.scores(texts) for second in seconds.values())])


def _enough(train: Dataset, selection: Dataset) -> tuple[Dataset, Dataset]:
    """The rows, some training ones moved if there are too few selection rows."""
    if len(selection) >= FEWEST_ROWS:
        return train, selection
    moved, kept = train.examples[::5], tuple(e for i, e in enumerate(train.examples) if i % 5)
    if len(kept) < FEWEST_ROWS:
        raise DataError(
            f"a signature needs {FEWEST_ROWS} selection rows, or {FEWEST_ROWS * 5 // 4} training rows to take some "
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


def _states_of(encoder: Encoder, texts: Sequence[str]) -> States:
    vectors = encoder.embed(texts)
    return States(vectors, np.zeros((len(vectors), 0), dtype=np.float32))


def _embed(name: str, texts: Sequence[str]) -> States:
    return _remembered(name, tuple(texts))


@functools.lru_cache(maxsize=1)
def _remembered(name: str, texts: tuple[str, ...]) -> States:
    """States of the latest texts: several tasks with one encoder ask for the same ones, one after the other."""
    return _states_of(_opened(name), texts)


@functools.lru_cache(maxsize=1)
def _opened(name: str) -> Encoder:
    return Encoder(find(name))
