"""One process alone is a group as well: it agrees with itself, and reads every row."""

from __future__ import annotations

import math

from smallfirst.training.batches import TokenizedRow
from smallfirst.training.distributed.group import Group, own_parts


def test_one_process_leads_and_agrees_with_itself() -> None:
    group = Group.joined(shard=True)
    assert group == Group(rank=0, size=1, shard=False)
    assert group.leads
    assert group.agree(-math.inf) == -math.inf


def test_one_process_reads_every_row_once() -> None:
    rows = [TokenizedRow(tuple(range(n)), 1) for n in (5, 5, 9)]
    parts = own_parts(rows, 10)
    assert [row for part, _ in parts for row in part] == rows
    assert {weight for _, weight in parts} == {1.0}
