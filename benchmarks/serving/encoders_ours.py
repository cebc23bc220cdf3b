"""Our side of encoders.py: a classifier on MiniLM behind our HTTP server, alone or behind its Router with domain gate.

    python -m benchmarks.serving.encoders_ours fit FOLDER
    python -m benchmarks.serving.encoders_ours FOLDER alone|routed ctranslate2|pytorch PORT

`fit` makes the classifier and the task's profile on 2,000 training rows of Banking77, and decides on the validation rows
whether int8 is used. The Router keeps every answer: what is measured is the gate in front of it.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.gateway_ours import CERTIFICATE, KEY, MODEL, NeverAsked
from smallfirst.data.dataset import Dataset, Example, Message
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder import sentence_encoder
from smallfirst.models.label_model import LabelModel
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.local.int8_check import check_int8
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.protocol import Model
from smallfirst.routing.ood.detector import OodGate, fit_task_profile
from smallfirst.routing.router import Router
from smallfirst.routing.types import Stage
from smallfirst.serving.app import serve
from smallfirst.serving.auth.keys import hash_key
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings
from smallfirst.tasks.classify import Classify

N_TRAIN = 2000
ENCODER = sentence_encoder.DEFAULT_ENCODER


class _AcceptAny:
    def confidence(self, draft: float, features: Sequence[float]) -> float:
        return draft


def rows(part: str) -> Dataset:
    """A part of Banking77: train, validation or test."""
    lines = (Path(os.environ["SMALLFIRST_DATA"]) / "banking77" / f"{part}.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return Dataset(name=part, examples=tuple(_example(row["text"], row["label"]) for row in found))


def _example(text: str, label: str) -> Example:
    return Example(messages=(Message(role="user", content=text),), answer=label, shape="label")


def fit(folder: Path) -> None:
    """Fit classifier and profile, and decide about int8."""
    whole = rows("train")
    mixed = random.Random(0).sample(whole.examples, N_TRAIN)
    train, selection = whole.subset("train", tuple(mixed)), rows("validation")
    task = Classify(name="banking77", labels=tuple(whole.labels()))
    exact = sentence_encoder.open_encoder(find_weights(ENCODER))
    LinearClassifier.fit("encoder", train, task, encoder=exact).save(
        folder, Manifest(kind="encoder", task=task, base=ENCODER)
    )
    found = check_int8(folder, selection)
    print(found.why if found else "int8 is not possible here")
    encoder = sentence_encoder.open_encoder(find_weights(ENCODER), int8=bool(found and found.kept))
    fit_task_profile(train, selection, encoder=(ENCODER, encoder)).save(folder / "profile")


def main() -> None:
    if sys.argv[1] == "fit":
        fit(Path(sys.argv[2]))
        return
    folder, way, engine, port = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    if engine == "pytorch":
        sentence_encoder.unsupported_reason = lambda _: "the other engine is measured"
    manifest = read_manifest(folder)
    model: Model = LabelModel(LinearClassifier.load(folder, manifest), manifest, name=MODEL)
    if way == "routed":
        gate = OodGate.load(folder / "profile")
        assert gate is not None
        gate.scored = True
        stage = Stage("small", model, acceptance=_AcceptAny())
        certificate = CERTIFICATE.model_copy(update={"threshold": 0.0})
        model = Router((stage,), NeverAsked(), certificate, ood_detector=gate)  # type: ignore[arg-type]
    settings = ServeSettings(port=port, api_keys_sha256=(hash_key(KEY),), max_queue=1024)
    serve({MODEL: model}, ledger=Ledger(folder / f"{way}-{engine}.sqlite"), settings=settings)


if __name__ == "__main__":
    main()
