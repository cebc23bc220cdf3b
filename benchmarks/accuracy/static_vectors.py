"""Static token vectors (wordllama's, 256 numbers a token) under a linear model, beside words and a sentence encoder.

    python -m benchmarks.accuracy.static_vectors FOLDER

FOLDER is an unpacked wheel of wordllama 0.4.0.post1; its code is not run. A text's vector is the mean over its tokens,
scaled to length 1, as the package makes it. All three heads are the project's own logistic regression; C of the static
one is chosen on validation rows, words and encoder have the fixed values that users get. Writes
benchmarks/results/static_vectors.md.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from benchmarks.accuracy.run import data_folder
from benchmarks.paths import RESULTS
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, SentenceEncoder
from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION, fit_logistic_regression
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.stats.intervals import paired_difference, wilson

INVERSE_PENALTIES = (10.0, 30.0, 100.0, 300.0)
TIMED, ROUNDS = 200, 5
Features = Callable[[Sequence[str]], object]


class StaticVectors:
    """The mean of the tokens' vectors, scaled to length 1."""

    def __init__(self, package: Path) -> None:
        vectors = load_file(package / "wordllama/weights/l2_supercat_256.safetensors")["embedding.weight"]
        self.vectors = vectors.astype(np.float32)
        self.tokenizer = Tokenizer.from_file(str(package / "wordllama/tokenizers/l2_supercat_tokenizer_config.json"))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        means = np.stack([self.vectors[encoded.ids].mean(0) for encoded in found])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def rows_of(name: str) -> dict[str, tuple[list[str], list[str]]]:
    folder = data_folder(name)
    read = {
        part: [json.loads(line) for line in (folder / f"{part}.jsonl").open(encoding="utf-8")]
        for part in ("train", "validation", "test")
    }
    return {part: ([row["text"] for row in rows], [row["label"] for row in rows]) for part, rows in read.items()}


def some_of_each_label(texts: list[str], labels: list[str], n: int) -> tuple[list[str], list[str]]:
    by_label = defaultdict(list)
    for text, label in zip(texts, labels, strict=True):
        by_label[label].append(text)
    drawn = random.Random(0)
    picked = [(t, label) for label, all_ in sorted(by_label.items()) for t in drawn.sample(all_, min(n, len(all_)))]
    return [text for text, _ in picked], [label for _, label in picked]


def fit(features: object, labels: list[str], names: list[str], c: float) -> tuple[np.ndarray, np.ndarray]:
    return fit_logistic_regression(features, np.array([names.index(label) for label in labels]), len(names), c)


def answers(head: tuple[np.ndarray, np.ndarray], features: object, names: list[str]) -> list[str]:
    return [names[i] for i in np.asarray(features @ head[0].T + head[1]).argmax(1)]  # type: ignore[operator]


def measure(name: str, n: int | None, static: StaticVectors, encoder: SentenceEncoder | None) -> list[str]:
    rows = rows_of(name)
    texts, labels = rows["train"] if n is None else some_of_each_label(*rows["train"], n)
    names, (asked, gold) = sorted(set(labels)), rows["test"]
    kinds: dict[str, tuple[Features, float]] = {
        "words": (TfidfFeatures.fit(texts).matrix, INVERSE_REGULARIZATION["words"])
    }
    validated = {}
    for c in INVERSE_PENALTIES:
        head = fit(static(texts), labels, names, c)
        found = answers(head, static(rows["validation"][0]), names)
        validated[c] = np.mean([a == b for a, b in zip(found, rows["validation"][1], strict=True)])
    kinds["static"] = (static, max(validated, key=lambda c: validated[c]))
    if encoder is not None:
        kinds["encoder"] = (encoder.embed, INVERSE_REGULARIZATION["encoder"])
    right = {}
    lines = []
    for kind, (features, c) in kinds.items():
        head = fit(features(texts), labels, names, c)
        right[kind] = [a == b for a, b in zip(answers(head, features(asked), names), gold, strict=True)]
        found = wilson(sum(right[kind]), len(gold))
        against = paired_difference(right[kind], right["words"])
        versus = "" if kind == "words" else f"{against.value:+.3f} [{against.low:+.3f}, {against.high:+.3f}]"
        share = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        lines.append(
            f"| {name} | {n or 'all'} ({len(texts):,}) | {kind} | {c:g} | {share} | {len(gold):,} | {versus} |"
        )
        print(lines[-1], flush=True)
    return lines


def requests_per_s(static: StaticVectors, encoder: SentenceEncoder) -> dict[str, float]:
    """Return texts per second of processor time of one core, one text at a time: the median of rounds in turn."""
    texts, labels = some_of_each_label(*rows_of("banking77")["train"], 30)
    names, asked = sorted(set(labels)), rows_of("banking77")["test"][0][:TIMED]
    words = TfidfFeatures.fit(texts)
    heads = {"words": fit(words.matrix(texts), labels, names, 30.0), "static": fit(static(texts), labels, names, 30.0)}
    width = encoder.embed(asked[:1]).shape[1]
    heads["encoder"] = (np.zeros((len(names), width), np.float32), np.zeros(len(names), np.float32))
    saved: dict[str, Features] = {"words": words, "static": static, "encoder": encoder.embed}
    rates = defaultdict(list)
    for _ in range(ROUNDS):
        for kind, features in saved.items():
            began = time.process_time()
            for text in asked:
                answers(heads[kind], features([text]), names)
            rates[kind].append(TIMED / (time.process_time() - began))
    return {kind: statistics.median(found) for kind, found in rates.items()}


def main() -> None:
    static = StaticVectors(Path(sys.argv[1]))
    encoder = SentenceEncoder(find_weights(DEFAULT_ENCODER))
    lines = [line for name in ("banking77", "clinc150") for n in (5, 10) for line in measure(name, n, static, encoder)]
    lines += [line for name in ("banking77", "clinc150") for line in measure(name, None, static, None)]
    rates = requests_per_s(static, encoder)
    speed = "\n".join(f"| {kind} | {rate:,.0f} | {rate / rates['words']:.2f} |" for kind, rate in rates.items())
    table = "\n".join(lines)
    page = f"""# Static token vectors as a candidate: no

`python -m benchmarks.accuracy.static_vectors FOLDER` (an unpacked wheel of wordllama 0.4.0.post1), {date.today()}, 2
shared cores (Zen 5), 24 GB. Official test rows; C of `static` chosen on the official validation rows, `words` and
`encoder` (all-MiniLM-L6-v2) with the values that users get. Rows a label drawn with seed 0. The last column is the
paired difference to `words` on the same rows; 95 % intervals.

| set | rows a label (all) | features | C | accuracy | n | less words |
|---|---|---|---|---|---|---|
{table}

Texts of Banking77, one at a time, per second of processor time of one core, side by side (medians of {ROUNDS} rounds):

| features | requests/s | times words |
|---|---|---|
{speed}
"""
    (RESULTS / "static_vectors.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
