"""What was saved is estimated from audits, or what comes nearest, and its interval covers the truth; machines."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.evaluations import evaluated_row, evaluation_of

from smallfirst.base.paths import state_of
from smallfirst.deployment.billing.saved import (
    Account,
    Amount,
    CostSample,
    MachineCost,
    Saving,
    evaluated_costs,
    machine_costs,
    savings,
    total,
    verdict,
)
from smallfirst.ledger.ledger import Ledger
from smallfirst.ledger.rows import AuditRow, LedgerRow
from smallfirst.ledger.sums import Sums
from smallfirst.models.pricing import MachinePrice, PriceBook
from smallfirst.path.project.run_folder import FITTED, FittedCandidates, RunFolder

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


def answer(id: str, stage: str, usd: float | None, **more: Any) -> LedgerRow:
    row = LedgerRow(id=id, at=NOON, served_name="t", status=200, latency_ms=1.0, task="t", stage=stage, cost_usd=usd)
    return row.model_copy(update={"certified": stage != "large", **more})


def audit(id: str, usd: float, propensity: float) -> AuditRow:
    columns = {"task": "t", "certificate": "c", "wrong": False, "judged_by": "large"}
    return AuditRow(id=id, at=NOON, propensity=propensity, cost_usd=usd, **columns)


def test_audits_stand_for_the_answers_that_were_not_drawn(ledger: Ledger) -> None:
    # 12 audits of 40 small answers: 6 drawn with chance 1/2 cost $2, 6 drawn with chance 1/4 cost $5.
    ledger.append(*(answer(f"s{i}", "small", 0.1) for i in range(40)))
    ledger.append(*(audit(f"s{i}", 2.0, 0.5) for i in range(6)), *(audit(f"s{i}", 5.0, 0.25) for i in range(6, 12)))
    # Beside answers of the large model drafts are audited too, at the cost of the draft: these tell nothing.
    ledger.append(answer("l", "large", 9.0), audit("l", 0.01, 0.1))
    (found,) = savings(ledger, None, None)
    assert found.basis == "audits"
    assert found.large_usd.usd == pytest.approx((6 * 2 * 2 + 6 * 4 * 5) / (6 * 2 + 6 * 4))  # 4
    # Variance of a Hájek mean under Poisson sampling: sum of (1 - p) / p^2 (c - 4)^2, here 6 * 2 * 4 + 6 * 12 * 1.
    error = np.sqrt((6 * 2 * 4 + 6 * 12 * 1) * 12 / 11) / 36
    assert found.large_usd.high_usd == pytest.approx(4 + 2.200985 * error, rel=1e-6)  # Student's t with 11 df
    assert found.would_have_usd.usd == pytest.approx(160)
    assert found.saved_usd.usd == pytest.approx(160 - 40 * 0.1 - 6 * 2 - 6 * 5 - 0.01)
    assert (found.n_small, found.n_large, found.share_small) == (40, 1, 40 / 41)
    assert "drawn at random" in found.in_words


def test_where_every_answer_was_audited_the_saving_is_exact() -> None:
    account = Account()
    account.add_answers("small", "h", 20, 0.2)
    for i in range(20):
        account.audits.add(0.5 + i, 1.0)
    saved = account.saving("t").saved_usd
    assert (saved.usd, saved.low_usd, saved.high_usd) == pytest.approx((199.8, 199.8, 199.8))


def test_small_answers_that_cost_more_than_the_large_model_save_less_than_nothing() -> None:
    account = Account()
    account.add_answers("small", "h", 100, 3.0)
    account.audit_usd = 0.5
    found = account.saving("t", Amount(usd=0.01, low_usd=0.0, high_usd=0.02, n=50))
    assert found.basis == "evaluation"
    assert (found.saved_usd.usd, found.saved_usd.low_usd) == pytest.approx((-2.5, -3.5))
    assert found.in_words.startswith("saved −$2.50 (95 %: −$3.50 to −$1.50): the mean on 50 rows")


def test_without_audits_the_escalated_answers_tell_their_drafts_apart() -> None:
    account = Account()
    account.add_answers("small", "h1", 10, 0.0)
    account.add_answers("large", "h1", 3, 3.3, n_unknown=1, draft_usd=0.3)
    account.add_answers("large", "h2", 2, 5.0)
    found = account.saving("t", Amount(usd=9.0, low_usd=9.0, high_usd=9.0, n=1))
    assert found.basis == "escalated"
    assert found.would_have_usd.usd == pytest.approx(10 * 8.0 / 4)
    assert found.saved_usd.usd == pytest.approx(20.0 - 0.3)
    one_hour = Account()
    one_hour.add_answers("large", "h", 3, 3.0)
    assert one_hour.saving("t").in_words == (
        "saved $0.00: the mean of 3 answers that the large model gave: other requests, so a rough guide"
    )


def test_nobody_else_than_a_small_model_saves_and_drafts_for_a_person_are_paid() -> None:
    account = Account()
    for stage, usd in (("words", 0.1), ("large", 2.0), ("general", 3.0), ("person", 0.25), ("out_of_scope", 0.5)):
        account.add_answers(stage, "h", 1, usd, draft_usd=0.125 * (stage == "general"))
    found = account.saving("t", Amount(usd=9.0, low_usd=9.0, high_usd=9.0, n=1))
    assert (found.n_small, found.n_large, found.small_usd, found.draft_usd) == (1, 2, 0.1, 0.875)
    assert found.large_usd == Amount(usd=9.0, low_usd=9.0, high_usd=9.0, n=1)  # one hour of the large model alone


def test_a_saving_that_nothing_tells_is_unknown_and_so_is_the_total() -> None:
    blind, other = Account(), Account()
    blind.add_answers("small", "h", 5, 0.05)
    other.add_answers("small", "h", 5, 0.05)
    halves = Amount(usd=1.0, low_usd=0.4, high_usd=1.6, n=9), Amount(usd=2.0, low_usd=1.2, high_usd=2.8, n=9)
    unknown = total([blind.saving("a"), other.saving("b", halves[0])])
    assert (unknown.saved_usd, unknown.basis, unknown.n_small) == (None, "unknown", 10)
    assert "unknown" in unknown.in_words
    both = total([other.saving("a", halves[0]), other.saving("b", halves[1])]).saved_usd
    assert both.half_usd == pytest.approx(5.0)  # independent: 3 and 4 add as the sides of a triangle
    assert total([]).saved_usd is None


def test_the_interval_covers_skewed_costs_at_unequal_chances() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        costs = draw.lognormal(0, 0.8, 2000)
        chances = np.clip(0.02 * costs**0.5, 0.01, 1)  # who costs more is drawn more often
        sample = CostSample()
        for i in np.flatnonzero(draw.random(2000) < chances):
            sample.add(float(costs[i]), float(chances[i]))
        found = sample.mean()
        assert found.low_usd is not None
        assert found.high_usd is not None
        covered += found.low_usd <= costs.mean() <= found.high_usd
    assert covered / 400 >= 0.92


def test_only_the_period_counts(ledger: Ledger) -> None:
    ledger.append(*(answer(f"s{i}", "small", 0.1, at=NOON + timedelta(hours=i)) for i in range(12)))
    ledger.append(*(audit(f"s{i}", 1.0, 1.0).model_copy(update={"at": NOON}) for i in range(12)))
    (found,) = savings(ledger, NOON, NOON + timedelta(hours=3))
    assert found.n_small == 3
    (later,) = savings(ledger, NOON + timedelta(hours=1), None)
    assert later.basis == "unknown"


def test_the_cost_in_the_latest_run_is_looked_for_where_the_task_is_and_unknown_where_no_row_was_billed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMALLFIRST_HOME", raising=False)
    for task, costs in (("paid", (0.02, 0.04)), ("unpriced", (0.0, 0.0)), ("unreadable", (0.1,))):
        (tmp_path / task / ".smallfirst").mkdir(parents=True)
        with state_of(tmp_path / task):
            run = RunFolder.new(task)
        FittedCandidates(ladder=(), mlflow_run_id="r").save(run.path / FITTED)
        rows = [evaluated_row(f"{i}", "a", "a", cost_usd=usd) for i, usd in enumerate(costs)]
        run.save_evaluation(evaluation_of(rows, candidate="large"))
    (run.path / FITTED).write_text("{}")  # of another version
    folders = {name: tmp_path / name for name in ("paid", "unpriced", "unreadable", "nowhere")}
    found = evaluated_costs(folders)
    assert {name: (cost.usd, cost.n) for name, cost in found.items()} == {"paid": (pytest.approx(0.03), 2)}
    with state_of(tmp_path / "paid"):
        assert evaluated_costs({"paid": None}) == found


def test_an_hour_that_the_time_begins_in_counts_with_its_answers_and_its_audits(ledger: Ledger) -> None:
    ledger.append(*(answer(f"s{i}", "small", 0.1) for i in range(12)), *(audit(f"s{i}", 1.0, 1.0) for i in range(12)))
    (found,) = savings(ledger, NOON + timedelta(minutes=20), NOON + timedelta(minutes=30))
    assert (found.n_small, found.basis) == (12, "audits")


class TwoTasks:
    """A ledger in which two tasks kept a machine busy for 900 and 300 s of 2 hours, at a stated utilisation of 0.3."""

    def sums(self, *_: object, **__: object) -> tuple[Sums, ...]:
        usd = 0.12 / 3600 / 0.3
        return (
            Sums(task="a", kind="answer", busy_s=600, machine_usd=600 * usd),
            Sums(task="a", kind="audit", busy_s=300, machine_usd=300 * usd),
            Sums(task="b", kind="answer", busy_s=300, machine_usd=300 * usd),
            Sums(task="a", kind="training", busy_s=5000, cost_usd=1.0),
        )

    def busy(self, *_: object) -> dict[str, float]:
        return {"": 1200.0}

    def uptime(self, *_: object) -> dict[str, float]:
        return {"": 7200.0}


PRICES = PriceBook(machine=MachinePrice(usd_per_hour=0.12, utilisation=0.3))


def test_rows_and_what_they_do_not_carry_are_the_rent() -> None:
    (found,) = machine_costs(TwoTasks(), PRICES, NOON, NOON + timedelta(hours=2))  # type: ignore[arg-type]
    assert (found.utilisation, found.rent_usd) == (pytest.approx(1200 / 7200), pytest.approx(0.24))
    assert found.charged_usd + found.uncharged_usd == pytest.approx(found.rent_usd)
    assert found.uncharged_usd == pytest.approx(0.24 - 0.04 / 0.3)


def test_a_task_carries_idle_time_in_proportion_to_its_work() -> None:
    parts = [
        machine_costs(TwoTasks(), PRICES, NOON, NOON + timedelta(hours=2), task=task)[0]  # type: ignore[arg-type]
        for task in ("a", "b")
    ]
    assert [one.up_s for one in parts] == [5400, 1800]
    assert sum(one.rent_usd for one in parts) == pytest.approx(0.24)
    assert sum(one.charged_usd for one in parts) == pytest.approx(0.04 / 0.3)
    assert [one.utilisation for one in parts] == pytest.approx([1 / 6, 1 / 6])


def machine(usd_per_hour: float) -> MachineCost:
    """A machine that was up for 100 minutes and busy for 140 s, of which the rows carry $0.0002 a second."""
    return MachineCost(usd_per_hour=usd_per_hour, up_s=6000, busy_s=140, stated_utilisation=0.5, charged_usd=0.028)


def saving_of(n_audits: int) -> Saving:
    """120 answers that stayed small at $0.0002 and 20 of the large model at $0.01 and a draft; audits of $0.01."""
    account = Account(audit_usd=0.01 * n_audits)
    account.add_answers("small", "h", 120, 120 * 0.0002)
    account.add_answers("large", "h", 20, 20 * 0.0102, draft_usd=20 * 0.0002)
    for _ in range(n_audits):
        account.audits.add(0.01, 0.1)
    return account.saving("t")


@pytest.mark.parametrize(
    ("usd_per_hour", "n_audits", "said"),
    [
        # For 120 small answers $0.01 each was not billed; rent $0.60, audits $0.10; a month's rent is 730 * $0.36.
        (0.36, 10, "The small model pays: it saved $0.500 (95 %: $0.500 to $0.500). A month of its machines ($263) is "
         "earned from 33,448 requests on; this time had 140. What was spent once ($2.00) is paid back after 560 "
         "requests."),
        (0.72, 10, "Keep the API: with the small model this time cost more, by $0.100 (95 %: $0.100 to $0.100). A "
         "month of its machines ($526) is earned from 66,895 requests on; this time had 140. What was spent once "
         "($2.00) is never paid back."),
        (0.36, 0, "Not decided: $0.60 saved by the figures so far, which are too few for a range."),
    ],
)  # fmt: skip
def test_the_verdict_has_the_rent_paid_and_says_from_when_it_is_earned(
    usd_per_hour: float, n_audits: int, said: str
) -> None:
    assert verdict(saving_of(n_audits), [machine(usd_per_hour)], 2.0).startswith(said)


def test_without_a_price_of_the_large_model_there_is_no_verdict() -> None:
    assert "nobody knows" in verdict(Account().saving("t"), [], 0.0)
