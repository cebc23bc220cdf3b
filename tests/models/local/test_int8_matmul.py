"""Products with packed matrices are exact where possible, and within half a step where they are rounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smallfirst.models.local.int8_matmul import Int8Linear, PrepackedLinear, int8_supported

needs_int8 = pytest.mark.skipif(not int8_supported(), reason="this processor has no fast int8 products")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_product_is_that_of_its_rows_times_their_factors_plus_the_bias(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]], dtype=dtype)
    rows, factor = torch.tensor([[1.0, 1.0], [2.0, -1.0]]), torch.tensor([[2.0], [0.5]])
    products, left = PrepackedLinear(weight, torch.tensor([0.0, 1.0, -1.0], dtype=dtype))(rows, factor)
    assert left is None
    assert products.dtype == dtype
    assert products.float().tolist() == [[6.0, -1.0, 0.0], [0.0, 6.0, -0.5]]


@needs_int8
def test_whole_numbers_up_to_the_largest_step_are_multiplied_exactly() -> None:
    weight = torch.tensor([[127.0, -3.0, 0.0, 1.0], [5.0, 127.0, -127.0, 2.0]])
    rows = torch.tensor([[127.0, 1.0, 2.0, 3.0], [-127.0, 0.0, 4.0, 5.0]])
    products, step = Int8Linear(weight, None)(rows.clone(), None)
    assert step is not None
    torch.testing.assert_close(products * step, rows @ weight.T)


@needs_int8
def test_a_row_of_zeros_gives_zeros_and_a_bias_is_added_after_the_factor() -> None:
    weight, bias = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([10.0, 20.0])
    rows, factor = torch.tensor([[0.0, 0.0], [127.0, 0.0]]), torch.tensor([[3.0], [2.0]])
    products, left = Int8Linear(weight, bias)(rows, factor)
    assert left is None
    # The weight 1 is half the largest of its row: 63.5 steps of 2 / 127, rounded to 64.
    assert products.tolist() == [[10.0, 20.0], [pytest.approx(10 + 2 * 127 * 64 * 2 / 127), 20.0]]


@needs_int8
@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([0.01, 1.0, 300.0]))
def test_rounding_is_no_worse_than_half_a_step_on_either_side(seed: int, n: int, size: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, rows = torch.randn(24, 32, generator=draw), torch.randn(n, 32, generator=draw) * size
    products, step = Int8Linear(weight, None)(rows.clone(), None)
    assert step is not None
    largest = rows.abs().amax(1, keepdim=True), weight.abs().amax(1)
    # |xy - x'y'| is at most |x| times half a step of y, plus |y'| times half a step of x, summed over 32 entries.
    bound = 32 * (largest[0] * largest[1] / 127) * 1.01
    assert ((products * step - rows @ weight.T).abs() <= bound).all()


@needs_int8
def test_each_row_is_rounded_by_itself() -> None:
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1.0], [1000.0], [0.001]])
    matrix = Int8Linear(weight, None)
    together, steps = matrix(rows.clone(), None)
    for at in range(3):
        alone, step = matrix(rows[at : at + 1].clone(), None)
        assert steps is not None
        assert step is not None
        assert (alone * step).tolist() == [pytest.approx((together * steps)[at].tolist(), rel=1e-5)]
