"""Which rule chooses best among candidates, plans and the large model: regret, violations and coverage on recorded tables.

    python -m benchmarks.routing.choice --draws 500 --out table.md      # the table of benchmarks/results/choice.md

Each draw takes rows to choose with, calibration rows and test rows from a table with replacement; the whole table is
the truth. Every rule sees the same draws. A wrong answer costs `v`, in calls of the large model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks.routing.choice_tables import Table, load
from smallfirst.gate.choice import ALIKE, FIRST, Option, WorthRule, choose_candidates, level_shares
from smallfirst.stats.intervals import clopper_pearson, paired_score_interval, wilson

N_CALIBRATION, N_TEST, FINALISTS = 200, 200, 3
SMALL = 0.01
"""Price of a small answer, in calls of the large model."""
LIMITS = {"banking77": 0.1, "clinc150": 0.1, "tool_calls": 0.1, "gsm8k": 0.25}
"""Share of kept answers that may be wrong in a plan."""
BARS = {"banking77": 0.8, "clinc150": 0.75, "tool_calls": 0.85, "gsm8k": 0.6}
"""Gate of each table, which several of its candidates meet."""
FACTORS = (1.0, 1.2, 0.9, 30.0)
"""Price of the most accurate candidate over the others'."""


class Rule(NamedTuple):
    """A way to choose."""

    name: str
    worth: WorthRule | None
    """None: the cheapest that is expected to pass, of equal cost the first (the rule before)."""
    plans_too: bool = False
    """Whether a plan may come before the candidates alone."""
    guarded: bool = True
    """Whether one that another clearly beats on test rows gives way."""


class Live(NamedTuple):
    """What went live in a draw: its true figures, and what was printed."""

    usd: float
    error: float
    alone: int | None
    """The candidate, where it answers alone."""
    covered: bool | None
    """Whether the printed 95 % interval of its accuracy holds the truth; None for the large model."""


class Draw(NamedTuple):
    """The rows of one draw, and what those that choose let expect."""

    choosing: np.ndarray
    calibration: np.ndarray
    test: np.ndarray
    accuracy: np.ndarray
    """Of each candidate on the rows that choose."""
    alone: list[Option]
    plans: list[Option]
    expected: dict[str, bool]
    """Whether each candidate is expected to pass."""

    @classmethod
    def of(cls, table: Table, usd: np.ndarray, bar: float, large: tuple[float, float], rows: list[np.ndarray]) -> Draw:
        choosing, n = rows[0], len(table.names)
        right = table.right[:, choosing]
        wrong = [dict(enumerate((~one).astype(float).tolist())) for one in right]
        return cls(
            *rows,
            accuracy=right.mean(axis=1),
            alone=[Option(str(i), usd[i], wrong[i]) for i in range(n)],
            plans=[_plan(table, usd, i, choosing, large) for i in range(n)],
            expected={str(i): _expected(right[i].sum(), len(choosing), bar) for i in range(n)},
        )


def rules(v: float) -> tuple[Rule, ...]:
    return (
        Rule("cheapest that passes (before)", None, guarded=False),
        Rule("within one point", WorthRule(0.01)),
        Rule("within one point, no look at test rows", WorthRule(0.01), guarded=False),
        Rule("least L, candidates alone", WorthRule(usd_per_wrong_answer=v)),
        Rule("least L, with plans", WorthRule(usd_per_wrong_answer=v), plans_too=True),
    )


def play(table: Table, usd: np.ndarray, draw: Draw, rule: Rule, bar: float, large: tuple[float, float]) -> Live:
    """Return what goes live by a rule; costs are in calls of the large model."""
    if rule.worth is None:
        by_cost = _cheapest_first(usd)
        able = [i for i in by_cost if draw.expected[str(i)]]
        first = able[0] if able else int(draw.accuracy.argmax())
        order = [first, *(i for i in by_cost if i != first)]
        shares = {first: FIRST} | {i: 0.2 / max(1, len(order) - 1) for i in order if i != first}
        plan_order = [int(one.candidate) for one in sorted(draw.plans, key=lambda one: one.usd)]
    else:
        names = choose_candidates(draw.alone, rule.worth, expected=draw.expected.__getitem__)[:FINALISTS]
        order, shares = [int(name) for name in names], {int(k): s for k, s in level_shares(names).items()}
        plan_order = [int(one.candidate) for one in rule.worth.order(draw.plans) if int(one.candidate) in order]
    passing = [i for i in order if _passes(table.right[i, draw.test], bar, shares[i])]
    if rule.guarded:
        passing = [i for i in passing if not any(_beats(table, usd, j, i, draw.test) for j in passing)]
    tries = list(plan_order) if not passing else []
    if passing and rule.plans_too and rule.worth is not None:
        both = [draw.alone[passing[0]], *(draw.plans[i] for i in plan_order)]
        ranked = rule.worth.order(both)
        tries = [int(one.candidate) for one in ranked[: ranked.index(both[0])]]
    price = rule.worth.usd_per_wrong_answer if rule.worth and passing else None
    most = usd[passing[0]] + price * (1 - table.right[passing[0], draw.test].mean()) if price else np.inf
    for i in tries[:FINALISTS]:
        if (found := _certified(table, usd, i, draw, price or 0.0, most)) is not None:
            return found
    if not passing:
        return Live(1.0, large[0], None, None)
    i = passing[0]
    n_right, truth = int(table.right[i, draw.test].sum()), table.right[i].mean()
    printed = wilson(n_right, N_TEST)
    return Live(usd[i], 1 - truth, i, printed.low <= truth <= printed.high)


def _cheapest_first(usd: np.ndarray) -> list[int]:
    order: list[int] = []
    rest = list(range(len(usd)))
    while rest:
        most = ALIKE * min(usd[i] for i in rest)
        order += [i for i in rest if usd[i] <= most]
        rest = [i for i in rest if usd[i] > most]
    return order


def _expected(n_right: int, n: int, bar: float) -> bool:
    found = wilson(int(n_right), n, confidence=1 - 0.05 * FIRST)
    return found.value - (n / N_TEST) ** 0.5 * (found.value - found.low) >= bar


def _passes(right: np.ndarray, bar: float, share: float) -> bool:
    return wilson(int(right.sum()), len(right), confidence=1 - 0.05 * share).low >= bar


def _beats(table: Table, usd: np.ndarray, first: int, second: int, rows: np.ndarray) -> bool:
    ours, theirs = table.right[first, rows], table.right[second, rows]
    if usd[first] > ALIKE * usd[second]:
        return False
    return paired_score_interval(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(rows)).low > 0


def _plan(table: Table, usd: np.ndarray, i: int, rows: np.ndarray, large: tuple[float, float]) -> Option:
    """Return the plan that keeps the largest share of which at most the limit is wrong on the rows that choose."""
    order = rows[np.argsort(-table.confidence[i, rows], kind="stable")]
    wrong = ~table.right[i, order]
    good = np.flatnonzero(np.cumsum(wrong) <= LIMITS[table.name] * np.arange(1, len(rows) + 1))
    kept = int(good[-1]) + 1 if len(good) else 0
    errors = [float(one) for one in wrong[:kept]] + [large[0]] * (len(rows) - kept)
    share = kept / len(rows)
    return Option(str(i), usd[i] + (1 - share), dict(enumerate(errors)))


def _best_plan(table: Table, usd: np.ndarray, i: int, v: float) -> float:
    """Return the least loss of a plan whose kept answers keep the limit over the whole table."""
    order, n = np.argsort(-table.confidence[i], kind="stable"), table.right.shape[1]
    kept, wrong = np.arange(1, n + 1), np.cumsum(~table.right[i, order])
    passed_on = np.cumsum((~table.large_right[order])[::-1])[::-1]
    loss = usd[i] + 1 - kept / n + v * (wrong + np.append(passed_on[1:], 0)) / n
    return float(loss[wrong <= LIMITS[table.name] * kept].min(initial=np.inf))


def _certified(table: Table, usd: np.ndarray, i: int, draw: Draw, price: float, most: float) -> Live | None:
    """Return the plan at the loosest threshold that calibration rows show at 4 %, strict to loose.

    None without one, or where it does not lose less than `most` a request on test rows.
    """
    order = draw.calibration[np.argsort(-table.confidence[i, draw.calibration], kind="stable")]
    wrong = np.cumsum(~table.right[i, order])
    kept = np.arange(N_CALIBRATION // 4, N_CALIBRATION + 1)
    shown = stats.binom.cdf(wrong[kept - 1], kept, LIMITS[table.name]) <= 0.04
    n = kept[len(kept) - 1 if shown.all() else int(np.argmin(shown)) - 1] if shown[0] else 0
    if not n:
        return None
    stays = table.confidence[i] >= table.confidence[i, order[n - 1]]
    right = np.where(stays, table.right[i], table.large_right)
    printed = wilson(int(right[draw.test].sum()), N_TEST)
    return Live(usd[i] + (1 - stays.mean()), 1 - right.mean(), None, printed.low <= right.mean() <= printed.high)


def simulate(table: Table, factor: float, v: float, n_choosing: int, n_draws: int) -> Iterator[str]:
    """Yield a line of the page for each rule."""
    rng, n = np.random.default_rng(1), table.right.shape[1]
    truth, bar = table.right.mean(axis=1), BARS[table.name]
    usd = np.full(len(truth), SMALL)
    usd[truth.argmax()] *= factor
    large = (1 - float(table.large_right.mean()), 1.0)
    sizes = n_choosing, N_CALIBRATION, N_TEST
    draws = [Draw.of(table, usd, bar, large, [rng.integers(0, n, size) for size in sizes]) for _ in range(n_draws)]
    able = [i for i in range(len(truth)) if truth[i] >= bar]
    losses = [usd[i] + v * (1 - truth[i]) for i in able] + [1 + v * large[0]]
    losses += [_best_plan(table, usd, i, v) for i in range(len(truth))]
    played = {rule.name: [play(table, usd, draw, rule, bar, large) for draw in draws] for rule in rules(v)}
    least = min(losses)
    for name, found in played.items():
        loss = np.array([one.usd + v * one.error for one in found])
        live = [one for one in found if one.covered is not None]
        alone = [one for one in found if one.alone is not None]
        behind = np.array([max(truth[able], default=0) - (1 - one.error) for one in alone]) if alone else np.zeros(1)
        broken = clopper_pearson(sum(truth[one.alone] < bar for one in alone), n_draws)
        missed = clopper_pearson(sum(not one.covered for one in live), n_draws)
        among = sum(bool(one.covered) for one in live) / max(1, len(live))
        half = 1.96 * loss.std() / n_draws**0.5
        yield (
            f"| {table.name} | {n_choosing} | {factor:g} | {v:g} | {name} | {loss.mean() - least:.4f} ± {half:.4f} "
            f"| {behind.mean():.3f} | {(behind > 0.01 + 1e-9).mean():.2f} | {len(alone) / n_draws:.2f} "
            f"| {(len(live) - len(alone)) / n_draws:.2f} | {broken.value:.3f} [{broken.low:.3f}, {broken.high:.3f}] "
            f"| {missed.value:.3f} [{missed.low:.3f}, {missed.high:.3f}] | {among:.3f} |"
        )


HEAD = (
    "| table | rows to choose | price factor | v | rule | regret in large calls | accuracy behind the best | > 1 point "
    "| alone | plan | below the bar live | interval misses, of all draws | covers, of those live |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--cache", type=Path, default=Path(".smallfirst/choice"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    lines = [HEAD]
    for table in load(options.cache):
        for n_choosing in (50, 300):
            for factor, v in ((1.0, 1.0), (1.0, 20.0), (1.2, 20.0), (0.9, 20.0), (30.0, 1.0), (30.0, 20.0)):
                lines += simulate(table, factor, v, n_choosing, options.draws)
                print(*lines[-len(rules(v)) :], sep="\n", flush=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
