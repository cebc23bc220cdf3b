"""smallfirst: the smallest model that is proven good enough answers; everything else goes to the large one.

    task = smallfirst.init("tickets", from_="rows.csv")  # recognise the rows, write tickets/task.yaml
    print(smallfirst.check(task))                        # problems of the rows, and what a run can show
    summary = smallfirst.run(task)                       # train, measure, gate, promote, certify, report
    model = smallfirst.load("tickets@champion")
    model.predict("where is my card")
    model.predict_proba(["where is my card", "too many fees"])

Every step is also there by itself:
    Dataset ─ train ─▶ Run ─ evaluate ─▶ Evaluation ─ Gate.check ─▶ Verdict ─ register ─▶ ModelVersion
                                              │                                        │ load_model
                                              └── certify(small, large) ─▶ Certificate ▼
                                                       Router(small, large, certificate) ─ serve ─▶ Ledger

    rows and tasks    load_rows split Dataset Columns · Classify Extract Answer Chat
    stages of a task  read_task_file Project · check_stage train_stage evaluate_stage gate_stage promote_stage
                      calibrate_stage report_stage · RunSummary
    models            load_model find_weights EndpointModel Model Request Completion PriceBook
    training          TaskRecipe TrainConfig open_run train
    evaluation, gate  EvaluationSetup evaluate compare Evaluation Estimate · Gate Verdict
    registry          register promote rollback resolve
    routing, serving  Guarantee certify Certificate Router RouterOptions · ServeSettings Ledger serve

`dir(smallfirst)` has these and every type that they take or return; `help(smallfirst.NAME)` explains one. Names load on
first use: `import smallfirst` costs milliseconds.
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
    "data.quality.leaks": "LeakReport Leak PairLeaks",
    "data.quality.check": "CheckReport",
    "data.quality.findings": "Finding Location",
    "data.quality.independence": "CountedRows",
    "data.quality.lengths": "LengthSummary",
    "data.quality.overlaps": "Overlap",
    "tasks.answer": "Answer",
    "tasks.chat": "Chat",
    "tasks.classify": "Classify",
    "tasks.extract": "Extract",
    "tasks.task": "Task Shot ScoredAnswer PartCounts",
    "tasks.json.schema": "FieldSpec",
    # a task file and its stages
    "project.scaffold": "init",
    "project.task_file": "read_task_file TaskFile SignedOverride DataFiles EngineConfig LargeConfig RoutingConfig "
    "SmallConfig VllmSettings",
    "project.prompt_file": "Prompt PromptSearch",
    "project.project": "Project",
    "project.rows": "Rows",
    "project.run_folder": "RunFolder FittedCandidates GateVerdicts Promotion",
    "project.candidates": "Candidate CANDIDATES",
    "gate.outcome": "Outcome PlanTrial LabelsNeeded",
    "gate.routed": "RoutedThresholds",
    "pipeline.run": "check run",
    "pipeline.summary": "RunSummary OpenEndedRouting PathSummary RunError",
    "pipeline.preflight.certificate": "CertificateForecast",
    "pipeline.preflight.gate": "ThresholdForecast",
    "pipeline.preflight.large_model": "LargeForecast",
    "pipeline.preflight.more_rows": "MoreRows",
    "pipeline.preflight.memory": "MemoryForecast",
    "pipeline.next_step": "NextStep",
    "pipeline.preflight.check": "check_stage PreflightReport",
    "pipeline.train": "train_stage",
    "pipeline.evaluate": "evaluate_stage",
    "pipeline.release": "gate_stage promote_stage",
    "pipeline.calibrate": "calibrate_stage",
    "pipeline.report_data": "report_stage",
    "progress": "Progress ProgressCallback",
    "deployment.predictor": "load Predictor",
    # models
    "models.loading": "load_model",
    "models.catalog": "find_weights",
    "models.protocol": "Model Capability Request Completion Chunk Embeddings LabelScores RouteStep ResponseFormat "
    "Route Token",
    "models.remote.model": "EndpointModel",
    "models.remote.config": "EndpointConfig",
    "models.remote.http": "HttpSession HttpResponse",
    "models.manifest": "Manifest",
    "models.confidence": "Calibration IsotonicCurve",
    "models.remote.circuit_breaker": "CircuitBreakerConfig",
    "pricing.charge": "Charge",
    "pricing.machine": "MachinePrice",
    "pricing.prices": "PriceBook TokenPrice",
    "pricing.tokens": "TokenUsage",
    # training
    "training.run": "train Run",
    "training.config": "TrainConfig TeacherConfig",
    "training.recipes.recipe": "Recipe TaskRecipe PreparedData",
    "training.loop": "Backend StepMetrics",
    "training.optimizer": "MasterAdamW",
    "training.validation": "ValidationResult",
    "training.estimates.cost": "TrainingEstimate",
    "training.estimates.memory": "Range",
    "registry.runs": "open_run TrackedRun",
    # evaluation, gate and registry
    "evaluation.evaluate": "evaluate compare EvaluationSetup",
    "evaluation.results": "Evaluation EvaluatedRow Comparison",
    "stats.intervals": "Estimate",
    "evaluation.retention": "Retention RetentionByKind",
    "evaluation.llm_judge": "LLMJudge Judgment JudgeAgreement judge_agreement apply_judgments",
    "gate.gate": "Gate",
    "gate.verdict": "Verdict",
    "gate.check_result": "CheckResult",
    "registry.versions": "register promote rollback resolve ModelVersion",
    # routing and serving
    "routing.certificate.certificate": "certify Certificate StageThreshold",
    "routing.certificate.guarantee": "Guarantee",
    "routing.router": "Router",
    "routing.types": "Stage RouterOptions Decision OodDetector OodScore ConfidenceHead Acceptance OutOfScope",
    "routing.budget": "Budget",
    "routing.certificate.below_threshold": "Band",
    "routing.certificate.filters": "RequestFilters",
    "routing.certificate.guarantee_check": "GuaranteeCheck",
    "routing.certificate.units.per_group": "GroupCertificate",
    "routing.certificate.risks": "RiskResult",
    "routing.certificate.units.fields": "FieldCertificate KeptFields",
    "routing.certificate.units.shift": "weigh_rows WeightedRows TrafficShift",
    "routing.certificate.frontier": "FrontierPoint",
    "routing.certificate.outcomes": "ForeignAccepted",
    "routing.certificate.threshold_curve": "ThresholdPoint",
    "routing.monitoring.monitor": "MonitorSettings",
    "routing.policies.policy": "GainScorer Policy PolicyDecision",
    "serving.app": "serve",
    "serving.settings": "ServeSettings",
    "serving.plugins": "Plugin FileDownload PluginRequest PluginRoute TextResponse",
    "serving.auth.keys": "KeyStore ApiKey KeyPolicy",
    "serving.ledger.ledger": "Ledger StageTotals",
    "serving.ledger.rows": "LedgerRow AttemptRow FeedbackRow AuditRow DraftRow StateRow ExpenseRow",
    "serving.ledger.sums": "Sums",
    # all records
    "records": "Record",
}
"""Public names by module, in the order of the path."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = ["check", "init", "load", "run"]


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
    return sorted({*_MODULES, "__version__", *_interfaces()})


def _interfaces() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="smallfirst.interfaces")}
