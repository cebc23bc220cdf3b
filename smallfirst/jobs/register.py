"""A finished job's model in the registry, once, signed for by the one who asked for it.

A job declares no gate, so nothing was proven about its model. The registry says so: the verdict holds one missed bar
and a signature. Such a version is not live until somebody promotes it.
"""

from __future__ import annotations

from smallfirst.errors import RegistryError
from smallfirst.gate.check_result import CheckResult
from smallfirst.gate.verdict import Verdict, override
from smallfirst.jobs.job_folder import JobFolder
from smallfirst.jobs.spec import JobResult
from smallfirst.registry import versions
from smallfirst.training.run import Run

NO_GATE = "no gate was declared"


def register_model(job: JobFolder, run: Run) -> JobResult:
    """The registered version; one that an earlier, killed process registered is found again. Raises RegistryError."""
    version = _registered_before(job)
    if version is None:
        order = job.order
        tags = {"task": order.name, "job": order.name, "base": order.model, "lesson": order.lesson}
        verdict = _signed(job)
        version = versions.register(run.folder, verdict, name=order.register_to, run_id=run.run_id, tags=tags).version
    result = JobResult(model=job.order.register_to, version=version, best_epoch=run.best_epoch)
    result.save(job.folder / "result.json")
    return result


def _registered_before(job: JobFolder) -> int | None:
    try:
        registered = versions.list_versions(job.order.register_to)
    except RegistryError:  # nothing has this name yet
        return None
    return next((v.version for v in registered if v.tags.get("job") == job.name), None)


def _signed(job: JobFolder) -> Verdict:
    check = CheckResult(
        requirement="a gate",
        measured="none was declared",
        passed=False,
        advice="declare one in a task.yaml and measure this model before it goes live",
    )
    verdict = Verdict(candidate="small", checks=(check,), passed=False, evaluation_fingerprint="")
    return override(verdict, by=job.order.created_by, because=NO_GATE)
