"""dropout against a hash written out in Python's integers: every level, any number of threads, gradients, draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from python_tests.ops.cases import LEVELS, instruction_set
from solid_ext.nn import Dropout
from solid_ext.nn.dropout import rows_behind
from solid_ext.ops._arguments import Backend
from solid_ext.ops.dropout import dropout

BACKENDS: list[Backend] = ["native", "reference"]
KEYS = [0, 1, 2**63 - 1, -1, 0x0123456789ABCDEF]


def key_of(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.int64)


def lowbias32(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


def draw_of(number: int, key: int) -> int:
    high = ((key >> 32) + (number >> 32) * 0x9E3779B9) % 2**32
    return lowbias32(lowbias32((number ^ key) % 2**32) ^ high)


def kept(count: int, key: int, probability: float) -> list[bool]:
    low, high = key % 2**32, (key >> 32) % 2**32
    return [lowbias32(lowbias32(i ^ low) ^ high) >= probability * 2**32 for i in range(count)]


def test_the_hash_is_the_published_one() -> None:
    """Of C. Wellons' hash: 0 stays 0, it is one to one, and a bit of input turns about half of the output."""
    numbers = range(1 << 14)
    assert lowbias32(0) == 0
    assert len({lowbias32(n) for n in numbers}) == len(numbers)
    turned = sum((lowbias32(n) ^ lowbias32(n ^ 1 << bit)).bit_count() for n in range(64) for bit in range(32))
    assert abs(turned / (64 * 32 * 32) - 0.5) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_drops_what_the_hash_says_for_any_number_of_threads(level: str, dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        with instruction_set(level):
            for count in (0, 1, 31, 33, 8191, 8193, 20_000):
                x = torch.linspace(-3, 5, count, dtype=torch.float64).to(dtype)
                for key in KEYS[: 2 if count > 9000 else None]:
                    expected = x * torch.tensor(kept(count, key, 0.3)) * (1 / 0.7)
                    for number in (1, 2, 3):
                        torch.set_num_threads(number)
                        assert torch.equal(dropout(x, key_of(key), 0.3), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_both_back_ends_give_the_same_bits(dtype: torch.dtype) -> None:
    x = torch.randn(7, 33, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    for key in KEYS:
        for probability in (0.0, 1e-12, 0.1, 0.5, 1 - 1e-12):
            first, second = (dropout(x, key_of(key), probability, backend=backend) for backend in BACKENDS)
            assert torch.equal(first, second)
            assert first.dtype == dtype
    assert torch.equal(dropout(x, key_of(3), 0.0), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("before", [1, 5000, 8192, 2**32 - 7])
def test_a_part_gets_the_draws_that_it_has_in_the_whole(before: int, backend: Backend) -> None:
    key, count = 0x0123456789ABCDEF, 9000
    x = torch.linspace(-3, 5, count, dtype=torch.float64)
    draws = torch.tensor([draw_of(before + i, key) >= 0.3 * 2**32 for i in range(count)])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(dropout(x, key_of(key), 0.3, first=before, backend=backend), x * draws * (1 / 0.7))
    part = torch.linspace(1, 2, 7, dtype=torch.float64, requires_grad=True)
    dropout(part, key_of(key), 0.3, first=before, backend=backend).sum().backward()
    assert torch.equal(part.grad, draws[:7].double() * (1 / 0.7))


def test_a_layer_drops_of_rows_behind_others_what_it_drops_of_them_in_the_whole_batch() -> None:
    x, layer = torch.randn(11, 3, 5), Dropout(0.5)
    torch.manual_seed(3)
    whole = layer(x)
    torch.manual_seed(3)
    with rows_behind(4):
        assert torch.equal(layer(x[4:9]), whole[4:9])
    torch.manual_seed(3)
    assert torch.equal(layer(x), whole)


def test_strides_do_not_matter() -> None:
    x = torch.randn(6, 10).T
    assert torch.equal(dropout(x, key_of(5), 0.5), dropout(x.contiguous(), key_of(5), 0.5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_that_of_the_elements_that_were_kept(backend: Backend) -> None:
    x = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: dropout(x, key_of(7), 0.4, backend=backend), x)
    torch.autograd.gradgradcheck(lambda x: dropout(x * x, key_of(7), 0.4, backend=backend), x)
    (gradient,) = torch.autograd.grad(dropout(x, key_of(7), 0.4, backend=backend).sum(), x)
    assert torch.equal(gradient, dropout(torch.ones_like(x), key_of(7), 0.4))


def test_the_operator_keeps_torchs_rules() -> None:
    x = torch.randn(3, 5)
    torch.library.opcheck(torch.ops.solid_ext.dropout.default, (x, key_of(1), 0.5))
    torch.library.opcheck(torch.ops.solid_ext.dropout.default, (x, key_of(1), 0.5, 7))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_as_in_torch(backend: Backend) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(8)
    y = dropout(x, key_of(2), 0.5, backend=backend)
    there = torch.tensor(kept(24, 2, 0.5))
    assert torch.equal(y[there].nan_to_num(1), x[there].nan_to_num(1))
    assert y[~there].isnan().all()


def test_draws_are_even_and_tell_nothing_of_each_other() -> None:
    """Shares and correlations of 2^18 draws within five standard deviations, of neighbours and neighbouring keys."""
    count = 2**18
    ones = torch.ones(count, dtype=torch.float64)
    for probability in (0.1, 0.5, 0.9):
        dropped = dropout(ones, key_of(11), probability).eq(0).double().mean().item()
        assert abs(dropped - probability) < 5 * (probability * (1 - probability) / count) ** 0.5
    signs = dropout(ones, key_of(11), 0.5) - 1  # 1 or -1
    others = [dropout(ones, key_of(key), 0.5) - 1 for key in (10, 12, 11 + 2**32, ~11)]
    others += [signs.roll(shift) for shift in (1, 2, 64, 640, 2**16)]
    for other in others:
        assert abs((signs * other).mean().item()) < 5 / count**0.5


def test_a_layer_draws_its_keys_from_torchs_generator() -> None:
    x = torch.randn(64, 8)
    native, plain = Dropout(0.5), Dropout(0.5, backend="reference")
    torch.manual_seed(3)
    first, second = native(x), native(x)
    torch.manual_seed(3)
    assert torch.equal(plain(x), first)
    assert torch.equal(plain(x), second)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    assert Dropout(0.0)(x) is x
    assert native.eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused(backend: Backend) -> None:
    x, key = torch.randn(3), key_of(0)
    for probability in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"dropout: expected 0 <= probability < 1, got"):
            dropout(x, key, probability, backend=backend)
    with pytest.raises(ValueError, match="first"):
        dropout(x, key, 0.5, first=-1, backend=backend)
    with pytest.raises(TypeError, match=r"dropout: expected x of a floating dtype, got torch\.int64"):
        dropout(torch.arange(3), key, 0.5, backend=backend)
    with pytest.raises(TypeError, match=r"dropout: expected key of torch\.int64, got torch\.int32"):
        dropout(x, key.int(), 0.5, backend=backend)
    with pytest.raises(ValueError, match=r"dropout: expected key \[\], got \[1\]"):
        dropout(x, key.view(1), 0.5, backend=backend)
    with pytest.raises(ValueError, match="dropout: expected backend 'native' or 'reference', got 'fast'"):
        dropout(x, key, 0.5, backend="fast")  # type: ignore[arg-type]
