"""Nine sets through `smallfirst run`: verdict, share small, share of the bill, promise, and the error on test rows.

    python -m benchmarks.routing.verdicts FOLDER SET            # run the set; FOLDER keeps state, so that it continues
    python -m benchmarks.routing.verdicts FOLDER SET --record   # only ask the large model (hours on two cores)
    python -m benchmarks.routing.verdicts FOLDER SET --again    # judge the latest run once more, with today's rules
    python -m benchmarks.routing.verdicts FOLDER SET --mixed    # mix calibration and test rows of the run, and judge
    python -m benchmarks.routing.verdicts FOLDER SET --table T  # certify answers that benchmarks.routing.field_tables wrote
    python -m benchmarks.routing.verdicts FOLDER                # write benchmarks/results/verdicts.md and .json

`--label before` names what is stored (default: after), so that an earlier checkout can judge the same measurements:
it runs the set, and `--again` with this one judges the same fitted candidates, rows and recorded answers. Sets are those
of benchmarks/sets, the demo and two with a hosted model's answers (`verdict_sets.py` says what is cut to fit into hours).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
from smallfirst.routing.certificate.threshold_search import choose_starts, search_threshold
from smallfirst.stats.intervals import clopper_pearson, wilson

VERDICT = "verdict-{label}.json"
STALE = ("certificate.json", "promoted.json", "verdicts.json", "outcome.json", "kept.json", "heads.json")
"""What an earlier judgement left in a run folder."""


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
        (run_folder.path / "evaluations" / "routed-test.json").unlink(missing_ok=True)
        try:
            pipeline.gate_and_release(project, run_folder)
        except GateFailed as refused:
            error = refused
        summary = summarize_run(file, run_folder, error)
    else:
        begun = RunFolder.unfinished(file.name) or RunFolder.without_report(file.name)
        summary, error = pipeline.try_run(file, progress=Progress(), resume=begun is not None, despite_check=True)
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
    promised = certificate.guarantee.max_error if certificate.issued else None
    return {"kept": kept_under(certificate, test), "promised": promised}


def kept_under(certificate: Certificate, test: Evaluation) -> dict[str, Any]:
    """Return how many test answers the certificate covers, what happens to the others, and their errors."""
    covered = [certificate.covers(row.answer, row.confidence) for row in test.rows]
    actions = ["keep_certified" if one else certificate.below for one in covered]
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


def of_table(path: Path, folder: Path, name: str, label: str) -> None:
    """Certify and judge the answers that `benchmarks.routing.field_tables` or `invoice_fields` wrote, not a run's.

    Certified on the rows of `validation` and judged on those of `test`; where there are only `known` rows, of layouts that
    the candidate learned from, a third of them certify.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[Answer]] = {}
    for row in lines:
        usd = row.get("large", {}).get("cost_usd", 0.0)
        found.setdefault(row["part"], []).append(Answer(row["key"], row["confidence"], row["correct"], usd))
    if "test" in found:
        return store_judged(found["validation"], found["test"], folder, name, label)
    rows = sorted(found["known"], key=place)
    return store_judged(rows[: len(rows) // 3], rows[len(rows) // 3 :], folder, name, label)


def of_mixed_rows(folder: Path, name: str, label: str) -> None:
    """Judge a set whose calibration and test rows are mixed and cut again, so that both hold the same kinds of request.

    The candidate is the one that was tried last in the latest run.
    """
    run_folder = RunFolder.latest(name)
    found = [run_folder.evaluation("encoder", split) for split in ("calibration", "test")]
    answers = {row.key: Answer(row.key, row.confidence or 0.0, row.correct) for one in found if one for row in one.rows}
    n = len(found[0].rows) if found[0] else 0
    rows = sorted(answers.values(), key=place)
    store_judged(rows[:n], rows[n:], folder, name, label)


class Answer(NamedTuple):
    """One answer of a candidate."""

    key: str
    confidence: float
    correct: bool
    large_usd: float = 0.0
    """What the large model's answer to the same row cost."""


def place(answer: Answer) -> str:
    """Return a row's place in a draw, whatever other rows there are."""
    return hashlib.sha256(answer.key.encode()).hexdigest()


def store_judged(held: Sequence[Answer], test: Sequence[Answer], folder: Path, name: str, label: str) -> None:
    """Certify on `held` rows, a fifth of them for choosing, judge on `test` rows, and store the figures."""
    n, guarantee = len(held) // 5, task_file(name, folder).routing.guarantee
    held = sorted(held, key=place)
    said, right = np.array([row.confidence for row in held]), np.array([row.correct for row in held])
    limit, level = guarantee.max_error or 0.0, 1 - guarantee.confidence
    starts = choose_starts(said[:n], right[:n], len(held) - n, limit, level)
    threshold = search_threshold(said[n:].tolist(), right[n:].tolist(), guarantee, starts).threshold
    kept = [row for row in test if row.confidence >= threshold]
    wrong = sum(not row.correct for row in kept)
    usd, sent_usd = (sum(row.large_usd for row in rows) for rows in (test, [row for row in test if row not in kept]))
    found = {
        "set": name,
        "label": label,
        "promised": guarantee.max_error if kept else None,
        "bill": sent_usd / usd if usd else None,
        "rows": {"selection": n, "calibration": len(held) - n, "test": len(test)},
        "accuracy": wilson(sum(row.correct for row in test), len(test)).model_dump(),
        "kept": {
            "n_certified": len(kept),
            "small": wilson(len(kept), len(test)).model_dump(),
            "n_wrong": wrong,
            "error": clopper_pearson(wrong, len(kept)).model_dump() if kept else None,
        },
    }
    (folder / f"table-{label}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(json.dumps(found))


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
    asked.add_argument("--table", type=Path)
    asked.add_argument("--mixed", action="store_true")
    given = asked.parse_args()
    if given.set is None:
        return verdicts_page.write(given.folder)
    folder = (given.folder / given.set).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["SMALLFIRST_HOME"] = str(folder / "state")
    if given.record:
        return ask(folder, given.set)
    if given.table:
        return of_table(given.table, folder, given.set, given.label)
    if given.mixed:
        return of_mixed_rows(folder, given.set, given.label)
    run(folder, given.set, label=given.label, again=given.again)
    return None


if __name__ == "__main__":
    main()
