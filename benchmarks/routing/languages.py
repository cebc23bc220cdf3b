"""English labels, requests in several languages: `python -m benchmarks.routing.languages`, half a minute.

Trained on the 300 English rows of xSID alone. Of 500 test sentences, each in three languages, a half certifies, by the
language that is told, and the other half alone measures, 200 times. Answers are computed once, and nothing is chosen by them.
"""

from typing import Any

import numpy as np
from scipy import special

from benchmarks.datasets import data_folder, read_lines
from smallfirst.base.stats.intervals import wilson
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import DEFAULT_ENCODER, MULTILINGUAL_ENCODER, open_encoder
from smallfirst.models.linear.classifier import INVERSE_REGULARIZATION, fit_linear
from smallfirst.models.linear.tfidf import TfidfFeatures
from smallfirst.routing.certificate.calibration_set import CalibrationSet
from smallfirst.routing.certificate.threshold_search import certify_groups
from smallfirst.routing.languages import detect_language

LANGUAGES, LIMIT, LEVEL, DRAWS = ("de", "en", "it"), 0.05, 0.05, 200
FOREIGN = {
    "fi": [
        "millainen sää on huomenna Helsingissä",
        "herätä minut aamulla kello seitsemän",
        "poista kaikki muistutukset",
    ],
    "sw": ["hali ya hewa itakuwaje kesho Nairobi", "niamshe kesho asubuhi saa moja", "futa vikumbusho vyangu vyote"],
}


def main() -> None:
    rows = {name: list(read_lines(data_folder("xsid") / f"{name}.jsonl")) for name in ["en.valid", *_tests()]}
    labels = sorted({row["label"] for row in rows["en.valid"]})
    gold = np.array([labels.index(row["label"]) for row in rows["en.valid"]])
    for kind, encoder in (("words", ""), ("encoder", DEFAULT_ENCODER), ("encoder", MULTILINGUAL_ENCODER)):
        texts = {name: [row["text"] for row in own] for name, own in rows.items()}
        words = None if encoder else TfidfFeatures.fit(texts["en.valid"])
        features = words.matrix if words else open_encoder(find_weights(encoder)).embed
        weights, bias = fit_linear(features(texts["en.valid"]), gold, len(labels), INVERSE_REGULARIZATION[kind])

        said = {one: _answered(features(texts[f"{one}.test"]), weights, bias) for one in LANGUAGES}
        confidence = np.stack([said[one].max(axis=1) for one in LANGUAGES])  # (languages, sentences)
        right = np.array(
            [
                [
                    labels[best] == row["label"]
                    for best, row in zip(said[one].argmax(axis=1), rows[f"{one}.test"], strict=True)
                ]
                for one in LANGUAGES
            ]
        )
        told = np.array([[detect_language(text) for text in texts[f"{one}.test"]] for one in LANGUAGES])
        print(f"\n{encoder or kind}")
        redraw(confidence, right, told)
        if encoder == MULTILINGUAL_ENCODER:
            for name, own in FOREIGN.items():
                sure = [f"{one:.2f}" for one in _answered(features(own), weights, bias).max(axis=1)]
                print(f"{name}: told {[detect_language(text) for text in own]}, confidence {sure}")


def redraw(confidence: np.ndarray, right: np.ndarray, told: np.ndarray) -> None:
    """Print accuracy, and over draws the share kept, the wrong among kept, and how often the limit is broken."""
    n, draws, first = confidence.shape[1], {one: [] for one in LANGUAGES}, {}
    for seed in range(DRAWS):
        order = np.random.default_rng(seed).permutation(n)
        ours, theirs = order[: n // 2], order[n // 2 :]
        part = np.where(np.isin(told, LANGUAGES), told, None)[:, ours].reshape(-1)
        blank = np.ones(part.size, dtype=bool)
        data = CalibrationSet(
            confidence=confidence[:, ours].reshape(1, -1),
            right=right[:, ours].reshape(1, -1),
            cost_usd=np.zeros((2, part.size)),
            asked=blank,
            large_right=blank,
            part=part,
        )
        for group in certify_groups(data, LIMIT, level=LEVEL, languages=LANGUAGES):
            mine = told[:, theirs] == group.label
            kept = mine & (confidence[:, theirs] >= group.threshold)
            counts = (int(kept.sum()), int(mine.sum()), int((kept & ~right[:, theirs]).sum()))
            draws[group.label].append((*counts, group.certified, counts[2] > LIMIT * counts[0]))
            first.setdefault(group.label, counts)
    for i, one in enumerate(LANGUAGES):
        kept, of, wrong, n_shown, broken = (sum(values) for values in zip(*draws[one], strict=True))
        draw = first[one]
        shown = f"first draw keeps {wilson(*draw[:2])} of {draw[1]}, wrong {wilson(draw[2], draw[0])} of {draw[0]}"
        print(
            f"{one}: right {wilson(int(right[i].sum()), n)} of {n}, told {(told[i] == one).mean():.3f}; {shown}; over "
            f"{DRAWS} draws shown in {n_shown}, kept {kept / of:.3f}, wrong {wrong / max(1, kept):.4f}, broken in {broken} "
            f"{wilson(broken, DRAWS)}"
        )


def _answered(features: Any, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the probabilities of the labels (texts, labels)."""
    found: np.ndarray = special.softmax(np.asarray(features @ weights.T) + bias, axis=1)
    return found


def _tests() -> list[str]:
    return [f"{one}.test" for one in LANGUAGES]


if __name__ == "__main__":
    main()
