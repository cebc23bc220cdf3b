"""Linear candidates: which vectors they read, and what they need to be there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fixtures.preflight import project_of
from fixtures.static_vectors import write_static_vectors

from smallfirst.errors import WeightsNotFound
from smallfirst.models import catalog
from smallfirst.models.encoder.static_vectors import STATIC_VECTORS
from smallfirst.models.protocol import Request
from smallfirst.pipeline.candidates.linear import STATIC
from smallfirst.project.run_folder import RunFolder


def test_static_vectors_are_fitted_loaded_and_answer_as_any_linear_candidate(tmp_path: Path) -> None:
    entry = next(entry for entry in catalog.CATALOG if entry.name == STATIC_VECTORS)
    catalog.pulled_path(entry).parent.mkdir(parents=True)
    write_static_vectors(catalog.pulled_path(entry))
    project, run_folder = project_of(tmp_path, more="ladder: [static]\n"), RunFolder(tmp_path / "run")
    STATIC.fit(project, run_folder)

    async def answers(*texts: str) -> list[str]:
        model = STATIC.load(project, run_folder)
        found = [(await model.complete(Request.ask(text))).text for text in texts]
        await model.aclose()
        return found

    assert asyncio.run(answers("my card", "a pin and a pin", "the fee")) == ["card", "pin", "fee"]
    assert STATIC.minutes_to_fit(project) == pytest.approx(9 * 3e-4 / 60)


def test_static_vectors_that_are_not_here_are_left_out_where_time_decides(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound, match=f"next: smallfirst models pull {STATIC_VECTORS}"):
        STATIC.minutes_to_fit(project_of(tmp_path))
