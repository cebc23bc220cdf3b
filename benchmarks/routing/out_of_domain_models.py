"""CLINC150 without its out-of-scope rows, and the scores of models trained on it. Used by out_of_domain.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.datasets import data_folder
from smallfirst.data.dataset import Dataset
from smallfirst.data.sources.load import load_rows
from smallfirst.evaluation.calibration import fit_temperature
from smallfirst.models.linear.classifier import ENCODER_FOLDER, LinearClassifier
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.state_features import HiddenStateProfile, HiddenStates
from smallfirst.routing.domain import TextFeatures
from smallfirst.tasks.classify import Classify

if TYPE_CHECKING:
    from smallfirst.models.local.label_scorer import LabelScorer

PARTS = ("validation", "test", "oos_train", "oos_test")


class Scope(NamedTuple):
    """CLINC150 without its out-of-scope rows, which are held separately."""

    task: Classify
    train: Dataset
    parts: dict[str, Dataset]

    @classmethod
    def read(cls) -> Scope:
        """From the official splits."""
        whole = {part: load_rows(data_folder("clinc150") / f"{part}.jsonl") for part in ("train", "validation", "test")}

        def rows(part: str, oos: bool) -> Dataset:
            return whole[part].subset(part, tuple(e for e in whole[part].examples if (e.answer == "oos") == oos))

        train = rows("train", False)
        parts = {"validation": rows("validation", False), "test": rows("test", False)}
        parts |= {"oos_train": rows("train", True), "oos_test": rows("test", True)}
        about = "You tell what a person wants from an assistant."
        return cls(Classify(name="clinc150", labels=train.labels(), about=about), train, parts)

    def gold(self, part: str) -> np.ndarray:
        """Place of each row's label."""
        index = {label: i for i, label in enumerate(self.task.labels)}
        data = self.train if part == "train" else self.parts[part]
        return np.array([index[e.answer] for e in data.examples])


class Seen(NamedTuple):
    """What one model makes of the parts."""

    name: str
    logits: dict[str, np.ndarray]
    signals: dict[str, np.ndarray]
    temperature: float
    ms: float
    """Of one core, a text."""

    def log_probabilities(self, part: str) -> np.ndarray:
        """Tempered (rows, labels)."""
        scaled = self.logits[part].astype(np.float64) / self.temperature
        return scaled - logsumexp(scaled)


def words(scope: Scope, folder: Path) -> LinearClassifier:
    if not (folder / "smallfirst.json").exists():
        LinearClassifier.fit("words", scope.train, scope.task).save(
            folder, Manifest(kind="words", task=scope.task, base="")
        )
    return LinearClassifier.load(folder, read_manifest(folder))


def frozen(scope: Scope, folder: Path) -> LinearClassifier:
    from smallfirst.models.catalog import find_weights
    from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder

    if not (folder / "smallfirst.json").exists():
        scorer = LinearClassifier.fit(
            "encoder", scope.train, scope.task, encoder=SentenceEncoder(find_weights(DEFAULT_ENCODER))
        )
        scorer.save(folder, Manifest(kind="encoder", task=scope.task, base=DEFAULT_ENCODER))
    return LinearClassifier.load(folder, read_manifest(folder))


def tuned(scope: Scope, folder: Path) -> LinearClassifier:
    from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER
    from smallfirst.training.config import TrainConfig
    from smallfirst.training.recipes.contrastive import EncoderRecipe

    recipe = EncoderRecipe(scope.task, scope.train, scope.parts["validation"])
    _train(recipe, TrainConfig(duration="6ep", learning_rate=2e-4, max_seq_tokens=256), DEFAULT_ENCODER, folder)
    assert (folder / "model" / ENCODER_FOLDER).is_dir()
    return LinearClassifier.load(folder / "model", read_manifest(folder / "model"))


def _train(recipe: Any, config: Any, base: str, folder: Path) -> None:
    """Start or continue the run in the folder until it is finished."""
    from smallfirst.models.catalog import find_weights
    from smallfirst.registry import runs
    from smallfirst.training.run import train

    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent / 'mlflow.db'}")
    with runs.open_run("out_of_domain", folder.name, params={}) as tracked:
        run = train(recipe, config, base=(base, find_weights(base)), tracked=tracked, folder=folder)
    say(f"{folder.name}: {run.validation_curve}, {run.seconds / 60:.1f} min")


MODELS: dict[str, tuple[Callable[[Scope, Path], Any], str]] = {
    "words": (words, "words + linear"),
    "frozen": (frozen, "frozen MiniLM + linear"),
    "tuned": (tuned, "fine-tuned MiniLM"),
}


def see(name: str, scope: Scope, folder: Path) -> Seen:
    """Return a model's scores of all parts; store them in the folder."""
    kept = folder / f"{name}.npz"
    if not kept.exists():
        scorer = MODELS[name][0](scope, folder / name)
        say(f"{name}: reading {len(scope.train)} training rows")
        profile = HiddenStateProfile.fit(compute_states(scorer, texts(scope.train)), scope.gold("train"))
        arrays: dict[str, np.ndarray] = {}
        began, n = time.process_time(), 0
        for part, data in scope.parts.items():
            states = compute_states(scorer, texts(data))
            arrays |= {f"logits/{part}": states.logits, f"signals/{part}": profile.nonconformity(states)}
            n += len(data)
        np.savez(kept, ms=1000 * (time.process_time() - began) / n, **arrays)
    file = np.load(kept)
    logits = {part: file[f"logits/{part}"] for part in PARTS}
    validation = logits["validation"] - logsumexp(logits["validation"])
    temperature = fit_temperature(validation, scope.gold("validation"))
    return Seen(name, logits, {part: file[f"signals/{part}"] for part in PARTS}, temperature, float(file["ms"]))


def see_small(scope: Scope, folder: Path) -> tuple[Seen, dict[str, np.ndarray]]:
    """Return the scores of the fine-tuned SmolLM2 of `run.py clinc150`, which has an oos label, and that label's log-probability.

    Only its in-scope labels are used. Every third training row is read for the profile.
    """
    kept = folder / "small.npz"
    if not kept.exists():
        from smallfirst.models.local.label_scorer import LabelScorer
        from smallfirst.project.run_folder import RunFolder

        place = RunFolder.latest("clinc150").model_folder("small")
        scorer = LabelScorer.load(place, read_manifest(place))
        labels = list(scorer.manifest.task.closed)
        inside, oos = [labels.index(label) for label in scope.task.labels], labels.index("oos")
        read = compute_states(scorer, texts(scope.train)[::3])
        profile = HiddenStateProfile.fit(HiddenStates(read.hidden, read.logits[:, inside]), scope.gold("train")[::3])
        arrays, began = {}, time.process_time()
        for part, data in scope.parts.items():
            read = compute_states(scorer, texts(data))
            states = HiddenStates(read.hidden, read.logits[:, inside])
            arrays |= {f"logits/{part}": states.logits, f"signals/{part}": profile.nonconformity(states)}
            arrays[f"oos/{part}"] = (read.logits - logsumexp(read.logits))[:, oos]
            say(f"small: {part}")
        ms = 1000 * (time.process_time() - began) / sum(map(len, scope.parts.values()))
        np.savez(kept, ms=ms, **arrays)
    file = np.load(kept)
    named = ({part: file[f"{kind}/{part}"] for part in PARTS} for kind in ("logits", "signals", "oos"))
    logits, signals, oos_label = named
    return Seen("small", logits, signals, 1.0, float(file["ms"])), oos_label


def worded(scope: Scope, folder: Path) -> dict[str, np.ndarray]:
    """Return the scores of words alone, which need no labels."""
    kept = folder / "wording.npz"
    if not kept.exists():
        wording = TextFeatures.fit(texts(scope.train))
        np.savez(kept, **{part: wording.scores(texts(data)) for part, data in scope.parts.items()})
    file = np.load(kept)
    return {part: file[part] for part in PARTS}


def mixture(models: Sequence[Seen], gold: np.ndarray) -> np.ndarray:
    """Return the weights (tenths that sum to 1) of the models' log-probabilities with the least loss on validation rows."""
    logs = [model.log_probabilities("validation") for model in models]
    rows = np.arange(len(gold))

    def loss(tenths: tuple[int, ...]) -> float:
        mixed = sum(t / 10 * log for t, log in zip(tenths, logs, strict=True))
        return float((logsumexp(mixed)[:, 0] - mixed[rows, gold]).mean())

    return np.array(min(_tenths(len(models), 10), key=loss)) / 10


def _tenths(n: int, left: int) -> list[tuple[int, ...]]:
    if n == 1:
        return [(left,)]
    return [(first, *rest) for first in range(left + 1) for rest in _tenths(n - 1, left - first)]


def logsumexp(values: np.ndarray) -> np.ndarray:
    most = values.max(axis=1, keepdims=True)
    return most + np.log(np.exp(values - most).sum(axis=1, keepdims=True))


def texts(data: Dataset) -> list[str]:
    return [example.text for example in data.examples]


BEGAN = time.perf_counter()


def say(words: str) -> None:
    print(f"[{(time.perf_counter() - BEGAN) / 60:5.1f} min] {words}", flush=True)


def compute_states(scorer: LinearClassifier | LabelScorer, texts: Sequence[str]) -> HiddenStates:
    """Return hidden states and logits of texts, in order, from one pass of the model over each."""
    if not isinstance(scorer, LinearClassifier):
        return _causal_states(scorer, texts)
    features = scorer.features(list(texts))
    logits = np.asarray(features @ scorer.weights.T) + scorer.bias
    return HiddenStates(logits if isinstance(scorer.features, TfidfFeatures) else features, logits)


def _causal_states(scorer: LabelScorer, texts: Sequence[str]) -> HiddenStates:
    import torch

    from smallfirst.models.batching import length_batches
    from smallfirst.models.local.token_batches import pad_right

    encoded, model = scorer.encode(texts), scorer.model
    hidden = np.zeros((len(encoded), model.config.hidden_size), dtype=np.float32)
    logits = np.zeros((len(encoded), len(scorer.manifest.label_tokens)), dtype=np.float32)
    lengths = [len(ids) for ids in encoded]
    for chosen in length_batches(lengths, max_rows=scorer.batch_rows):
        with torch.inference_mode():
            ids = pad_right([encoded[i] for i in chosen]).to(model.device)
            states = model.model(input_ids=ids, use_cache=False).last_hidden_state
            last = states[torch.arange(len(chosen)), torch.tensor([lengths[i] for i in chosen]) - 1].float()
            head = model.get_output_embeddings().weight[scorer.label_tokens.to(model.device)].float()
            hidden[chosen], logits[chosen] = last.cpu().numpy(), (last @ head.T).cpu().numpy()
    return HiddenStates(hidden, logits)
