"""segment_sum against float64 sums: order, masks, strides, values that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from python_tests.ops.cases import LEVELS, instruction_set
from solid_ext.ops.segment_sum import segment_sum

CODES = 7


def problem(rows: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + dim)
    values = torch.randn(rows, dim, generator=generator).to(dtype)
    index = torch.randint(0, CODES, (rows,), generator=generator)
    return values, index, torch.rand(rows, generator=generator) < 0.6


def in_order(values: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """One addition after the other, in the dtype of values."""
    sums = values.new_zeros(CODES, values.shape[1])
    for row in range(len(values)):
        if mask is None or mask[row]:
            sums[index[row]] += values[row]
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
def test_rows_are_added_in_their_order_bit_by_bit(level: str, dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        with instruction_set(level):
            for rows, dim in [(0, 3), (1, 1), (33, 5), (100, 17)]:
                values, index, mask = problem(rows, dim, dtype)
                for valid in (None, mask):
                    for count in (1, 2, 3):
                        torch.set_num_threads(count)
                        assert torch.equal(segment_sum(values, index, valid, CODES), in_order(values, index, valid))
    finally:
        torch.set_num_threads(threads)


def test_strides_do_not_matter() -> None:
    values, index, mask = problem(40, 6, torch.float32)
    expected = segment_sum(values, index, mask, CODES)
    assert torch.equal(segment_sum(values.T.contiguous().T, index, mask, CODES), expected)
    apart = torch.stack([index, index], 1)[:, 0], torch.stack([mask, mask], 1)[:, 0]
    assert torch.equal(segment_sum(values, *apart, CODES), expected)


def test_what_is_not_finite_stays_in_its_code_and_column() -> None:
    values, index, _ = problem(20, 3, torch.float32)
    values[4, 1] = torch.nan
    values[5, 2] = torch.inf
    bad = torch.zeros(CODES, 3, dtype=torch.bool)
    bad[index[4], 1] = bad[index[5], 2] = True
    assert torch.equal(~segment_sum(values, index, None, CODES).isfinite(), bad)
    keep = torch.ones(20, dtype=torch.bool)
    keep[4] = keep[5] = False
    assert bool(segment_sum(values, index, keep, CODES).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    values, index, mask = problem(10, 4, dtype)
    for valid in (None, mask):
        torch.library.opcheck(torch.ops.solid_ext.segment_sum.default, (values, index, valid, CODES))
