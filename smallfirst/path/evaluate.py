"""The evaluation stage: every candidate, the large model and later the Router measured on the same rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from smallfirst.data.dataset import Dataset, Example, sample_rows
from smallfirst.measuring.evaluate import Evaluation, EvaluationSetup, evaluate, score_row, summarize
from smallfirst.models.local.weights import release_memory
from smallfirst.models.protocol import Model, Request, Route
from smallfirst.models.stages import Answerer, answerer
from smallfirst.path.finalists import CHOOSING, fix_before_test, fix_finalists
from smallfirst.path.large_model import forecast_large, recorded_answers, recorded_open_answers
from smallfirst.path.project.candidates import Candidate, fitted_candidates, get_candidate
from smallfirst.path.project.project import Project, shown_as
from smallfirst.path.project.run_folder import DOMAIN, KEPT, DomainCounts, KeptOnTest, RunFolder
from smallfirst.path.router_setup import RouterParts, cascade_stages, is_correct, load_ood_detector, routing_rules
from smallfirst.registry.runs import log_evaluation
from smallfirst.routing.acceptance import foreign_rows
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.routing.domain import TaskProfile
from smallfirst.routing.router import Router, seems_foreign, took_cascade

COST_ROWS = 200
"""Rows that a candidate which was fitted on them is asked for its cost."""
PROBE_ROWS, LIMITED_PROBE_ROWS = 40, 300
"""Rows answered one at a time for the latency figures; where one is limited the upper end of a p95 takes 72 to 140."""


@shown_as("")
def evaluate_stage(project: Project, run_folder: RunFolder, *, resume: bool = False) -> list[Evaluation]:
    """Choose the finalists, measure them and the large model on held-out rows; return the evaluations on test rows.

    `resume` leaves out what is measured on these rows already.
    """
    fitted, progress = fitted_candidates(project, run_folder), project.progress
    for candidate in fitted:
        if not (resume and _has_chosen(project, run_folder, candidate)):
            asyncio.run(_evaluate_to_choose(project, run_folder, candidate))
    if project.file.large is not None:
        forecast = forecast_large(project.file, project.task, project.rows)
        progress.log(f"large model: {forecast.in_words if forecast else 'not asked'}")
        asyncio.run(_evaluate_large(project, run_folder, "calibration"))
    finalists = fix_finalists(project, run_folder)
    fix_before_test(project, run_folder)
    progress.log(f"finalists: {', '.join(finalists.names)}")
    wanted = {*finalists.names, *project.file.routing.ahead}
    for candidate in fitted:
        if candidate.name not in wanted:
            continue
        parts = {"calibration": project.rows.calibration, "test": project.rows.test}
        if resume and all(_is_measured(run_folder, candidate.name, split, data) for split, data in parts.items()):
            continue
        with progress.step(f"measuring {candidate.title}"):
            asyncio.run(_evaluate_candidate(project, run_folder, candidate, parts))
        release_memory()
    if project.file.large is not None:
        asyncio.run(_evaluate_large(project, run_folder, "test"))
    return run_folder.evaluations("test")


async def measure_router(
    project: Project, run_folder: RunFolder, certificate: Certificate, parts: RouterParts, *, candidate: str
) -> None:
    """Measure the Router over `candidate` on test rows, and the domain check on foreign rows that did not fit it."""
    file, rows, test = project.file, project.rows, project.rows.test
    large = general = None
    if file.large is not None:
        large = await recorded_answers(file, project.task, rows, progress=project.progress)
        open_answers = await recorded_open_answers(file, rows, progress=project.progress)
        general = open_answers.with_silence_on(large) if open_answers else None
    options = routing_rules(file, None, run_folder.path)
    stages = parts.on(cascade_stages(project, run_folder, get_candidate(candidate).load(project, run_folder)))
    detector = load_ood_detector(file, run_folder, parts, stages[-1].model)
    router = Router(stages, large, certificate, general=general, ood_detector=detector, options=options, name=file.name)
    asked = test
    if file.large is not None and (certificate.below == "escalate" or detector is not None or file.routing.policies):
        # Only rows that the large model was asked can be answered from its recording.
        asked = sample_rows(test, file.large.sample("test"))
    try:
        await _evaluate(project, run_folder, router, name="routed", data=asked, split="test", probe_rows=PROBE_ROWS)
        await _count_kept(project, run_folder, router)
        if detector is not None:
            await _count_foreign(project, run_folder, router, detector.profile, candidate)
    finally:
        await router.aclose()


def _is_measured(run_folder: RunFolder, candidate: str, split: str, data: Dataset) -> bool:
    found = run_folder.evaluation(candidate, split)
    return found is not None and found.dataset_fingerprint == data.content_fingerprint


def _has_chosen(project: Project, run_folder: RunFolder, candidate: Candidate) -> bool:
    parts = {CHOOSING: project.rows.development, "selection": project.rows.selection}
    return any(_is_measured(run_folder, candidate.name, split, data) for split, data in parts.items())


async def _evaluate_to_choose(project: Project, run_folder: RunFolder, candidate: Candidate) -> None:
    """Measure a candidate on the rows that choose: by its folds' answers, if it has any, else on selection rows.

    The final model, which has seen the rows of the folds, is asked some of them for its cost alone.
    """
    model, folds, name = candidate.load(project, run_folder), run_folder.folds(candidate.name), candidate.name
    try:
        if folds is None:
            await _evaluate(project, run_folder, model, name=name, data=project.rows.selection, split="selection")
            return
        rows = project.rows.development
        asked = EvaluationSetup(project.task, sample_rows(rows, COST_ROWS), split=CHOOSING)
        priced = await evaluate(model, asked, candidate=name)
    finally:
        await model.aclose()
    answers = zip(rows.examples, folds.completions(name), strict=True)
    found = summarize(
        [score_row(example, answer, project.task, name) for example, answer in answers],
        EvaluationSetup(project.task, rows, split=CHOOSING),
        candidate=name,
        model=priced.model,
        latencies_ms=[],
        requests_per_s=None,
        note=f"{len(rows):,} training and selection rows answered out of fold, {folds.n_folds} folds",
    )
    _keep(project, run_folder, found.model_copy(update={"cost_usd_per_1k": priced.cost_usd_per_1k}))


async def _evaluate_candidate(
    project: Project, run_folder: RunFolder, candidate: Candidate, parts: dict[str, Dataset]
) -> None:
    gate, model = project.file.gate, candidate.load(project, run_folder)
    try:
        for split, data in parts.items():
            probe_rows = LIMITED_PROBE_ROWS if gate.p95_ms_at_most and split == "test" else PROBE_ROWS
            named = {"name": candidate.name, "split": split}
            await _evaluate(project, run_folder, model, **named, data=data, probe_rows=probe_rows)
    finally:
        await model.aclose()


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
        _keep(project, run_folder, await evaluate(model, setup, candidate=name, probe_rows=probe_rows, note=note))


def _keep(project: Project, run_folder: RunFolder, found: Evaluation) -> None:
    run_folder.save_evaluation(found)
    log_evaluation(run_folder.mlflow_run_id(), found)
    project.progress.log(f"{found.candidate} on {found.split} rows: {found.in_words}")


async def _count_kept(project: Project, run_folder: RunFolder, router: Router) -> None:
    """Save how many test rows the certificate covers, of all that have an answer, and how many of these are wrong."""
    routed, examples = run_folder.evaluation("routed", "test"), project.rows.test.examples
    assert routed is not None
    known = {row.key: (row.certified, row.correct) for row in routed.rows}
    missing = [example for example in examples if example.key not in known]
    decided = await asyncio.gather(*(router.decide(Request(messages=e.messages)) for e in missing))
    for example, decision in zip(missing, decided, strict=True):
        right = decision.draft is not None and is_correct(project, example.golds, decision.draft)
        known[example.key] = decision.route.certified, right
    kept = [correct for example in examples for certified, correct in [known[example.key]] if certified]
    n_due = sum(example.answer != project.task.no_answer for example in examples)
    KeptOnTest(n_rows=max(n_due, len(kept)), n_kept=len(kept), n_wrong=kept.count(False)).save(run_folder.path / KEPT)


async def _count_foreign(
    project: Project, run_folder: RunFolder, router: Router, profile: TaskProfile, candidate: str
) -> None:
    """Save what the domain check refuses of own test rows and of foreign rows that nothing was fitted on."""
    rows, alone, fitted = project.rows, run_folder.evaluation(candidate, "test"), profile.parameters
    foreign, source = rows.foreign_test, "test rows out of scope"
    if not foreign.examples:
        foreign = foreign_rows(rows.open_ended)[1]
        source = "generic requests" if rows.open_ended is None else "open-ended requests"

    async def answers(examples: Sequence[Example]) -> list[str]:
        """Return what each row gets; empty for a refused one."""
        decided = await asyncio.gather(*(router.decide(Request(messages=e.messages)) for e in examples))
        return [_answer_in_words(decision.route) for decision in decided]

    measured = zip(rows.test.examples, profile.measure_rows(rows.test), strict=True)
    beyond = [example for example, found in measured if found.ood_score > profile.threshold]
    refused = [example.key for example, said in zip(beyond, await answers(beyond), strict=True) if not said]
    said = Counter(await answers(foreign.examples))
    n_caught = said.pop("", 0)
    counts = DomainCounts(
        declared=project.file.routing.domain.refuse_own_at_most,
        n_fitted=fitted.n_own,
        n_fitted_beyond=fitted.n_beyond,
        n_own=len(rows.test),
        n_own_refused=len(refused),
        n_own_refused_right=sum(alone.by_key[key].correct for key in refused) if alone else 0,
        foreign_from=source,
        n_foreign=len(foreign),
        n_caught=n_caught,
        uncaught=dict(said.most_common()),
    )
    counts.save(run_folder.path / DOMAIN)
    for line in counts.in_words:
        project.progress.log(line)


_OTHERS = {
    Answerer.LARGE: "the large model",
    Answerer.GENERAL: "the general model",
    Answerer.PERSON: "a person",
}


def _answer_in_words(route: Route) -> str:
    if seems_foreign(route.trail) and not took_cascade(route):
        return ""
    if model := _OTHERS.get(answerer(route.stage)):
        return f"go to {model} as own ones"
    return f"are answered {'under the' if route.certified else 'without a'} promise"
