"""Embeddings of a sequence's symbols: items as the backbone reads them, items or semantics as the encoders do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.nn.lookup import Lookup, sparse_rows
from solid_ext.nn.padding import ages, valid_mask
from solid_ext.ops._arguments import Backend, expect_ids
from solid_ext.ops._library import applied, exporting, first_order
from solid_ext.ops.segment_sum import sum_segments
from solid_ext.ops.symbols import embed_symbols


class ItemEmbedding(Lookup):
    """`e(v) = table[v] + W f(v)`: an embedding of every item, and a linear map of what is known about it.

    W starts at 0.

    Shapes: items [...] int64 -> [..., d]; padding (0) has e = 0.

    Gradient: to table and W.

    Args:
        num_items: V.
        dim: d.
        features: f [V + 1, F] float32, whose row 0 and rows of items without features are zero; None for none.
        backend: "native" or "reference", of the lookup; "native" maps the features of all items once where more are
            looked up than there are.

    Raises:
        ValueError: features of another shape.

    Source: docs/method.md#item-features.
    """

    features: Tensor | None

    def __init__(self, num_items: int, dim: int, features: Tensor | None = None, backend: Backend = "native") -> None:
        super().__init__(num_items + 1, dim, padding_idx=0, backend=backend)
        if features is not None and (features.dim() != 2 or len(features) != num_items + 1):
            raise ValueError(f"features: expected [V + 1 = {num_items + 1}, F], got {list(features.shape)}")
        nn.init.normal_(self.weight, std=dim**-0.5)
        with torch.no_grad():
            self.weight[0].zero_()
        self.register_buffer("features", features)
        self.feature_map = None
        if features is not None:
            self.feature_map = nn.Parameter(torch.zeros(dim, features.shape[1]))

    def table(self) -> Tensor:
        """e(v) of padding and of all items: [V + 1, d]."""
        if self.features is None or self.feature_map is None:
            return self.weight
        return torch.addmm(self.weight, self.features, self.feature_map.T)

    def forward(self, index: Tensor) -> Tensor:
        if self.features is None or self.feature_map is None:
            return super().forward(index)
        if self.backend == "reference" or self.sparse or exporting() or index.numel() < self.num_embeddings - 1:
            return super().forward(index) + F.linear(self.features[index], self.feature_map)
        expect_ids("ItemEmbedding", index, self.num_embeddings, "index")
        return self.rows_of(self.table(), index)


class RowEmbedding(nn.Module):
    """`H = tanh(linear(e + position[age]))` of rows e that another table holds, zero on padding.

    Shapes: rows e [B, L, d], mask [B, L] bool -> H [B, L, k].

    Gradient: to the rows and to all parameters.

    Args:
        length: the largest L.
        dim: d.
        width: k.

    Source: docs/method.md#module-2-semantic-parameter-generation.
    """

    def __init__(self, length: int, dim: int, width: int) -> None:
        super().__init__()
        self.position = nn.Embedding(length, dim)
        self.linear = nn.Linear(dim, width)
        nn.init.normal_(self.position.weight, std=dim**-0.5)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        return self.linear(rows + self.position(ages(mask))).tanh() * mask.unsqueeze(2)


class SymbolEmbedding(nn.Module):
    """`H = tanh(linear(table[s] + position[age]))`, zero on padding.

    Shapes: sequences [B, L] int64 with ids 0 .. num_symbols (0 is padding) -> H [B, L, d].

    The age of a position is 0 for the most recent symbol and counts up to the oldest.

    Gradient: to all parameters.

    Args:
        num_symbols: the rows of the table besides that of padding.
        length: the largest L.
        dim: d.
        backend: "native" projects each symbol once and not each position, and keeps H alone for the backward;
            "reference" is the formula as it stands.

    Raises:
        ValueError: in a call, sequences of another shape, or ids that the table has no row for.
        TypeError: in a call, sequences of another dtype.

    Source: docs/method.md#module-2-semantic-parameter-generation.
    """

    def __init__(self, num_symbols: int, length: int, dim: int, backend: Backend = "native") -> None:
        super().__init__()
        self.table = nn.Embedding(num_symbols + 1, dim, padding_idx=0)
        self.position = nn.Embedding(length, dim)
        self.linear = nn.Linear(dim, dim)
        self.backend: Backend = backend
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        nn.init.normal_(self.position.weight, std=dim**-0.5)
        with torch.no_grad():
            self.table.weight[0].zero_()

    def forward(self, sequences: Tensor) -> Tensor:
        expect_ids("SymbolEmbedding", sequences, self.table.num_embeddings, "sequences")
        length = self.position.num_embeddings
        if sequences.dim() != 2 or sequences.shape[1] > length:
            raise ValueError(f"SymbolEmbedding: expected sequences [B, L <= {length}], got {list(sequences.shape)}")
        if self.backend == "native":
            weights = (self.table.weight, self.position.weight, self.linear.weight, self.linear.bias)
            return applied(_Symbols, sequences, *weights, self.table.sparse)
        mask = valid_mask(sequences)
        embedded = self.table(sequences) + self.position(ages(mask))
        return self.linear(embedded).tanh() * mask.unsqueeze(2)


class _Symbols(torch.autograd.Function):
    """`tanh(linear(t[s] + p[age]))` as `tanh((t W')[s] + (p W' + b)[age])`: the lookups come after the linear layer.

    Where the table has more rows than the batch has positions, its rows are looked up before, so that the work is
    bounded by the smaller number.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        sequences: Tensor,
        table: Tensor,
        position: Tensor,
        weight: Tensor,
        bias: Tensor,
        sparse: bool,
    ) -> Tensor:
        looked_up = exporting() or table.shape[0] > sequences.numel()
        rows = table.index_select(0, sequences.flatten()) if looked_up else table
        return embed_symbols(sequences, rows @ weight.T, torch.addmm(bias, position, weight.T), looked_up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        sequences, table, position, weight, _, ctx.sparse = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(sequences, table, position, weight, output)

    @staticmethod
    @first_order("SymbolEmbedding")
    def backward(ctx: Any, dh: Tensor | None) -> tuple[Tensor | None, ...]:
        if dh is None:
            return (None,) * 6
        sequences, table, position, weight, h = ctx.saved_tensors
        mask, symbols = valid_mask(sequences), sequences.flatten()
        valid = mask.flatten()
        of_sum = torch.ops.aten.tanh_backward(dh, h).flatten(0, 1)
        of_age = sum_segments(of_sum, ages(mask).flatten(), valid, len(position))
        if len(table) <= len(symbols):
            of_symbol = sum_segments(of_sum, symbols, valid, len(table))
            dweight = of_symbol.T @ table
            dtable = of_symbol @ weight
        else:
            dweight = (of_sum * valid.unsqueeze(1)).T @ table.index_select(0, symbols)
            sum_rows = sparse_rows if ctx.sparse else sum_segments
            dtable = sum_rows(of_sum @ weight, symbols, valid, len(table))
        dweight = dweight + of_age.T @ position
        return None, dtable, of_age @ weight, dweight, of_age.sum(0), None
