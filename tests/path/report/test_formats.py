"""Amounts and differences as a person reads them."""

import pytest

from smallfirst.models.pricing import format_usd
from smallfirst.path.report.formats import question_and_context


@pytest.mark.parametrize(("amount", "text"), [
    (0, "$0.00"), (0.0028, "$0.0028"), (0.05, "$0.050"), (0.996, "$1.00"), (12.345, "$12.35"), (1234.5, "$1,234"),
    (-2.5, "−$2.50"),
])  # fmt: skip
def test_an_amount_keeps_the_digits_somebody_can_use(amount: float, text: str) -> None:
    assert format_usd(amount) == text


def test_the_question_stands_after_the_last_blank_line() -> None:
    assert question_and_context("One.\n\nTwo.\n\nWho?") == ("Who?", "One.\n\nTwo.")
    assert question_and_context("Who?\n") == ("Who?", "")
