"""The evaluation stage: every candidate, the large model and later the Router measured on the same rows."""

from __future__ import annotations

import asyncio

from smallfirst.data.dataset import Dataset, sample_rows
from smallfirst.measuring.evaluate import Evaluation, EvaluationSetup, evaluate, score_row, summarize
from smallfirst.models.local.weights import release_memory
from smallfirst.models.protocol import Model, Request
from smallfirst.models.wrappers import OpenEndedReplay
from smallfirst.path.confidence_heads import ConfidenceHeads, is_correct
from smallfirst.path.large_model import forecast_large, recorded_answers, recorded_open_answers
from smallfirst.path.plans.joined_rows import fix_before_test
from smallfirst.path.plans.worth import CHOOSING, fix_finalists
from smallfirst.path.project.candidates import Candidate, fitted_candidates, get_candidate
from smallfirst.path.project.project import Project, in_task_state
from smallfirst.path.project.run_folder import RunFolder
from smallfirst.path.report.data import OpenEndedRouting
from smallfirst.path.router_setup import cascade_stages, load_ood_detector, routing_rules
from smallfirst.path.summary import KEPT, OPEN_ENDED, KeptOnTest
from smallfirst.registry.evaluations import log_evaluation
from smallfirst.routing.acceptance import split_foreign
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.router import Router

COST_ROWS = 200
"""Rows that a candidate which was fitted on them is asked for its cost."""
PROBE_ROWS, LIMITED_PROBE_ROWS = 40, 300
"""Rows answered one at a time for the latency figures; where one is limited the upper end of a p95 takes 72 to 140."""
AT_ONCE = 64
"""Rows that the Router decides about together."""


@in_task_state
def evaluate_stage(project: Project, run_folder: RunFolder, *, resume: bool = False) -> list[Evaluation]:
    """Choose the finalists, measure them and the large model on held-out rows; return the evaluations on test rows.

    Candidates that cannot go live are measured as well, on test rows alone. `resume` leaves out what is measured on
    these rows already.
    """
    fitted = fitted_candidates(project, run_folder)
    for candidate in fitted:
        if candidate.promotable and not (resume and _has_chosen(project, run_folder, candidate)):
            asyncio.run(_evaluate_to_choose(project, run_folder, candidate))
    if project.file.large is not None:
        forecast = forecast_large(project.file, project.task, project.rows)
        project.progress.log(f"large model: {forecast.in_words if forecast else 'not asked'}")
        asyncio.run(_evaluate_large(project, run_folder, "calibration"))
    finalists = fix_finalists(project, run_folder)
    fix_before_test(project, run_folder)
    project.progress.log(f"finalists: {', '.join(finalists.names)}")
    wanted = {*finalists.names, *project.file.routing.ahead}
    for candidate in fitted:
        if candidate.promotable and candidate.name not in wanted:
            continue
        if resume and _is_measured(project, run_folder, candidate):
            continue
        with project.progress.step(f"measuring {candidate.title}"):
            asyncio.run(_evaluate_candidate(project, run_folder, candidate))
        release_memory()
    if project.file.large is not None:
        asyncio.run(_evaluate_large(project, run_folder, "test"))
    return run_folder.evaluations("test")


async def measure_router(
    project: Project, run_folder: RunFolder, certificate: Certificate, heads: ConfidenceHeads, *, candidate: str
) -> None:
    """Measure the Router over `candidate` on test rows and on open-ended requests that no detector was fitted on."""
    file, rows, test = project.file, project.rows, project.rows.test
    large = general = None
    if file.large is not None:
        large = await recorded_answers(file, project.task, rows, progress=project.progress)
        open_answers = await recorded_open_answers(file, rows, progress=project.progress)
        general = OpenEndedReplay(open_answers, large) if open_answers else None
    detector = load_ood_detector(file, run_folder, heads)
    # All test rows would fall into one window of a budget.
    options = routing_rules(file, None, run_folder.path)._replace(budget=None)
    stages = heads.on(cascade_stages(project, run_folder, get_candidate(candidate).load(project, run_folder)))
    router = Router(stages, large, certificate, general=general, ood_detector=detector, options=options, name=file.name)
    asked = test
    if file.large is not None and (certificate.below == "escalate" or detector is not None or file.routing.policies):
        # Only rows that the large model was asked can be answered from its recording.
        asked = sample_rows(test, file.large.sample("test"))
    try:
        await _evaluate(project, run_folder, router, name="routed", data=asked, split="test", probe_rows=PROBE_ROWS)
        await _count_kept(project, run_folder, router)
        if rows.open_ended is not None and detector is not None and general is not None:
            await _count_open_ended(project, run_folder, router, split_foreign(rows.open_ended)[1])
    finally:
        await router.aclose()


def _parts(project: Project, candidate: Candidate) -> dict[str, Dataset]:
    """Return the rows on which a candidate is measured, by split."""
    rows = project.rows
    test = sample_rows(rows.test, candidate.max_test_rows(project.file))
    return {"calibration": rows.calibration, "test": test} if candidate.promotable else {"test": test}


def _has_chosen(project: Project, run_folder: RunFolder, candidate: Candidate) -> bool:
    folds = run_folder.folds(candidate.name)
    found = run_folder.evaluation(candidate.name, "selection" if folds is None else CHOOSING)
    wanted = project.rows.selection.content_fingerprint if folds is None else folds.dataset_fingerprint
    return found is not None and found.dataset_fingerprint == wanted


async def _evaluate_to_choose(project: Project, run_folder: RunFolder, candidate: Candidate) -> None:
    """Measure a candidate on the rows that choose: by its folds' answers, if it has any, else on selection rows.

    The final model, which has seen the rows of the folds, is asked some of them for its cost alone.
    """
    model, folds, rows = candidate.load(project, run_folder), run_folder.folds(candidate.name), project.rows.selection
    try:
        if folds is None:
            await _evaluate(project, run_folder, model, name=candidate.name, data=rows, split="selection")
            return
        rows = project.rows.development
        asked = EvaluationSetup(project.task, sample_rows(rows, COST_ROWS), split=CHOOSING)
        priced = await evaluate(model, asked, candidate=candidate.name)
    finally:
        await model.aclose()
    found = summarize(
        [
            score_row(example, answer, project.task, candidate.name)
            for example, answer in zip(rows.examples, folds.completions(candidate.name), strict=True)
        ],
        EvaluationSetup(project.task, rows, split=CHOOSING),
        candidate=candidate.name,
        model=priced.model,
        latencies_ms=[],
        requests_per_s=None,
        note=f"{len(rows):,} training and selection rows answered out of fold, {folds.n_folds} folds",
    )
    found = found.model_copy(update={"cost_usd_per_1k": priced.cost_usd_per_1k})
    run_folder.save_evaluation(found)
    log_evaluation(run_folder.mlflow_run_id(), found)
    project.progress.log(f"{candidate.name} out of fold: {found.in_words}")


def _is_measured(project: Project, run_folder: RunFolder, candidate: Candidate) -> bool:
    parts = _parts(project, candidate)
    found = {split: run_folder.evaluation(candidate.name, split) for split in parts}
    return all(one and one.dataset_fingerprint == parts[split].content_fingerprint for split, one in found.items())


async def _evaluate_candidate(project: Project, run_folder: RunFolder, candidate: Candidate) -> None:
    model = candidate.load(project, run_folder)
    try:
        for split, data in _parts(project, candidate).items():
            await _evaluate(
                project,
                run_folder,
                model,
                name=candidate.name,
                data=data,
                split=split,
                probe_rows=_n_probes(project, split) if candidate.promotable else PROBE_ROWS,
            )
    finally:
        await model.aclose()


def _n_probes(project: Project, split: str) -> int:
    limited = split == "test" and (project.file.gate.p50_ms_at_most or project.file.gate.p95_ms_at_most)
    return LIMITED_PROBE_ROWS if limited else PROBE_ROWS


async def _evaluate_large(project: Project, run_folder: RunFolder, split: str) -> None:
    assert project.file.large is not None
    large = await recorded_answers(project.file, project.task, project.rows, progress=project.progress)
    data = sample_rows(getattr(project.rows, split), project.file.large.sample(split))
    await _evaluate(project, run_folder, large, name="large", data=data, split=split, note=large.note)


async def _evaluate(
    project: Project,
    run_folder: RunFolder,
    model: Model,
    *,
    name: str,
    data: Dataset,
    split: str,
    probe_rows: int = 0,
    note: str = "",
) -> None:
    with project.progress.bar(f"evaluating {name} on {split}", len(data)) as update:
        setup = EvaluationSetup(project.task, data, split=split, progress=update)
        found = await evaluate(model, setup, candidate=name, probe_rows=probe_rows, note=note)
    run_folder.save_evaluation(found)
    log_evaluation(run_folder.mlflow_run_id(), found)
    project.progress.log(f"{name} on {split}: {found.in_words}")


async def _count_kept(project: Project, run_folder: RunFolder, router: Router) -> None:
    """Save how many of all test rows the certificate covers, and how many of these are wrong."""
    routed, examples = run_folder.evaluation("routed", "test"), project.rows.test.examples
    assert routed is not None
    known = {row.key: (row.certified, row.correct) for row in routed.rows}
    missing = [example for example in examples if example.key not in known]
    for start in range(0, len(missing), AT_ONCE):
        part = missing[start : start + AT_ONCE]
        decided = await asyncio.gather(*(router.decide(Request(messages=e.messages)) for e in part))
        for example, decision in zip(part, decided, strict=True):
            right = decision.draft is not None and is_correct(project, example.golds, decision.draft)
            known[example.key] = decision.route.certified, right
    kept = [correct for example in examples for certified, correct in [known[example.key]] if certified]
    KeptOnTest(n_rows=len(examples), n_kept=len(kept), n_wrong=kept.count(False)).save(run_folder.path / KEPT)


async def _count_open_ended(project: Project, run_folder: RunFolder, router: Router, requests: Dataset) -> None:
    completions = [await router.complete(Request(messages=e.messages)) for e in requests.examples]
    n_to_large = sum(c.route is not None and c.route.stage == "large" for c in completions)
    OpenEndedRouting(n_requests=len(requests), n_to_large=n_to_large).save(run_folder.path / OPEN_ENDED)
    project.progress.log(f"open-ended requests sent to the large model: {n_to_large} of {len(requests)}")
