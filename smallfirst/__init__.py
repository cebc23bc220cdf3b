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
                                              └── certify(rows, …)  ─▶  Certificate ▼
                                                       Router(small, large, certificate) ─ serve ─▶ Ledger

    rows and tasks    load_rows split Dataset Columns · Classify Extract Answer Chat
    stages of a task  read_task_file Project · check_stage train_stage evaluate_stage gate_stage promote_stage
                      calibrate_stage report_stage · RunSummary
    models            load_model find_weights EndpointModel Model Request Completion PriceBook
    training          TaskRecipe TrainConfig open_run train
    evaluation, gate  EvaluationSetup evaluate compare Evaluation Estimate · Gate Verdict
    registry          register promote rollback resolve
    routing, serving  Guarantee CalibrationSet certify Certificate Router RouterOptions · ServeSettings Ledger serve

`dir(smallfirst)` has these and every type that they take or return; `help(smallfirst.NAME)` explains one. Names load on
first use: `import smallfirst` costs milliseconds.
"""

from __future__ import annotations

import importlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

# Threads of OpenMP that wait spin for some milliseconds, and take the processor from those that work. Ten thousand
# turns double what a fine-tune gets on a busy machine and cost up to 7 % on a quiet one
# (benchmarks/results/busy_machine.md). PyTorch and scikit-learn read this as they load; what is set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.2.0"

__all__ = ["check", "init", "load", "run"]


def __getattr__(name: str) -> Any:
    """Load a public name, or an interface that an installed package registers under `smallfirst.interfaces`."""
    from smallfirst.base.errors import as_missing_extra

    try:
        if name in _modules():
            return getattr(importlib.import_module(_modules()[name]), name)
        if not name.startswith("_") and name in (interfaces := _interfaces()):
            return interfaces[name].load()
    except ModuleNotFoundError as error:
        raise as_missing_extra(error) from error
    raise AttributeError(f"module 'smallfirst' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*_modules(), "__version__", *_interfaces()})


@cache
def _modules() -> dict[str, str]:
    """Return the module of each public name, as `__init__.pyi` imports them for type checkers and editors."""
    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    found = re.findall(r"^from (smallfirst\S+) import (\w+) as \2$", stub, re.MULTILINE)
    return {name: module for module, name in found}


def _interfaces() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="smallfirst.interfaces")}
