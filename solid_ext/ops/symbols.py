"""The embedding of a sequence's symbols, from tables that are already projected: checks, allocation, operator."""

from __future__ import annotations

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import reference
from solid_ext.ops._arguments import expect_device, expect_tensor
from solid_ext.ops._library import define_operator, expect_no_tangent


def embed_symbols(sequences: Tensor, symbol: Tensor, age: Tensor, looked_up: bool) -> Tensor:
    """`h[b, l] = tanh(symbol[s] + age[a])` where `s = sequences[b, l]` is not 0, and zero at padding.

    `a = max(n_b - 1 - l, 0)` is the age of the position, `n_b` being the valid positions of sequence b: 0 for the most
    recent symbol of a right-padded sequence.

    Args:
        sequences: [B, L] int64, ids 0 .. S - 1, of which 0 is padding.
        symbol: float32, float64, bfloat16 or float16; the table [S, D] with a row for each symbol, or with `looked_up`
            the rows [B L, D] that were read from it, one for each position.
        age: [L or more, D], in the dtype of symbol, a row for each age.
        looked_up: whether `symbol` has a row for each position.

    Returns:
        [B, L, D], in the dtype of symbol, computed in float32 or wider.

    Raises:
        ValueError: a shape or device that does not fit; on the CPU an id outside 0 .. S - 1.
        TypeError: a dtype that does not fit.

    Gradient: none; `solid_ext.models.symbols` has it.

    Source: docs/method.md#module-2-semantic-parameter-generation.
    """
    for name, tensor in (("sequences", sequences), ("symbol", symbol), ("age", age)):
        expect_tensor("embed_symbols", name, tensor)
    expect_no_tangent("embed_symbols", symbol, age)
    if symbol.dtype in (torch.bfloat16, torch.float16) and age.dtype == symbol.dtype:
        return _operator(sequences, symbol.float(), age.float(), looked_up).to(symbol.dtype)
    return _operator(sequences, symbol, age, looked_up)


def _check(sequences: Tensor, symbol: Tensor, age: Tensor, looked_up: bool) -> None:
    for name, tensor in (("sequences", sequences), ("symbol", symbol), ("age", age)):
        expect_tensor("embed_symbols", name, tensor)
        expect_device("embed_symbols", name, tensor, sequences)
        if tensor.dim() != 2:
            shape = "[B, L]" if name == "sequences" else f"[{'L' if name == 'age' else 'S'}, D]"
            raise ValueError(f"embed_symbols: expected {name} {shape}, got {list(tensor.shape)}")
    if sequences.dtype != torch.int64:
        raise TypeError(f"embed_symbols: expected sequences of torch.int64, got {sequences.dtype}")
    if symbol.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"embed_symbols: expected symbol of float32 or float64, got {symbol.dtype}")
    if age.dtype != symbol.dtype:
        raise TypeError(f"embed_symbols: expected age of {symbol.dtype}, got {age.dtype}")
    (batch, length), dim = sequences.shape, symbol.shape[1]
    if dim < 1 or (looked_up and symbol.shape[0] != batch * length):
        rows = f"B L={batch * length}" if looked_up else "S"
        raise ValueError(f"embed_symbols: expected symbol [{rows}, D >= 1], got {list(symbol.shape)}")
    if age.shape[0] < length or age.shape[1] != dim:
        raise ValueError(f"embed_symbols: expected age [L={length} or more, D={dim}], got {list(age.shape)}")


def _embed_cpu(sequences: Tensor, symbol: Tensor, age: Tensor, looked_up: bool) -> Tensor:
    sequences, symbol, age = sequences.contiguous(), symbol.contiguous(), age.contiguous()
    h = symbol.new_empty((*sequences.shape, symbol.shape[1]))
    kernels.symbols(
        symbol.dtype == torch.float64,
        *h.shape,
        looked_up,
        symbol.shape[0],
        sequences.data_ptr(),
        symbol.data_ptr(),
        age.data_ptr(),
        h.data_ptr(),
        torch.get_num_threads(),
    )
    return h


_operator = define_operator(
    "embed_symbols(Tensor sequences, Tensor symbol, Tensor age, bool looked_up) -> Tensor",
    check=_check,
    cpu=_embed_cpu,
    cuda=reference.embed_symbols,
    fake=reference.embed_symbols,
)
