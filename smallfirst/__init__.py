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

_MODULES = {
    "Answer": "tasks.answer",
    "Capability": "models.protocol",
    "Certificate": "routing.certificate.certificate",
    "Chat": "tasks.chat",
    "Chunk": "models.protocol",
    "Classify": "tasks.classify",
    "Completion": "models.protocol",
    "Dataset": "data.dataset",
    "EndpointConfig": "models.remote.config",
    "Evaluation": "evaluation.results",
    "EvaluationSetup": "evaluation.evaluate",
    "Extract": "tasks.extract",
    "Gate": "gate.gate",
    "Guarantee": "routing.certificate.guarantee",
    "LLMJudge": "evaluation.llm_judge",
    "Ledger": "serving.ledger.ledger",
    "Model": "models.protocol",
    "ModelVersion": "registry.versions",
    "Request": "models.protocol",
    "Router": "routing.router",
    "ServeSettings": "serving.settings",
    "SignedOverride": "project.task_file",
    "TaskFile": "project.task_file",
    "TrainConfig": "training.config",
    "Verdict": "gate.verdict",
    "apply_judgments": "evaluation.llm_judge",
    "certify": "routing.certificate.certificate",
    "compare": "evaluation.evaluate",
    "evaluate": "evaluation.evaluate",
    "judge_agreement": "evaluation.llm_judge",
    "load": "data.sources.load",
    "load_model": "models.loading",
    "read_task_file": "project.task_file",
    "resolve": "registry.versions",
    "run": "pipeline.run",
    "serve": "serving.app",
}
__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    """Load a public name, or an interface that an installed package registers under `smallfirst.interfaces`."""
    from smallfirst.errors import as_missing_extra

    try:
        if name in _MODULES:
            return getattr(importlib.import_module(f"smallfirst.{_MODULES[name]}"), name)
        if not name.startswith("_") and name in (interfaces := _interfaces()):
            return interfaces[name].load()
    except ModuleNotFoundError as error:
        raise as_missing_extra(error) from error
    raise AttributeError(f"module 'smallfirst' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*__all__, *_interfaces()})


def _interfaces() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="smallfirst.interfaces")}
