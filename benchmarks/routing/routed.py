"""Banking77 end to end: accuracy and cost of the small model, the large one and the routed path at several guarantees.

    python -m benchmarks.routing.routed record 900     # ask the large model; takes hours on two cores, continues where it stopped
    python -m benchmarks.routing.routed                # certificates from validation rows, figures on test rows: a minute

Needs a finished `python -m benchmarks.accuracy.run banking77`. The large model takes about ten seconds a row here, so it is
asked in an order that was fixed before any of its answers was seen: calibration rows the small model is least sure of
and 100 drawn by content hash, 200 test rows drawn so, then the test rows with a confidence under 0.7 and under 0.9.
Certificates are made from calibration rows alone. A routed answer on a test row is the small model's where the
certificate accepts it, else the large model's as it was recorded; the Router's laws are tested elsewhere. Writes
benchmarks/results/routed.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from benchmarks.accuracy.run import RESULTS, data_folder, task_file
from smallfirst.data.dataset import Example
from smallfirst.evaluation.evaluate import EvaluationSetup, evaluate
from smallfirst.evaluation.results import EvaluatedRow, Evaluation
from smallfirst.models.catalog import find_weights
from smallfirst.models.encoder.sentence_encoder import SentenceEncoder
from smallfirst.models.few_shot import NearestShots, PromptedModel
from smallfirst.models.protocol import Request
from smallfirst.models.recorded.record import record
from smallfirst.models.recorded.replay import ReplayModel, request_key
from smallfirst.models.servers.llama_cpp import LlamaCppConfig, LlamaCppModel
from smallfirst.models.wrappers import DelegatingModel
from smallfirst.paths import home
from smallfirst.progress import Progress
from smallfirst.project.project import Project
from smallfirst.project.run_folder import RunFolder
from smallfirst.routing.certificate.certificate import Certificate, certify
from smallfirst.routing.certificate.guarantee import Guarantee
from smallfirst.stats.intervals import Estimate, mcnemar, paired_difference, wilson

PROMISES = (0.05, 0.03, 0.02, 0.01)
DRAWN_CALIBRATION, DRAWN_TEST = 100, 200
"""Rows asked because chance drew them."""
SURE = (0.7, 0.9)
"""Confidences below which test rows are asked as well."""


class Figures(NamedTuple):
    """One path that answers the test rows."""

    name: str
    right: dict[str, bool]
    """By row key."""
    usd_per_1k: float
    kept: str = ""
    wrong_kept: str = ""


def place(example: Example) -> str:
    """Return a row's place in the draw, whatever other rows there are."""
    return hashlib.sha256(f"order{example.key}".encode()).hexdigest()


def order(project: Project, calibration: Evaluation, test: Evaluation) -> list[Example]:
    """Return the rows in the order in which the large model is asked."""
    sure = {row.key: row.confidence or 0.0 for row in (*calibration.rows, *test.rows)}
    drawn_cal, drawn_test = (sorted(part.examples, key=place) for part in (project.rows.calibration, project.rows.test))
    parts = [
        [e for e in drawn_cal if sure[e.key] < SURE[1]],
        drawn_cal[:DRAWN_CALIBRATION],
        drawn_test[:DRAWN_TEST],
        *([e for e in drawn_test if sure[e.key] < limit] for limit in SURE),
    ]
    return list({example.key: example for part in parts for example in part}.values())


def recording() -> Path:
    return home() / "recordings" / "banking77" / "routed.jsonl"


def ask(project: Project, rows: Sequence[Example]) -> None:
    """Ask the large model the rows that it was not asked yet; one core costs half the machine's price."""
    assert project.file.large is not None
    cores = len(os.sched_getaffinity(0))
    machine = project.file.prices.machine.model_copy(update={"usd_per_hour": 0.05 * cores})
    prices = project.file.prices.model_copy(update={"machine": machine})
    config = LlamaCppConfig(
        path=find_weights(str(project.file.large.gguf)), slots=1, threads=cores, context_tokens=4096
    )
    inner = DelegatingModel(
        LlamaCppModel(config, prices, answers=project.task.closed), name="Qwen2.5-Coder-1.5B-Instruct"
    )
    nearest = NearestShots(
        project.rows.train, SentenceEncoder(find_weights(project.file.small.encoder)), project.file.large.nearest
    )
    model = PromptedModel(inner, project.task, selector=nearest, max_tokens=project.task.max_answer_tokens)
    header = {
        "made_at": date.today().isoformat(),
        "smallfirst": "0.1.0",
        "command": "python -m benchmarks.routing.routed record",
        "settings": {"nearest": project.file.large.nearest, "only_labels": True, "temperature": 0},
        "prompt": f"label list, and the {project.file.large.nearest} training rows nearest to the request",
        "machine": f"{cores} cores",
    }
    requests = [Request(messages=e.messages) for e in rows]

    async def all_of_them() -> None:
        await model.complete(requests[0])  # keep loading out of the first latency
        with project.progress.bar(f"asking {model.name}", len(requests)) as progress:
            await record(model, requests, recording(), header=header, concurrency=1, progress=progress)
        await model.aclose()

    asyncio.run(all_of_them())


def asked(project: Project, split: str, answers: ReplayModel) -> Evaluation:
    """Return the large model's evaluation on the rows of a split that it was asked."""
    data = getattr(project.rows, split)
    known = tuple(e for e in data.examples if request_key(Request(messages=e.messages)) in answers._answers)
    measuring = EvaluationSetup(project.task, data.subset(split, known), split=split)
    return asyncio.run(evaluate(answers, measuring, candidate="large", note=answers.note))


def routed(certificate: Certificate, small: Evaluation, large: Evaluation) -> tuple[Figures, int]:
    """Return the routed path on test rows, and the number of rows without a recorded answer, which are left out."""
    right: dict[str, bool] = {}
    kept: list[EvaluatedRow] = []
    usd = n_sent = 0.0
    left_out = 0
    for row in small.rows:
        then = "keep_certified" if certificate.covers(row.answer, row.confidence) else certificate.below
        kept += [row] if then == "keep_certified" else []
        if then == "escalate":
            n_sent += 1
            if row.key not in large.by_key:
                left_out += 1
                continue
        other = large.by_key[row.key] if then == "escalate" else None
        right[row.key] = (other or row).correct
        usd += row.cost_usd + (other.cost_usd if other else 0.0)
    wrong = sum(not row.correct for row in kept)
    share = f"{wilson(len(kept), len(small.rows))}; {int(n_sent)} sent on"
    held = f"{wrong} of {len(kept)} ({100 * wrong / max(1, len(kept)):.1f} %)"
    name = f"routed, at most {100 * (certificate.guarantee.max_error or 1.0):g} % wrong"
    return Figures(name, right, 1000 * usd / max(1, len(right)), share, held), left_out


def accuracy(right: Sequence[bool]) -> Estimate:
    return wilson(sum(right), len(right))


def against(first: dict[str, bool], second: dict[str, bool]) -> str:
    """Return the paired difference in points on the rows that both have, with McNemar's p."""
    keys = sorted(first.keys() & second.keys())
    a, b = [first[k] for k in keys], [second[k] for k in keys]
    found = paired_difference(a, b)
    only_a, only_b = (sum(x and not y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    p = mcnemar(only_a, only_b)
    return f"{100 * found.value:+.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}], p={p:.3g}, n={len(keys)}"


def measure(project: Project, run_folder: RunFolder) -> str:
    """The result page."""
    answers = ReplayModel.load(recording())
    large_cal, large_test = asked(project, "calibration", answers), asked(project, "test", answers)
    small_cal, small = run_folder.evaluation("small", "calibration"), run_folder.evaluation("small", "test")
    assert small_cal is not None
    assert small is not None
    drawn = {e.key for e in sorted(project.rows.test.examples, key=place)[:DRAWN_TEST]}
    fair = {key: row.correct for key, row in large_test.by_key.items() if key in drawn}
    ours = Figures("small", {row.key: row.correct for row in small.rows}, small.cost_usd_per_1k)
    fair_cost = [row.cost_usd for row in large_test.rows if row.key in drawn]
    theirs = Figures("large, rows drawn by chance", fair, 1000 * sum(fair_cost) / max(1, len(fair_cost)))
    lines, notes = [], []
    for limit in PROMISES:
        certificate = certify(small_cal, large_cal, Guarantee(max_error=limit), model_fingerprint="")
        if not certificate.issued:
            notes.append(f"- at most {100 * limit:g} %: refused: {certificate.why}")
            continue
        found, left_out = routed(certificate, small, large_test)
        lines.append(_line(found, ours, theirs))
        below = f"{certificate.below} ({certificate.below_why})"
        notes.append(f"- at most {100 * limit:g} %: {certificate.why}. Below {certificate.threshold:.3f}: {below}.")
        notes += [f"  {left_out} rows that it would send on were not asked, and are left out."] if left_out else []
    point = Guarantee(max_error=None, max_accuracy_loss=0.01)
    regret = certify(small_cal, _drawn(project, large_cal), point, model_fingerprint="")
    notes.append(f"- at most one point below the large model: {regret.why}")
    names = ("path", "accuracy", "per 1,000", "accepted under the guarantee", "wrong among accepted")
    head = "| " + " | ".join((*names, "minus small, points", "minus large, points")) + " |"
    first = [_line(each, ours, theirs) for each in (ours, theirs)]
    counts = f"{len(large_cal.rows)} calibration and {len(large_test.rows)} test rows"
    asked_rows = f"The large model's answers: {answers.note}; {counts}."
    return "\n".join([asked_rows, "", head, "|---|---|---|---|---|---|---|", *first, *lines, "", *notes])


def _drawn(project: Project, large: Evaluation) -> Evaluation:
    """Return the large model's evaluation on the randomly drawn calibration rows."""
    keys = {e.key for e in sorted(project.rows.calibration.examples, key=place)[:DRAWN_CALIBRATION]}
    return large.model_copy(update={"rows": tuple(row for row in large.rows if row.key in keys)})


def _line(each: Figures, small: Figures, large: Figures) -> str:
    versus = [against(each.right, other.right) if other is not each else "" for other in (small, large)]
    cells = [each.name, f"{accuracy(list(each.right.values()))}, n={len(each.right):,}", f"${each.usd_per_1k:.4f}"]
    return "| " + " | ".join([*cells, each.kept, each.wrong_kept, *versus]) + " |"


def main() -> None:
    project = Project.read(task_file("banking77", data_folder("banking77")), Progress())
    run_folder = RunFolder.latest("banking77")
    calibration, test = run_folder.evaluation("small", "calibration"), run_folder.evaluation("small", "test")
    if calibration is None or test is None:
        sys.exit("first: python -m benchmarks.accuracy.run banking77")
    if sys.argv[1:2] == ["record"]:
        ask(project, order(project, calibration, test)[: int(sys.argv[2])])
        return
    page = measure(project, run_folder)
    today = date.today().isoformat()
    text = f"""# Banking77, end to end: small, large and routed

`python -m benchmarks.routing.routed`, {today}, 2 shared cores (Zen 5), 24 GB. Small: SmolLM2-135M fine-tuned.
Large: Qwen2.5-Coder-1.5B (Q4_K_M, llama.cpp) with the label list and the 12 nearest solved rows in its prompt. Costs:
this machine's time at $0.10 an hour, busy 30 % of it; the large model was recorded on one of the two cores, at half
the price.
Certificates are made from the 794 calibration rows, figures are on the official test rows.

{page}
"""
    (RESULTS / "routed.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
