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

_NAMES = {
    # rows and tasks
    "data.sources.load": "load_rows",
    "data.dataset": "split Dataset Example Message Splits",
    "data.row_formats": "Columns",
    "data.quality.leaks": "LeakReport",
    "tasks.answer": "Answer",
    "tasks.chat": "Chat",
    "tasks.classify": "Classify",
    "tasks.extract": "Extract",
    "tasks.task": "Task Shot ScoredAnswer PartCounts",
    "tasks.json.schema": "FieldSpec",
    # a task file and its stages
    "project.scaffold": "init",
    "project.task_file": "read_task_file TaskFile SignedOverride",
    "project.project": "Project",
    "project.rows": "Rows",
    "project.run_folder": "RunFolder FittedCandidates GateVerdicts Promotion",
    "project.candidates": "Candidate CANDIDATES",
    "pipeline.run": "check run",
    "pipeline.summary": "RunSummary",
    "pipeline.preflight.check": "check_stage PreflightReport",
    "pipeline.train": "train_stage",
    "pipeline.evaluate": "evaluate_stage",
    "pipeline.release": "gate_stage promote_stage",
    "pipeline.calibrate": "calibrate_stage",
    "pipeline.report_data": "report_stage",
    "progress": "Progress ProgressCallback",
    # models
    "models.loading": "load_model",
    "models.catalog": "find_weights",
    "models.protocol": "Model Capability Request Completion Chunk Embeddings LabelScores RouteStep",
    "models.remote.model": "EndpointModel",
    "models.remote.config": "EndpointConfig",
    "models.remote.http": "HttpSession HttpResponse",
    "models.manifest": "Manifest",
    "pricing": "MachinePrice PriceBook",
    # training
    "training.run": "train Run",
    "training.config": "TrainConfig TeacherConfig",
    "training.recipes.recipe": "Recipe TaskRecipe PreparedData",
    "training.loop": "Backend StepMetrics",
    "training.optimizer": "MasterAdamW",
    "training.validation": "ValidationResult",
    "registry.runs": "open_run TrackedRun",
    # evaluation, gate and registry
    "evaluation.evaluate": "evaluate compare EvaluationSetup",
    "evaluation.results": "Evaluation EvaluatedRow Comparison",
    "stats.intervals": "Estimate",
    "evaluation.retention": "Retention",
    "evaluation.llm_judge": "LLMJudge Judgment JudgeAgreement judge_agreement apply_judgments",
    "gate.gate": "Gate",
    "gate.verdict": "Verdict",
    "gate.check_result": "CheckResult",
    "registry.versions": "register promote rollback resolve ModelVersion",
    # routing and serving
    "routing.certificate.certificate": "certify Certificate",
    "routing.certificate.guarantee": "Guarantee",
    "routing.router": "Router",
    "routing.types": "Stage RouterOptions Decision OodDetector OodScore",
    "serving.app": "serve",
    "serving.settings": "ServeSettings",
    "serving.plugins": "Plugin",
    "serving.auth.keys": "KeyStore ApiKey KeyPolicy",
    "serving.ledger.ledger": "Ledger StageTotals",
    "serving.ledger.rows": "LedgerRow AttemptRow FeedbackRow AuditRow DraftRow StateRow",
    # all records
    "records": "Record",
}
"""Public names by module, in the order of the path."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
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
