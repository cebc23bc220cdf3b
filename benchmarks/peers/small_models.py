"""Small classifiers of peers on Banking77: accuracy on the official test rows, processor minutes to fit, requests a processor second.

    python -m benchmarks.peers.small_models FOLDER PEER …    # fit and measure; FOLDER keeps the figures
    python -m benchmarks.peers.small_models FOLDER           # write benchmarks/results/peers_small.md

With VECTORS=FILE.npz, MiniLM's vectors of the rows are read from a file (`vec/train`, `vec/validation`, `vec/test`, and `ms/train`,
`ms/test`: processor milliseconds a row), and their times are added to those of fitting and answering.

Peers: smallfirst_words, smallfirst_encoder, heartcut_tfidf, heartcut_setfit, pecca_tfidf, smallbatch_tfidf, jevstiller_linear,
tracer_search. Their packages need not be installed beside smallfirst: put them into a folder and name it in PYTHONPATH
(`pip install --no-deps --target FOLDER heartcut==0.2.1 pecca==0.1.1 smallbatch==0.2.0 jevstiller==0.5.3 tracer-llm==0.3.3 skops
sentence-transformers`). Each is fitted by its own code with its own defaults on the same 9,000 training rows (1,003 validation rows
where it takes some); where a peer wants an encoder that is not here, it gets the MiniLM that smallfirst uses.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accuracy.run import data_folder
from benchmarks.paths import RESULTS
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.stats.intervals import paired_score_interval, wilson

PROBE_ROWS = 200
Predict = Callable[[Sequence[str]], Sequence[str]]
"""Returns a label for each text."""


class Split(NamedTuple):
    """Rows of one part, in the order of the file."""

    texts: list[str]
    labels: list[str]


def read(name: str) -> Split:
    lines = (data_folder("banking77") / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return Split([row["text"] for row in rows], [row["label"] for row in rows])


class StoredVectors:
    """An encoder that has read every row already."""

    def __init__(self, path: str) -> None:
        stored = np.load(path, allow_pickle=False)
        self.fit_s = float(stored["ms/train"]) * (len(stored["vec/train"]) + len(stored["vec/validation"])) / 1000
        self.answer_s = float(stored["ms/test"]) / 1000
        parts = ("train", "validation", "test")
        rows = [
            (text, vector)
            for part in parts
            for text, vector in zip(read(part).texts, stored[f"vec/{part}"], strict=True)
        ]
        self._vectors = {text: vector.astype(np.float32) for text, vector in rows}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vectors[text] for text in texts])


def encoder() -> Any:
    """Return the MiniLM of smallfirst, or its stored vectors."""
    return (
        StoredVectors(os.environ["VECTORS"])
        if "VECTORS" in os.environ
        else SentenceEncoder(find_weights(DEFAULT_ENCODER))
    )


def embedded(fit: Callable[[np.ndarray, Split, np.ndarray, Split], Callable[[np.ndarray], Sequence[str]]]) -> Any:
    """Return the fit function of a head on MiniLM vectors; embedding counts as fitting and as answering."""

    def fitted(train: Split, validation: Split) -> Predict:
        model = encoder()
        head = fit(model.embed(train.texts), train, model.embed(validation.texts), validation)
        return lambda texts: head(model.embed(list(texts)))

    return fitted


def smallfirst_linear(kind: str) -> Callable[[Split, Split], Predict]:
    def fitted(train: Split, validation: Split) -> Predict:
        from smallfirst.data.dataset import Dataset, Example, Message
        from smallfirst.models.linear.classifier import LinearClassifier
        from smallfirst.tasks.classify import Classify

        task = Classify(name="banking77", labels=tuple(sorted(set(train.labels))))
        rows = (
            Example(messages=(Message(role="user", content=text),), answer=label, shape="label", path="train", line=n)
            for n, (text, label) in enumerate(zip(train.texts, train.labels, strict=True))
        )
        reads = encoder() if kind == "encoder" else None
        model = LinearClassifier.fit(kind, Dataset(name="train", examples=tuple(rows)), task, encoder=reads)
        return lambda texts: [task.labels[int(np.argmax(row.log_probabilities))] for row in model.score(list(texts))]

    return fitted


def heartcut(kind: str) -> Callable[[Split, Split], Predict]:
    def fitted(train: Split, validation: Split) -> Predict:
        from heartcut.config import SetFitParams, SetFitStudentConfig, TfidfStudentConfig
        from heartcut.students.base import TrainingData

        labels = sorted(set(train.labels))
        ids = [np.array([labels.index(label) for label in part.labels]) for part in (train, validation)]
        data = TrainingData(train.texts, ids[0], validation.texts, ids[1])
        if kind == "tfidf":
            from heartcut.students.tfidf import TfidfStudent

            student: Any = TfidfStudent(TfidfStudentConfig(name="tfidf"), labels)
        else:
            from heartcut.students.setfit import SetFitStudent

            params = SetFitParams(model_name=str(find_weights(DEFAULT_ENCODER)))
            student = SetFitStudent(SetFitStudentConfig(name="setfit", params=params), labels)
        student.fit(data, 0)
        return lambda texts: [labels[i] for i in student.predict_proba(list(texts)).argmax(axis=1)]

    return fitted


def pecca(train: Split, validation: Split) -> Predict:
    from pecca.candidates.classical import TfidfLinear

    model = TfidfLinear()
    model.fit(train.texts, train.labels)
    return lambda texts: [str(label) for label in model.predict(list(texts))]


def smallbatch(train: Split, validation: Split) -> Predict:
    from smallbatch.candidates import _load_pipelines, predict_tfidf_pipelines, train_tfidf
    from smallbatch.spec import FunctionSpec

    labels = sorted(set(train.labels))
    spec = FunctionSpec.model_validate(
        {
            "name": "banking77",
            "prompt": "Which intent has this message?",
            "input_schema": {"text": "string"},
            "output": {"type": "enum", "labels": labels},
            "candidates": {"tfidf": {"type": "tfidf"}},
        }
    )
    rows: Any = [{"input": {"text": t}, "output": a} for t, a in zip(train.texts, train.labels, strict=True)]
    folder = Path(tempfile.mkdtemp())
    train_tfidf(spec, rows, folder)
    pipelines = _load_pipelines(folder)
    return lambda texts: predict_tfidf_pipelines(pipelines, spec, [{"text": text} for text in texts])


def jevstiller(vectors: np.ndarray, train: Split, held: np.ndarray, validation: Split) -> Any:
    from jevstiller._student import LinearStudent

    labels = sorted(set(train.labels))
    student = LinearStudent(vectors.shape[1], len(labels))
    student.fit(vectors, np.eye(len(labels))[[labels.index(label) for label in train.labels]])
    return lambda x: [labels[i] for i in student.predict_proba(x).argmax(axis=1)]


def tracer(vectors: np.ndarray, train: Split, held: np.ndarray, validation: Split) -> Any:
    from tracer.fit.surrogate import search_best_surrogate

    model, name, _ = search_best_surrogate(
        vectors,
        np.array(train.labels),
        held,
        np.array(validation.labels),
        on_candidate=lambda *found: print(*found, flush=True),
    )
    print(f"tracer chose {name}")
    return lambda x: [str(label) for label in model.predict(x)]


PEERS: dict[str, tuple[str, str, Callable[[Split, Split], Predict]]] = {
    "smallfirst_words": ("smallfirst", "words + linear", smallfirst_linear("words")),
    "smallfirst_encoder": ("smallfirst", "frozen MiniLM + linear", smallfirst_linear("encoder")),
    "heartcut_tfidf": ("heartcut", "`tfidf`: word and character n-grams + logistic regression", heartcut("tfidf")),
    "heartcut_setfit": (
        "heartcut",
        "`setfit`: MiniLM, 20,000 contrastive pairs + logistic regression",
        heartcut("setfit"),
    ),
    "pecca_tfidf": ("pecca", "`tfidf_linear`, its one text candidate that needs no model hub", pecca),
    "smallbatch_tfidf": ("smallbatch", "`tfidf`", smallbatch),
    "jevstiller_linear": ("jevstiller", "its linear student, on MiniLM for bge-small", embedded(jevstiller)),
    "tracer_search": ("tracer-llm", "its search over eight models, on MiniLM", embedded(tracer)),
}

ON_VECTORS = {"smallfirst_encoder", "jevstiller_linear", "tracer_search"}
"""Peers that use vectors as they are."""

ELSEWHERE = (
    "| heartcut 0.2.1 `tfidf` and `setfit`, tracer-llm 0.3.3 | run here, not measured yet (heartcut_tfidf, heartcut_setfit, tracer_search) |",
    "| taskdistill 0.1.1 | does not run here: Python 3.12 and MLX on Apple silicon |",
    "| pecca 0.1.1, `e5_linear`, `xlmr` | do not run here: multilingual-e5-base and XLM-R come from a model hub |",
    "| heartcut 0.2.1, `encoder` | does not run here: distilbert-base-uncased comes from a model hub |",
    "| smallbatch 0.2.0, `setfit`, `lora` | do not run here: transformers below 5 and setfit below 1.2 beside PyTorch, a second environment of several GB |",
    "| jevstiller 0.5.3 as a whole | distils a service of its vendor, which has to be reached; only its student was fitted |",
)
HEAD = """# Small models of peers on Banking77

`python -m benchmarks.peers.small_models`, {date}, 2 shared cores (Zen 5), 24 GB, one thread. Times are processor times, since the
machine was busy with other work; compare them as ratios. 9,000 training rows with people's labels, 1,003 validation rows for those that
take some, the 3,080 official test rows; each by its own code and defaults, nothing tuned on test rows. Where no p50 stands, MiniLM's vectors
were read from a file and their processor time was added. Accuracy with a 95 % Wilson interval; difference to smallfirst's frozen MiniLM on
the same rows, 95 % (Tango). Requests/s: all test rows in one call; p50: {probes} rows one at a time; both in the process, without HTTP.

| | version | what | accuracy, n=3,080 | minus frozen MiniLM | minutes to fit | requests/s | p50 |
|---|---|---|---|---|---|---|---|
"""


def measure(name: str, folder: Path) -> None:
    """Fit one peer, measure it, and store its figures."""
    package, _, fit = PEERS[name]
    stored = StoredVectors(os.environ["VECTORS"]) if "VECTORS" in os.environ and name in ON_VECTORS else None
    train, validation, test = read("train"), read("validation"), read("test")
    began = time.process_time()
    predict = fit(train, validation)
    minutes = (time.process_time() - began + (stored.fit_s if stored else 0.0)) / 60
    predict(test.texts[:8])
    began = time.process_time()
    said = list(predict(test.texts))
    rate = len(said) / (time.process_time() - began + (stored.answer_s * len(said) if stored else 0.0))
    times = []
    for text in test.texts[:PROBE_ROWS]:
        began = time.process_time()
        predict([text])
        times.append(1000 * (time.process_time() - began))
    p50_ms = None if stored else float(np.median(times))
    right = [answer == label for answer, label in zip(said, test.labels, strict=True)]
    try:
        released = version(package)
    except PackageNotFoundError:
        released = "this one"
    found = {"minutes": minutes, "requests_per_s": rate, "p50_ms": p50_ms, "version": released}
    (folder / f"{name}.json").write_text(json.dumps(found | {"right": [int(one) for one in right]}), encoding="utf-8")
    print(
        f"{name}: {wilson(sum(right), len(right))}, {minutes:.2f} min, {rate:,.0f}/s, p50 {p50_ms} ms",
        flush=True,
    )


def page(folder: Path) -> None:
    """Write the page from the stored figures, the most accurate first."""
    found = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in PEERS if (folder / f"{name}.json").exists()
    }
    ours = found["smallfirst_encoder"]["right"]
    lines = []
    for name, one in sorted(found.items(), key=lambda pair: -sum(pair[1]["right"])):
        right, (package, what, _) = one["right"], PEERS[name]
        gained, lost = (sum(a > b for a, b in zip(*pair, strict=True)) for pair in ((right, ours), (ours, right)))
        gap = paired_score_interval(gained, lost, len(right))
        difference = "" if right is ours else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        cells = [
            package,
            one["version"],
            what,
            str(wilson(sum(right), len(right))),
            difference,
            f"{one['minutes']:.2f}",
        ]
        lines.append(
            "| "
            + " | ".join([*cells, f"{one['requests_per_s']:,.0f}", f"{one['p50_ms']:.1f} ms" if one["p50_ms"] else "–"])
            + " |"
        )
    rest = "\n\n| not measured | why |\n|---|---|\n" + "\n".join(ELSEWHERE) + "\n"
    text = HEAD.format(date=date.today().isoformat(), probes=PROBE_ROWS) + "\n".join(lines) + rest
    (RESULTS / "peers_small.md").write_text(text, encoding="utf-8")


def main() -> None:
    if len(sys.argv) < 2 or set(sys.argv[2:]) - PEERS.keys():
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        measure(name, folder)
    if len(sys.argv) == 2:
        page(folder)


if __name__ == "__main__":
    main()
