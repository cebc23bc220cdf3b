"""Nine sets through `smallfirst run`: verdict, share small, share of the bill, promise, and the error on test rows.

    python -m benchmarks.routing.verdicts FOLDER SET            # run the set; FOLDER keeps state, so that it continues
    python -m benchmarks.routing.verdicts FOLDER SET --record   # only ask the large model (hours on two cores)
    python -m benchmarks.routing.verdicts FOLDER SET --again    # judge the latest run once more, with today's rules
    python -m benchmarks.routing.verdicts FOLDER                # write benchmarks/results/verdicts.md and .json

`--label before` names what is stored (default: after), so that an earlier checkout can judge the same measurements:
it runs the set, and `--again` with this one judges the same fitted candidates, rows and recorded answers. Sets are those
of benchmarks/sets, the demo and two with a hosted model's answers (`verdict_sets.py` says what is cut to fit into hours).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.routing import verdicts_page
from benchmarks.routing.verdict_sets import ORDER, task_file
from smallfirst.errors import GateFailed
from smallfirst.evaluation.results import Evaluation
from smallfirst.pipeline import run as pipeline
from smallfirst.pipeline.confidence_heads import HEADS, ConfidenceHeads, head_confidences, with_confidences
from smallfirst.pipeline.large_model import recorded_answers
from smallfirst.pipeline.router_setup import cascade_stages
from smallfirst.pipeline.summary import RunSummary, summarize_run
from smallfirst.progress import Progress
from smallfirst.project.candidates import get_candidate
from smallfirst.project.project import Project
from smallfirst.project.run_folder import Promotion, RunFolder
from smallfirst.registry import versions
from smallfirst.routing.certificate.certificate import Certificate
from smallfirst.stats.intervals import clopper_pearson, wilson

VERDICT = "verdict-{label}.json"


def run(folder: Path, name: str, *, label: str, again: bool) -> dict[str, Any]:
    """Run a set, or judge its latest run again; return its figures and store them in its folder."""
    file, began = task_file(name, folder), time.monotonic()
    pipeline.measure_curve = lambda *_: None  # type: ignore[assignment]  # takes minutes and is no part of a verdict
    error: BaseException | None = None
    if again:
        project, run_folder = Project.read(file, Progress()), RunFolder.latest(file.name)
        (run_folder.path.parent / "looks.json").unlink(missing_ok=True)  # each side is to be the first look
        for stale in (
            "certificate.json",
            "promoted.json",
            "verdicts.json",
            "outcome.json",
            "evaluation-routed-test.json",
        ):
            (run_folder.path / stale).unlink(missing_ok=True)
        try:
            pipeline.gate_and_release(project, run_folder)
        except GateFailed as refused:
            error = refused
        summary = summarize_run(file, run_folder, error)
    else:
        begun = RunFolder.unfinished(file.name) or RunFolder.without_report(file.name)
        summary, error = pipeline.try_run(file, progress=Progress(), resume=begun is not None)
        if error is not None and not isinstance(error, GateFailed):
            raise error
        project, run_folder = Project.read(file, Progress(quiet=True)), RunFolder.latest(file.name)
    print(summary)
    found = {
        "set": name,
        "label": label,
        "date": date.today().isoformat(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "rows": {part: len(getattr(project.rows, part)) for part in ("train", "selection", "calibration", "test")},
        "counted": project.rows.counted.in_words,
        "gate": {k: v for k, v in file.gate.model_dump(mode="json").items() if v not in (None, {})},
        "summary": json.loads(summary.model_dump_json(exclude={"report", "next_steps"})),
        "error": str(error) if error else "",
        **realised(project, run_folder, summary),
    }
    outcome = run_folder.path / "outcome.json"
    found["outcome"] = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else None
    (folder / VERDICT.format(label=label)).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def realised(project: Project, run_folder: RunFolder, summary: RunSummary) -> dict[str, Any]:
    """Return share kept and errors under the certificate on all test rows, whether or not the large model was asked."""
    certificate, promoted = summary.certificate, summary.promoted
    if certificate is None or promoted is None:
        return {"kept": None}
    test = run_folder.evaluation(promoted.candidate, "test")
    assert test is not None
    test = with_confidences(test, asyncio.run(_confidences(project, run_folder, promoted)))
    return {"kept": kept_under(certificate, test), "promised": certificate.max_error if certificate.issued else None}


def kept_under(certificate: Certificate, test: Evaluation) -> dict[str, Any]:
    """Return how many test answers the certificate covers, what happens to the others, and their errors."""
    actions = [certificate.decide(row.confidence, row.answer) for row in test.rows]
    kept = [row for row, action in zip(test.rows, actions, strict=True) if action == "keep_certified"]
    wrong = sum(not row.correct for row in kept)
    stays = sum(action in ("keep_certified", "keep") for action in actions)
    return {
        "n": len(test.rows),
        "n_certified": len(kept),
        "certified": wilson(len(kept), len(test.rows)).model_dump(),
        "small": wilson(stays, len(test.rows)).model_dump(),
        "n_wrong": wrong,
        "error": clopper_pearson(wrong, len(kept)).model_dump() if kept else None,
    }


async def _confidences(project: Project, run_folder: RunFolder, promoted: Promotion) -> dict[str, float]:
    """Return the heads' confidences on test rows of the stage that answers last; empty without a head."""
    heads = ConfidenceHeads.model_validate_json(
        versions.read_attachment(promoted.name, promoted.version, HEADS) or b"{}"
    )
    if not heads.by_stage:
        return {}
    stages = cascade_stages(project, run_folder, get_candidate(promoted.candidate).load(project, run_folder))
    try:
        found = await head_confidences(heads, stages, project.rows.test)
    finally:
        for stage in stages:
            await stage.model.aclose()
    return found.get(stages[-1].name, {})


def ask(folder: Path, name: str) -> None:
    """Ask the large model of a set for what is missing in its recording."""
    file = task_file(name, folder)
    project = Project.read(file, Progress())
    asyncio.run(recorded_answers(file, project.task, project.rows, progress=project.progress))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("set", nargs="?", choices=ORDER)
    asked.add_argument("--label", default="after")
    asked.add_argument("--again", action="store_true")
    asked.add_argument("--record", action="store_true")
    given = asked.parse_args()
    if given.set is None:
        return verdicts_page.write(given.folder)
    folder = (given.folder / given.set).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["SMALLFIRST_HOME"] = str(folder / "state")
    if given.record:
        return ask(folder, given.set)
    run(folder, given.set, label=given.label, again=given.again)
    return None


if __name__ == "__main__":
    main()
