"""Money on both paths: cost per 1,000, when training is paid back, what a price drop does.

All of it is arithmetic on measured figures; the price is that it knows no discounts, no people
and no data work. `None` means never: a path that is not cheaper pays nothing back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from smallfirst.evaluation.results import Evaluation
from smallfirst.pricing import MachinePrice
from smallfirst.records import Record
from smallfirst.report.data import ListPrice

HOURS_PER_MONTH = 730.0
PRICE_DROPS = (0.0, 0.5, 0.8, 0.9)


class PathCost(Record):
    """What answering by one path costs."""

    candidate: str
    """Which path."""
    cost_usd_per_1k: float
    """USD for 1,000 requests."""
    large_part_usd_per_1k: float
    """How much of it is spent on the large model; moves with the large model's price."""
    training_usd: float
    """Paid once before the first request."""

    def after_drop(self, drop: float) -> float:
        """USD for 1,000 requests when the large model's price falls by `drop`, in [0, 1]."""
        return self.cost_usd_per_1k - drop * self.large_part_usd_per_1k

    def monthly_usd(self, requests: int) -> float:
        """USD for a month of `requests`, training not included."""
        return self.cost_usd_per_1k * requests / 1000

    def total_usd(self, requests: float, *, drop: float = 0.0) -> float:
        """USD from the start, training included, for `requests` in all."""
        return self.training_usd + self.after_drop(drop) * requests / 1000


class DropRow(Record):
    """What a fall of the large model's price does."""

    drop: float
    """Share by which the price falls, in [0, 1]."""
    large_usd_per_1k: float
    """The large path then, for 1,000 requests."""
    cheaper_usd_per_1k: tuple[float, ...]
    """The other paths then, in the order given."""
    break_even: tuple[int | None, ...]
    """Requests until each has paid its training back; None = never."""


class OwnMachine(Record):
    """The same figures if the task has a machine to itself that is never switched off."""

    usd_per_month: float
    """Rent of the machine."""
    break_even_per_month: int | None
    """Requests a month from which it is cheaper than the large path; None = never."""
    capacity_per_month: int | None
    """Requests it can answer in a month; None if its rate was not measured."""


def break_even_requests(training_usd: float, path_usd_per_1k: float, large_usd_per_1k: float) -> int | None:
    """Requests after which training is paid back by the saving; None if the path is not cheaper."""
    saving = large_usd_per_1k - path_usd_per_1k
    if saving <= 0:
        return None
    # The rounding keeps a quotient like 1000.0000000000001 from becoming 1001.
    return math.ceil(round(training_usd / saving * 1000, 6))


def list_cost_usd_per_1k(price: ListPrice, *, prompt_tokens: float, completion_tokens: float) -> float:
    """USD for 1,000 requests of this many tokens at a list price."""
    tokens_usd = prompt_tokens * price.input_usd_per_mtok + completion_tokens * price.output_usd_per_mtok
    return tokens_usd / 1000


def large_part_usd_per_1k(routed: Evaluation, large: Evaluation) -> float:
    """How much of the routed cost goes to the large model, per 1,000 requests.

    An escalated row costs its thrown-away draft plus the large answer; the large answer's cost is
    read from the large path's evaluation of the same row, or is its mean where that is missing.
    """
    spent = 0.0
    for row in routed.rows:
        if row.stage != "large":
            continue
        same = large.by_key.get(row.key)
        alone = same.cost_usd if same else large.cost_usd_per_1k / 1000
        spent += min(alone, row.cost_usd)
    return spent / max(1, len(routed.rows)) * 1000


def path_costs(evaluations: Sequence[Evaluation], *, training_usd: float) -> tuple[PathCost, ...]:
    """Each path's cost, in the order given. Only `small` and `routed` carry the training cost."""
    large = next((e for e in evaluations if e.candidate == "large"), None)
    paths = []
    for evaluation in evaluations:
        part = 0.0
        if evaluation.candidate == "large":
            part = evaluation.cost_usd_per_1k
        elif evaluation.candidate == "routed" and large is not None:
            part = large_part_usd_per_1k(evaluation, large)
        trained = evaluation.candidate in ("small", "routed")
        paths.append(
            PathCost(
                candidate=evaluation.candidate,
                cost_usd_per_1k=evaluation.cost_usd_per_1k,
                large_part_usd_per_1k=part,
                training_usd=training_usd if trained else 0.0,
            )
        )
    return tuple(paths)


def price_drops(paths: Sequence[PathCost], large: PathCost) -> tuple[DropRow, ...]:
    """One row for each fall of the large model's price: none, 50, 80 and 90 %."""
    rows = []
    for drop in PRICE_DROPS:
        large_then = large.after_drop(drop)
        then = tuple(path.after_drop(drop) for path in paths)
        even = tuple(
            break_even_requests(path.training_usd, cost, large_then) for path, cost in zip(paths, then, strict=True)
        )
        rows.append(DropRow(drop=drop, large_usd_per_1k=large_then, cheaper_usd_per_1k=then, break_even=even))
    return tuple(rows)


def drop_that_ends_it(path: PathCost, large: PathCost) -> float | None:
    """The fall of the large model's price, in [0, 1], that ends the saving; None without one."""
    if path.cost_usd_per_1k >= large.cost_usd_per_1k:
        return None
    own = path.cost_usd_per_1k - path.large_part_usd_per_1k
    moving = large.cost_usd_per_1k - path.large_part_usd_per_1k
    return 1.0 - own / moving


def own_machine(machine: MachinePrice, path: PathCost, large: PathCost, *, requests_per_s: float | None) -> OwnMachine:
    """What a machine of its own changes: rent is paid whether or not requests come."""
    rent = machine.usd_per_hour * HOURS_PER_MONTH
    capacity = None if requests_per_s is None else round(requests_per_s * HOURS_PER_MONTH * 3600)
    needed = break_even_requests(rent, path.large_part_usd_per_1k, large.cost_usd_per_1k)
    if needed is not None and capacity is not None and needed > capacity:
        needed = None
    return OwnMachine(usd_per_month=rent, break_even_per_month=needed, capacity_per_month=capacity)
