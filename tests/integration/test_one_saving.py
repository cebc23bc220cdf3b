"""One saving for one ledger: the verbs, the statement and the page say the same of the same time."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fixtures.evaluations import evaluated_row, evaluation_of
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from smallfirst.deployment.billing.saved import evaluated_costs
from smallfirst.deployment.dashboard.watch import watch
from smallfirst.interfaces.cli.main import main
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow
from smallfirst.path.project.run_folder import FITTED, FittedCandidates, RunFolder
from smallfirst.traffic.task_source import TakeOver, TakeOvers

MONEY = st.floats(0.001, 1).map(lambda usd: round(usd, 6))
ANSWERS = st.lists(st.tuples(st.sampled_from(["small", "words", "large"]), MONEY, st.floats(0, 1)), max_size=25)
AUDITS = st.lists(MONEY, max_size=25)


def learn(folder: Path) -> None:
    """A task that was taken over: its settings, its run with the large model's bills, other bills in its traffic."""
    found = folder / "discovered" / "tickets"
    (found / "learnt").mkdir(parents=True)
    (found / "rows.jsonl").write_text('{"cost_usd": 0.5}\n{"cost_usd": 0.7}\n')
    settings = "name: tickets\nlabels: [a, b]\ndata: {train: train.jsonl, validation: v.jsonl, test: t.jsonl}\n"
    (found / "learnt" / "task.yaml").write_text(settings)
    run = RunFolder.new("tickets")
    FittedCandidates(ladder=(), mlflow_run_id="r").save(run.path / FITTED)
    rows = [evaluated_row(f"row-{i}", "a", "a", cost_usd=0.02 + 0.01 * i) for i in range(3)]
    run.save_evaluation(evaluation_of(rows, candidate="large"))
    TakeOvers().put(TakeOver(task="tickets", folder=found))


def fill(ledger: Ledger, now: datetime, answers: list[tuple[str, float, float]], audits: list[float]) -> None:
    """Answers of the last twenty hours in this month, and their audits."""
    begin = max(now.replace(day=1, hour=0, minute=0, second=0, microsecond=0), now - timedelta(hours=20))
    for i, (stage, usd, part) in enumerate(answers):
        ledger.append(
            LedgerRow(
                id=f"r{i}",
                at=begin + part * (now - begin),
                served_name="t",
                status=200,
                latency_ms=1.0,
                task="tickets",
                stage=stage,
                certified=stage != "large",
                cost_usd=usd,
            )
        )
    for i, (usd, answer) in enumerate(zip(audits, answers, strict=False)):
        if answer[0] != "large":
            values = {"task": "tickets", "certificate": "c", "propensity": 0.5, "wrong": False}
            ledger.append(AuditRow(id=f"r{i}", at=now, judged_by="large", cost_usd=usd, **values))


def told(*words: object) -> Any:
    run = CliRunner().invoke(main, [str(word) for word in words])
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(ANSWERS, AUDITS)
@example([("small", 0.01, 0.5)] * 12, [0.3] * 12)
@example([("small", 0.01, 0.5)] * 4, [])  # nothing but the evaluation tells what the large model costs
def test_tasks_statement_and_page_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[str, float, float]], audits: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLFIRST_HOME", str(folder / "state"))
        patch.chdir(folder)
        learn(folder)
        ledger = Ledger(folder / "state" / "ledger.db")
        fill(ledger, datetime.now(UTC), answers, audits)
        [line] = told("tasks", "--json")["tasks"]
        statement = told("statement", "--json")["figures"]["savings"]
        page = watch(ledger, {}, {"task": "tickets"}, evaluated=lambda names: evaluated_costs(dict.fromkeys(names)))
        ledger.close()
    savings = [page["saving"], *statement]
    if not answers:
        assert (line["saved_usd"], page["saving"]["saved_usd"], statement) == (None, None, [])
        return
    told_usd = [one["saved_usd"] and one["saved_usd"]["usd"] for one in savings]
    assert told_usd == [line["saved_usd"] and pytest.approx(line["saved_usd"], rel=1e-9, abs=1e-12)] * 2
    assert len({(one["basis"], one["n_small"], one["n_large"]) for one in savings}) == 1
