"""The vectors of a sequence's symbols, from rows projected once for each symbol and each age."""

from __future__ import annotations

import torch
from torch import Tensor

from solid_ext._native import kernels
from solid_ext.ops import reference
from solid_ext.ops._library import define_operator


def embed_symbols(sequences: Tensor, symbol: Tensor, age: Tensor, looked_up: bool) -> Tensor:
    """`h[b, l] = tanh(symbol[s] + age[a])` for `s = sequences[b, l] > 0`, else 0; no gradient.

    `a = max(n_b - 1 - l, 0)` with `n_b` valid positions: 0 for the last one of a right-padded sequence.

    Args:
        sequences: [B, L] int64, 0 is padding. age: [L, D] float32 or float64.
        symbol: [S, D] a row a symbol, or with `looked_up` [B L, D] a row a position.

    Returns:
        [B, L, D].

    Source: docs/method.md#module-2-semantic-parameter-generation.
    """
    return _operator(sequences, symbol, age, looked_up)


def _embed_cpu(sequences: Tensor, symbol: Tensor, age: Tensor, looked_up: bool) -> Tensor:
    sequences, symbol, age = sequences.contiguous(), symbol.contiguous(), age.contiguous()
    h = symbol.new_empty((*sequences.shape, symbol.shape[1]))
    kernels.symbols(
        symbol.dtype == torch.float64,
        *h.shape,
        looked_up,
        sequences.data_ptr(),
        symbol.data_ptr(),
        age.data_ptr(),
        h.data_ptr(),
        torch.get_num_threads(),
    )
    return h


_operator = define_operator(
    "embed_symbols(Tensor sequences, Tensor symbol, Tensor age, bool looked_up) -> Tensor",
    cpu=_embed_cpu,
    cuda=reference.embed_symbols,
    fake=reference.embed_symbols,
)
