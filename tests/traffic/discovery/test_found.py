"""Figures of a discovery."""

from __future__ import annotations

import pytest

from smallfirst.traffic.discovery.found import month_factor


@pytest.mark.parametrize(("days", "factor"), [(30.44, 1.0), (3.044, 10.0), (0.5, 1.0), (0.0, 1.0)])
def test_only_days_are_projected(days: float, factor: float) -> None:
    assert month_factor(days) == pytest.approx(factor)
