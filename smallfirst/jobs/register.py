"""Register a finished job's model once, with a verdict signed by the user who submitted the job.

A job declares no gate, so the verdict holds one failed check, and the version is not live until it is promoted.
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
    """Return the registered version, also if an earlier, killed process registered it. Raise RegistryError."""
    version = _find_registered(job)
    if version is None:
        spec = job.spec
        tags = {"task": spec.name, "job": spec.name, "base": spec.model, "recipe": spec.recipe}
        verdict = _signed_verdict(job)
        version = versions.register(run.folder, verdict, name=spec.register_to, run_id=run.run_id, tags=tags).version
    result = JobResult(model=job.spec.register_to, version=version, best_epoch=run.best_epoch)
    result.save(job.folder / "result.json")
    return result


def _find_registered(job: JobFolder) -> int | None:
    try:
        registered = versions.list_versions(job.spec.register_to)
    except RegistryError:  # no model has this name yet
        return None
    return next((v.version for v in registered if v.tags.get("job") == job.name), None)


def _signed_verdict(job: JobFolder) -> Verdict:
    check = CheckResult(
        requirement="a gate",
        measured="none was declared",
        passed=False,
        advice="declare one in a task.yaml and measure this model before it goes live",
    )
    verdict = Verdict(candidate="small", checks=(check,), passed=False, evaluation_fingerprint="")
    return override(verdict, by=job.spec.created_by, because=NO_GATE)
