"""The server under benchmarks/robustness/faults.py: a fine-tuned small model, an upstream, and a llama.cpp child, with a key.

python -m benchmarks.robustness.faults_server PORT KEY LEDGER MODEL_FOLDER UPSTREAM_URL [GGUF]
"""

from __future__ import annotations

import sys
from pathlib import Path

from smallfirst.models.loading import load_model
from smallfirst.models.protocol import Model
from smallfirst.models.remote.model import EndpointConfig, EndpointModel
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel
from smallfirst.pricing.prices import PriceBook
from smallfirst.serving.app import serve
from smallfirst.serving.auth.keys import hash_key
from smallfirst.serving.ledger.ledger import Ledger
from smallfirst.serving.settings import ServeSettings


def main() -> None:
    """Serve until told to stop."""
    port, key, ledger, folder, upstream = int(sys.argv[1]), sys.argv[2], *sys.argv[3:6]
    prices = PriceBook()
    models: dict[str, Model] = {
        "small": load_model(Path(folder), name="small"),
        "upstream": EndpointModel(
            EndpointConfig(base_url=upstream, model="upstream", timeout_s=30, max_concurrency=64, priced_by="machine"),
            prices,
        ),
    }
    if len(sys.argv) > 6:
        models["engine"] = LlamaCppModel(LlamaCppConfig(path=Path(sys.argv[6]), slots=4, context_tokens=4096), prices)
    settings = ServeSettings(port=port, api_keys_sha256=(hash_key(key),), request_timeout_s=60)
    serve(models, ledger=Ledger(Path(ledger)), settings=settings)


if __name__ == "__main__":
    main()
