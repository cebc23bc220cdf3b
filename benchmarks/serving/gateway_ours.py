"""Our side of gateway.py: a key, a Router with its certificate, the ledger, and an endpoint as the large model.

    python -m benchmarks.serving.gateway_ours fit FOLDER
    python -m benchmarks.serving.gateway_ours UPSTREAM_PORT FOLDER words|rule PORT

`words`: a linear model on words drafts an answer to every request, the certificate rejects it, and the
request goes on to the endpoint: the longest path of a request through the gateway. `rule`: a policy sends it
there without a draft. Serves until SIGTERM. `fit` trains the model on words.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from smallfirst.ledger.database import KEYS
from smallfirst.ledger.keys import KeyStore, hash_key, key_id
from smallfirst.ledger.ledger import Ledger
from smallfirst.models.label_model import LabelModel
from smallfirst.models.linear.classifier import LinearClassifier
from smallfirst.models.manifest import Manifest, read_manifest
from smallfirst.models.pricing import PriceBook, TokenPrice
from smallfirst.models.protocol import Model
from smallfirst.models.remote.config import EndpointConfig
from smallfirst.models.remote.model import EndpointModel
from smallfirst.routing.certificate.certificate import Certificate, CertificateReport, Evidence, Guarantee
from smallfirst.routing.policies import RulePolicy
from smallfirst.routing.router import Router, RouterOptions, Stage
from smallfirst.serving.app import serve
from smallfirst.serving.settings import ServeSettings
from smallfirst.tasks.classify import Classify

KEY, MODEL = f"sf-{'0' * 12}-{'b' * 43}", "routed"
TASK = Classify(name="desk", labels=tuple(f"matter_{i}" for i in range(8)))
CERTIFICATE = Certificate(
    issued=True,
    threshold=0.999,
    below="escalate",
    evidence=Evidence(n_labels=1000, n_accepted=600, n_errors=10),
    report=CertificateReport(why="made up for this benchmark", below_why="made up for this benchmark"),
    model_fingerprint="benchmark",
    dataset_fingerprint="benchmark",
    guarantee=Guarantee(),
)


def fit(folder: Path) -> None:
    """Fit a linear model on words of 8 labels to 160 synthetic rows and save it in `folder`."""
    from smallfirst.data.dataset import Dataset, Example, Message

    rows = [
        Example(
            messages=(Message(role="user", content=f"thing{i} number {n} of kind{i % 3} is broken again"),),
            answer=TASK.closed[i],
            shape="label",
        )
        for i in range(8)
        for n in range(20)
    ]
    scorer = LinearClassifier.fit("words", Dataset(name="desk", examples=tuple(rows)), TASK)
    scorer.save(folder, Manifest(kind="words", task=TASK, base="words"))


def words(folder: Path) -> Model:
    manifest = read_manifest(folder)
    return LabelModel(LinearClassifier.load(folder, manifest), manifest, name="words")


def main() -> None:
    if sys.argv[1] == "fit":
        fit(Path(sys.argv[2]))
        return
    port, folder, route = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    config = EndpointConfig(base_url=f"http://127.0.0.1:{port}/v1", model="instant", max_concurrency=64)
    price = TokenPrice(input_usd_per_mtok=1, output_usd_per_mtok=4)
    large = EndpointModel(config, PriceBook(tokens={"instant": price}))
    rule = RulePolicy(kind="rule", to="large", longer_than_chars=10)
    options = RouterOptions(policies=[rule] if route == "rule" else [])
    router = Router([Stage("small", words(folder))], large, CERTIFICATE, options=options)
    settings, ledger = ServeSettings(port=int(sys.argv[4]), max_queue=1024), Ledger(folder / "ledger.sqlite")
    with ledger.database.writer.begin() as connection:
        row = {"id": key_id(KEY), "owner": key_id(KEY), "name": "benchmark", "sha256": hash_key(KEY), "policy": "{}"}
        connection.execute(
            ledger.database.insert(KEYS).values(created_at=datetime.now(UTC), **row).on_conflict_do_nothing()
        )
    serve({MODEL: router}, ledger=ledger, settings=settings, key_store=KeyStore(ledger))


if __name__ == "__main__":
    main()
