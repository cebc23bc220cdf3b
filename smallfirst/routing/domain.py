"""Compare a text with a task's own requests, by words, without PyTorch, or by the vectors of an encoder.

Words give four scores, each larger the less a text is like them: the share of its words and word pairs that no training
text has; its distance, by character n-grams, from the nearest training text and from the nearest three; its distance
from the nearest one by words that occur more than once. About 50 MB in memory for 10,000 short texts.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pydantic

from smallfirst.base.errors import ConfigError, DataError
from smallfirst.base.files import write_atomically
from smallfirst.base.records import Record
from smallfirst.base.stats.intervals import upper_bound
from smallfirst.data.dataset import Dataset
from smallfirst.measuring.out_of_fold import folds_of
from smallfirst.models.batching import BatchWorker
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import CachedEncoder, SentenceEncoder, open_encoder
from smallfirst.models.linear.tfidf import TfidfFeatures, piece_grams, word_grams
from smallfirst.models.pricing import Charge, MachinePrice
from smallfirst.models.protocol import Request
from smallfirst.models.state_features import HiddenStateProfile

SCORES = ("unseen", "nearest", "near", "unlike")
MAX_ROWS = 10_000
"""Training texts to compare with; of more, evenly spaced ones."""
NEAREST = 3
"""Training texts over which `near` averages."""
MAX_CHARS = 2000
"""Of a longer text, a training text too, only the first and the last half of this are compared."""
AT_ONCE = 128
"""Texts compared at a time."""


class TextFeatures:
    """Words, character n-grams and texts of a task's own requests."""

    def __init__(self, features: TfidfFeatures, rows: Mapping[str, Any], n_texts: int) -> None:
        """`rows` of `words` and of `pieces` are sparse (n-grams, texts), each text a unit vector."""
        self._features, self._rows, self.n_texts = features, dict(rows), n_texts
        self._words, self._pieces = features.words, features.pieces
        self._unseen_idf = 1 + math.log(1 + n_texts)
        # 1 for each word that two or more training texts have: one of a single text has an idf of `_unseen_idf` - ln 2.
        self._repeated = (self._words.idf < self._unseen_idf - math.log(2.5)).astype(np.float64)

    @classmethod
    def fit(cls, texts: Sequence[str]) -> TextFeatures:
        made = cls(TfidfFeatures.fit([_ends(text) for text in texts]), {}, len(texts))
        words, pieces = _counted(texts[:: max(1, -(-len(texts) // MAX_ROWS))])
        found = {
            "words": _vectors(words, made._words.column, made._repeated),  # without idf
            "pieces": _vectors(pieces, made._pieces.column, made._pieces.idf),
        }
        made._rows = {name: rows.T.tocsr() for name, rows in found.items()}
        return made

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the SCORES (texts, 4), float64."""
        words, pieces = _counted(texts)
        known = self._words.column
        unseen = [sum(gram not in known for gram in n) / len(n) if n else 1.0 for n in words]
        near = self._distances(_vectors(pieces, self._pieces.column, self._pieces.idf), "pieces", NEAREST)
        lengths = [max(1.0, math.sqrt(counts.total())) for counts in words]
        unlike = self._distances(_vectors(words, known, self._repeated, lengths), "words", 1)
        return np.column_stack([unseen, near, unlike[:, 0]])

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save

        self._features.save(folder)
        tensors = {"n_texts": np.asarray([self.n_texts], dtype=np.int64)}
        for name, rows in self._rows.items():
            tensors |= {f"{name}.{part}": getattr(rows, part) for part in ("data", "indices", "indptr")}
            tensors[f"{name}.shape"] = np.asarray(rows.shape, dtype=np.int64)
        write_atomically(folder / "rows.safetensors", save(tensors))

    @classmethod
    def load(cls, folder: Path) -> TextFeatures:
        from safetensors.numpy import load_file
        from scipy import sparse

        tensors, rows = load_file(folder / "rows.safetensors"), {}
        for name in ("words", "pieces"):
            parts = tuple(tensors[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
            rows[name] = sparse.csr_matrix(parts, shape=tuple(tensors[f"{name}.shape"].tolist()))
        return cls(TfidfFeatures.load(folder), rows, int(tensors["n_texts"][0]))

    def _distances(self, vectors: Any, of: str, nearest: int) -> np.ndarray:
        """Return 1 - the largest cosine to a training text, and 1 - the mean of the `nearest` largest (texts, 2)."""
        rows = self._rows[of]
        distances, k = np.zeros((vectors.shape[0], 2)), min(nearest, rows.shape[1])
        for start in range(0, len(distances), AT_ONCE):
            cosines = (vectors[start : start + AT_ONCE] @ rows).toarray()  # (texts, rows)
            best = np.partition(cosines, -k, axis=1)[:, -k:]
            distances[start : start + AT_ONCE] = 1 - np.column_stack([best.max(axis=1), best.mean(axis=1)])
        return distances


def _counted(texts: Sequence[str]) -> tuple[list[Counter[str]], list[Counter[str]]]:
    """Return the words and word pairs, and the pieces of words, of each text."""
    cut = [_ends(text) for text in texts]
    return [Counter(word_grams(text)) for text in cut], [Counter(piece_grams(text)) for text in cut]


def _vectors(
    texts: Sequence[Counter[str]],
    columns: Mapping[str, int],
    weights: np.ndarray,
    lengths: Sequence[float] | None = None,
) -> Any:
    """Return sparse (texts, n-grams): (1 + ln count) * weight, divided by `lengths` or by the norm."""
    from scipy import sparse

    data, indices, ends = [], [], [0]
    for row, counts in enumerate(texts):
        known = {columns[gram]: n for gram, n in counts.items() if gram in columns}
        at = np.fromiter(known, dtype=np.int64, count=len(known))
        value = (1 + np.log(np.fromiter(known.values(), dtype=np.float64, count=len(known)))) * weights[at]
        data.append(value / (lengths[row] if lengths else max(float(np.linalg.norm(value)), 1e-12)))
        indices.append(at)
        ends.append(ends[-1] + len(at))
    parts = (np.concatenate(data).astype(np.float32), np.concatenate(indices), np.asarray(ends))
    found = sparse.csr_matrix(parts, shape=(len(texts), len(weights)))
    found.eliminate_zeros()
    return found


def _ends(text: str) -> str:
    half = MAX_CHARS // 2
    return text if len(text) <= MAX_CHARS else f"{text[:half]} {text[-half:]}"


KNOTS = 1000
"""Selection rows whose scores are stored; of more, evenly spaced ones."""
MIN_ROWS = 20
"""Selection rows, and training rows, below which ranks would follow chance."""
RANK_PARTS = 5
"""Parts of the own rows, each of which is ranked among the others to find the limit."""
MAX_NATS = 10.0
"""Features above that count as that: so unlike is one of 22,000 own requests, and the tail is a guess."""
MAX_BATCH = 64
"""Texts that a gate measures at a time."""
OWN = "own"
"""In the place of an encoder's name: that of the model that answers, whose pass serves both."""
PROFILE_FILE, STATES_FILE = "signature.json", "encoder.safetensors"
"""The first is written last, so a folder without one holds no profile."""


class DomainSettings(Record):
    """Whether foreign requests are told apart, and what that may cost the task's own ones."""

    mode: Literal["scored", "off"] = "scored"
    """`scored` makes how unlike the task's own rows a request is part of the confidence, with `data.open_ended` or
    bundled requests as the foreign ones. Without a large model it is `off`, unless the file has this group, says what
    is foreign or what such requests get: nobody else could answer them."""
    refuse_own_at_most: float = pydantic.Field(default=0.02, gt=0, lt=1)
    """Most of the task's own requests, as a share, that may be taken for foreign. It is held with 95 % confidence, by
    rows that the profile has not seen."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _mode_alone(cls, values: Any) -> Any:
        """Read `domain: off`, which is false in YAML, as the mode."""
        return {"mode": values or "off"} if isinstance(values, str | bool) else values


class ConformalScorer(Record):
    """Scores of the task's own selection rows, to rank others among. Larger scores are less ordinary.

    Its score is 1 minus a conformal p-value (Vovk et al. 2005). The selection rows must not be used for any other
    guarantee.
    """

    own: tuple[float, ...] = pydantic.Field(min_length=1)
    """In ascending order."""

    @classmethod
    def fit(cls, scores: np.ndarray) -> ConformalScorer:
        ascending = np.sort(np.asarray(scores, dtype=np.float64))
        if len(ascending) > KNOTS:  # the largest stays, and each knot stands for as many rows
            ascending = ascending[np.ceil(np.arange(1, KNOTS + 1) * len(ascending) / KNOTS).astype(int) - 1]
        return cls(own=tuple(ascending.tolist()))

    def neg_log_p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return each score's -log p-value in nats; beyond the own scores p falls exponentially."""
        own, scale = self._curve
        asked = np.asarray(scores, dtype=np.float64)
        at_least = len(own) - np.searchsorted(own, asked, side="left")
        beyond = np.maximum(asked - own[-1], 0) / scale
        nats: np.ndarray = np.log(len(own) + 1) - np.log(at_least + 1) + beyond
        return nats

    @cached_property
    def _curve(self) -> tuple[np.ndarray, float]:
        """The own scores, and the mean excess of the largest tenth of them, in which p falls beyond them."""
        own = np.asarray(self.own)
        upper = own[int(0.9 * (len(own) - 1)) :]
        return own, max(float((upper - upper[0]).mean()), 1e-9 * max(1.0, abs(float(own[-1]))))

    def ood_score(self, scores: np.ndarray) -> np.ndarray:
        """Return 1 - p for each score; at most a share 1 - x of the task's own rows gets more than x."""
        found: np.ndarray = -np.expm1(-self.neg_log_p_values(scores))
        return found


class ScoreFusion(Record):
    """Combine several scores of a text into one, as Fisher (1925) combines p-values."""

    ranks: tuple[ConformalScorer, ...]
    fused: ConformalScorer
    """Of the sum of their -log p-values."""

    @classmethod
    def fit(cls, own: np.ndarray) -> ScoreFusion:
        """Fit on the scores (rows, scores) of selection rows."""
        ranks = tuple(ConformalScorer.fit(column) for column in own.T)
        return cls(ranks=ranks, fused=ConformalScorer.fit(_ranked_among_others(own).sum(axis=1)))

    def neg_log_p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return each score's -log p-value in nats (rows, scores)."""
        return _neg_log_p_values(self.ranks, scores)


def _ranked_among_others(own: np.ndarray) -> np.ndarray:
    """Return each own row's -log p-values (rows, scores) among other rows, as those of a new text would be."""
    part, found = np.arange(len(own)) % RANK_PARTS, np.zeros(own.shape)
    for one in range(RANK_PARTS):
        ranks = [ConformalScorer.fit(column) for column in own[part != one].T]
        found[part == one] = _neg_log_p_values(ranks, own[part == one])
    return found


def _neg_log_p_values(ranks: Sequence[ConformalScorer], scores: np.ndarray) -> np.ndarray:
    columns = [one.neg_log_p_values(column) for one, column in zip(ranks, scores.T, strict=True)]
    found: np.ndarray = np.minimum(np.column_stack(columns), MAX_NATS)
    return found


class ProfileParameters(Record):
    """Everything fitted of a profile except its words and states."""

    limit: float = pydantic.Field(ge=0, le=1)
    """Largest score of a request that belongs to the task."""
    n_own: int = 0
    """Own rows, unseen by the profile that measured them, by which the limit was found."""
    n_beyond: int = 0
    """Rows among them beyond the limit."""
    conversations: bool = False
    """True if the task's rows have several turns; else a conversation does not belong to the task."""
    fusion: ScoreFusion
    """Of what is compared: the text features, or those of an encoder's states."""
    encoder: str = ""
    """Name of the encoder whose states are compared, or OWN; empty where words are."""
    encoder_int8: bool = False
    """True if it reads in int8, where the processor supports it."""


class StateScorer(NamedTuple):
    """A sentence encoder, and the profile of its vectors of a task's texts."""

    encoder: SentenceEncoder
    profile: HiddenStateProfile

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        return self.profile.nonconformity(self.encoder.embed(texts))

    def save(self, folder: Path) -> None:
        self.profile.save(folder / STATES_FILE)


class MeasuredText(NamedTuple):
    """A text compared with the task's own requests."""

    ood_score: float
    """In [0, 1]."""
    features: tuple[float, ...]
    """By words, or by each feature of an encoder's states, -log of the share of own requests that are as unlike, in
    nats, at most MAX_NATS."""


class TaskProfile:
    """The requests of one task, to compare others with."""

    def __init__(self, parameters: ProfileParameters, scorer: TextFeatures | StateScorer) -> None:
        self.parameters, self._scorer = parameters, scorer
        self.unseen: dict[str, MeasuredText] = {}
        """By key, the rows that its limit is of, as a profile without them measures them; not saved."""

    @property
    def threshold(self) -> float:
        return self.parameters.limit

    def measure(self, texts: Sequence[str]) -> list[MeasuredText]:
        """Return score and features of each text, in order, independent of the other texts but for rounding."""
        fusion, words = self.parameters.fusion, not self.parameters.encoder
        return _judge(fusion, fusion.neg_log_p_values(self._scorer.scores(texts)), words=words) if texts else []

    def measure_rows(self, rows: Dataset) -> list[MeasuredText]:
        """Return score and features of each row, as of a text that it was not fitted on."""
        others = [e.text for e in rows.examples if e.key not in self.unseen]
        measured = iter(self.measure(others) if others else ())
        return [self.unseen.get(e.key) or next(measured) for e in rows.examples]

    def save(self, folder: Path) -> None:
        self._scorer.save(folder)
        self.parameters.save(folder / PROFILE_FILE)

    @classmethod
    def load(cls, folder: Path, own: SentenceEncoder | None = None) -> Self:
        """Load a profile and the encoder that it reads, so that no request waits or pays for that.

        `own` is that of the model that answers. Raise ConfigError without a profile, or without `own` where it is read,
        WeightsNotFound.
        """
        if not has_profile(folder):
            raise ConfigError(
                f"{folder} holds no {PROFILE_FILE}", hint="fit_task_profile(train, selection).save(folder)"
            )
        parameters = ProfileParameters.load(folder / PROFILE_FILE)
        if not parameters.encoder:
            return cls(parameters, TextFeatures.load(folder))
        if parameters.encoder != OWN:
            own = open_encoder(find_weights(parameters.encoder), int8=parameters.encoder_int8)
        if own is None:
            raise ConfigError(
                f"{folder} compares the states of a model that is not loaded", hint="smallfirst calibrate task.yaml"
            )
        return cls(parameters, StateScorer(own, HiddenStateProfile.load(folder / STATES_FILE)))


def has_profile(folder: Path) -> bool:
    """Return True if the folder holds a profile."""
    return (folder / PROFILE_FILE).is_file()


class OodScore(NamedTuple):
    """How unlike the task's own requests a request is, and what it took to find out."""

    value: float
    """In [0, 1]; higher is less like them."""
    charge: Charge
    latency_ms: float
    features: tuple[float, ...] = ()
    """What `Stage.acceptance` reads beside the confidence, each larger the less the request is like the task's."""


class OodGate:
    """Compare requests with a task's own ones in front of its Router; those that wait at the same time together."""

    def __init__(self, profile: TaskProfile, *, price: MachinePrice | None = None) -> None:
        self.profile, self._price = profile, price or MachinePrice()
        self._worker: BatchWorker[str, tuple[MeasuredText, float]] = BatchWorker(
            self._measure, name="domain", max_batch_size=MAX_BATCH
        )

    @property
    def threshold(self) -> float:
        return self.profile.threshold

    async def score(self, request: Request) -> OodScore:
        began = time.perf_counter()
        found, busy_s = await self._worker.submit(request.text)
        latency_ms = (time.perf_counter() - began) * 1000
        return OodScore(found.ood_score, self._price.charge("domain", busy_s), latency_ms, found.features)

    async def aclose(self) -> None:
        await self._worker.aclose()

    def _measure(self, texts: Sequence[str]) -> list[tuple[MeasuredText, float]]:
        began = time.perf_counter()
        found = self.profile.measure(texts)
        return [(one, (time.perf_counter() - began) / len(texts)) for one in found]


def fit_task_profile(
    train: Dataset,
    selection: Dataset,
    *,
    encoder: tuple[str, SentenceEncoder] | None = None,
    n_folds: int = 0,
    by_selection: bool = False,
    refuse_own_at_most: float = 0.02,
) -> TaskProfile:
    """Fit the profile of the task with these rows; `own_limit` of the selection rows is its threshold.

    With `encoder`, given with its name, vectors are compared, else words. With `n_folds` the profile is of all rows,
    and its threshold of all rows as profiles of the other folds measure them, or of the selection rows alone
    `by_selection`. With fewer than MIN_ROWS selection rows a fifth of the training rows joins them. Raise DataError if
    there are too few rows for that.
    """
    all_rows = train.subset("development", (*train.examples, *selection.examples))
    folds = folds_of(all_rows, n_folds) if n_folds and len(all_rows) >= 2 * MIN_ROWS else []
    if len(folds) > 1:
        known = None if encoder is None else (encoder[0], CachedEncoder(encoder[1]))
        order = np.argsort([i for fold in folds for i in fold.at])
        raw = np.concatenate([_fit_scorer(fold.rest, known).scores(_texts(fold.held)) for fold in folds])[order]
        train, scorer = all_rows, _fit_scorer(all_rows, known)
        if isinstance(scorer, StateScorer) and encoder is not None:
            scorer = scorer._replace(encoder=encoder[1])
    else:
        train, selection = _with_enough_selection(train, selection)
        scorer = _fit_scorer(train, encoder)
        raw = scorer.scores(_texts(selection))
    rows = train if len(folds) > 1 and not by_selection else selection
    own = raw[-len(rows) :]
    fusion = ScoreFusion.fit(own)
    judged = _judge(fusion, _ranked_among_others(own), words=encoder is None)
    limit = own_limit([one.ood_score for one in judged], refuse_own_at_most)
    parameters = ProfileParameters(
        limit=limit,
        n_own=len(judged),
        n_beyond=sum(one.ood_score > limit for one in judged),
        conversations=any(sum(m.role != "system" for m in e.messages) > 1 for e in train.examples),
        fusion=fusion,
        encoder=encoder[0] if encoder else "",
        encoder_int8=encoder is not None and encoder[1].int8,
    )
    profile = TaskProfile(parameters, scorer)
    profile.unseen = {e.key: one for e, one in zip(rows.examples, judged, strict=True)}
    return profile


def own_limit(scores: Sequence[float], at_most: float) -> float:
    """Return the lowest limit beyond which at most a share `at_most` of own requests is shown to lie, at 95 %.

    `scores`, 1 - p, are of own rows that are independent draws of the requests; the bound is the exact binomial one.
    With fewer rows than can show it (149 for 2 %) the share holds in the mean: no row is beyond the limit, nor is a
    p-value of `at_most`, and of n rows 1 in n + 1 new ones is beyond the largest.
    """
    own, n_beyond = np.sort(np.asarray(scores)), -1
    while n_beyond + 1 < len(own) and upper_bound(n_beyond + 1, len(own)) <= at_most:
        n_beyond += 1
    return float(own[-1 - n_beyond] if n_beyond >= 0 else max(own[-1], 1 - at_most))


def _judge(fusion: ScoreFusion, nats: np.ndarray, *, words: bool) -> list[MeasuredText]:
    """Return score and features of texts by the -log p-values of what is compared (texts, scores).

    The scores of words are too much alike to be features of their own.
    """
    unlike = nats.sum(axis=1)
    features = np.minimum(fusion.fused.neg_log_p_values(unlike)[:, None] if words else nats, MAX_NATS)
    pairs = zip(fusion.fused.ood_score(unlike).tolist(), features.tolist(), strict=True)
    return [MeasuredText(score, tuple(own)) for score, own in pairs]


def _fit_scorer(train: Dataset, encoder: tuple[str, Any] | None) -> TextFeatures | StateScorer:
    texts = _texts(train)
    if encoder is None:
        return TextFeatures.fit(texts)
    return StateScorer(encoder[1], HiddenStateProfile.fit(encoder[1].embed(texts), _label_numbers(train)))


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
