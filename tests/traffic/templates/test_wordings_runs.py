"""Tokens, and the runs of them that prompts share."""

from __future__ import annotations

import numpy as np

from smallfirst.traffic.messages import Prompt, Turn
from smallfirst.traffic.templates.wordings import runs_of


def test_prompts_that_differ_in_dates_alone_share_all_runs():
    texts = ["Filed on 3 May 2026 by you", "Filed on 12 June 2025 by you", "Filed with care by you"]
    runs = runs_of([Prompt("", (Turn("user", text),)) for text in texts])
    first, second, third = (set(runs.hashes[runs.prompts == i].tolist()) for i in range(3))
    assert first == second
    assert not first & third
    assert len(runs.hashes) == len(np.unique(np.stack([runs.hashes, runs.prompts.astype(np.uint64)]), axis=1).T)
