"""smallfirst: the smallest model that is proven good enough answers; everything else goes to the big one.

    Dataset ─ train ─▶ Run ─ evaluate ─▶ Evaluation ─ check ─▶ Verdict ─ register ─▶ ModelVersion
                                              │                                        │ load
                                              └── certify(small, large) ─▶ Certificate ▼
                                                       Router(small, large, certificate) ─ serve ─▶ Ledger ─▶ report

Public names load on first use, so `import smallfirst` costs milliseconds and loads neither torch nor MLflow.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Answer": "tasks.answer",
    "Certificate": "routing.certificate.certificate",
    "Chat": "tasks.chat",
    "Classify": "tasks.classify",
    "Dataset": "data.dataset",
    "Evaluation": "evaluation.results",
    "Extract": "tasks.extract",
    "Gate": "gate.gate",
    "Guarantee": "routing.certificate.certificate",
    "Router": "routing.router",
    "TaskFile": "project.task_file",
    "TrainConfig": "training.config",
    "Verdict": "gate.gate",
    "certify": "routing.certificate.certificate",
    "compare": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "load": "data.sources.text_files",
    "open_source": "data.sources.resolve",
    "load_model": "models.loading",
    "read_task_file": "project.task_file",
    "run": "pipeline.run",
    "serve": "serving.app",
}
_MODULES = {"foundation_model": "interfaces.databricks.foundation_model"}
__all__ = sorted([*_HOMES, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"smallfirst.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'smallfirst' has no attribute '{name}'")
    return getattr(importlib.import_module(f"smallfirst.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
