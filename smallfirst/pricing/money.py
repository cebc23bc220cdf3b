"""Amounts in USD."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def format_usd(amount: float, significant: int = 2) -> str:
    """Return an amount in USD: cents from a dollar up, so many significant digits below."""
    if amount < 0:
        return f"−{format_usd(-amount, significant)}"
    if amount >= 99.5:
        return f"${amount:,.0f}"
    if amount >= 0.995 or amount == 0:
        return f"${amount:.2f}"
    # 0.0028 and never 2.8e-03.
    digits = significant
    while round(amount, digits) < 10 ** (significant - 1 - digits) and digits < 9:
        digits += 1
    return f"${amount:.{digits}f}"
