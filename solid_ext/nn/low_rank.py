"""Dynamic layers of low rank, which are the recommender's default: shared factors around a small generated core."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from solid_ext.nn.dynamic import (
    Branches,
    DynamicLinear,
    called_one_by_one,
    check_conditions,
    check_input,
    layer_sizes,
    parameters_of,
)
from solid_ext.ops._arguments import Backend, size
from solid_ext.ops._library import autocasts, without_autocast
from solid_ext.ops.dynamic_linear import in_dtype_of
from solid_ext.ops.low_rank import low_rank_mlp


class LowRankMLP(nn.Module):
    """P dynamic layers `y = act(((x U) S + s) V + b)`, of which the core S [r, r] and s [r] is generated.

    The factors U [D, r] and V [r, O] and the bias b are shared by all sequences. The core is that of a `DynamicLinear`:
    `[S; s] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)`. The activation is tanh
    between layers and none after the last. `DynamicMLP` generates D O + O values a layer, this r^2 + r: in the
    recommender, whose default it is, d = 64 and r = 16 make 272 of 4160.

    Args:
        sizes: (D_0, .., D_P), of P = len(sizes) - 1 layers.
        code_dim: k, the dimension of the conditions, which all layers share.
        rank: r.
        delta: the bound of the item branch, as in `DynamicLinear`.
        branches: as in `DynamicLinear`.
        backend: as in `DynamicLinear`.

    Raises: as `DynamicLinear`.

    Source: Yan et al. 2022, "APG: Adaptive Parameter Generation Network for Click-Through Rate Prediction".
    """

    def __init__(
        self,
        sizes: Sequence[int],
        code_dim: int,
        rank: int,
        delta: float,
        *,
        branches: Branches = "both",
        backend: Backend = "native",
    ) -> None:
        super().__init__()
        rank, sizes = size("LowRankMLP", "rank", rank), layer_sizes("LowRankMLP", sizes)
        self.sizes, self.branches, self.code_dim = sizes, branches, size("LowRankMLP", "code_dim", code_dim)
        self.enter, self.leave = nn.ModuleList(), nn.ModuleList()
        for inputs, outputs in pairwise(sizes):
            enter, leave = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs)
            _start(enter, leave)
            self.enter.append(enter)
            self.leave.append(leave)
        self.core = nn.ModuleList(
            DynamicLinear(rank, rank, code_dim, delta, branches=branches, backend=backend) for _ in self.enter
        )
        self.delta, self.backend = float(delta), backend

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the class describes."""
        for enter, leave, core in zip(self.enter, self.leave, self.core, strict=True):
            assert isinstance(enter, nn.Linear)
            assert isinstance(leave, nn.Linear)
            assert isinstance(core, DynamicLinear)
            enter.reset_parameters()
            leave.reset_parameters()
            _start(enter, leave)
            core.reset_parameters()

    def forward(
        self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None, gate: Tensor | None = None
    ) -> Tensor:
        """Apply all layers.

        Args:
            x: [B, D_0] or [B, T, D_0].
            z_item: z_v [B, k]; None switches the item branch off.
            z_semantic: z_c [B, k]; None switches the semantic branch off.
            gate: one number []; where it is given the layers are added to x, `x + gate * layers(x)`, in the same call.

        Returns:
            [B, D_P] or [B, T, D_P], in x's dtype.

        Raises: as `DynamicLinear`.
        """
        check_input("LowRankMLP", x, self.sizes[0])
        check_conditions("LowRankMLP", self.branches, self.code_dim, z_item, z_semantic)
        kinds = (self.enter, nn.Linear), (self.leave, nn.Linear), (self.core, DynamicLinear)
        if any(called_one_by_one(layers, kind) for layers, kind in kinds):
            return self._one_by_one(x, z_item, z_semantic, gate)
        return low_rank_mlp(
            x,
            z_item,
            z_semantic,
            parameters_of(self, "enter", "weight"),
            parameters_of(self, "leave", "weight"),
            parameters_of(self, "leave", "bias"),
            parameters_of(self, "core", "item_map") if z_item is not None else [],
            parameters_of(self, "core", "item_offset") if z_item is not None else [],
            parameters_of(self, "core", "semantic_map") if z_semantic is not None else [],
            parameters_of(self, "core", "semantic_offset") if z_semantic is not None else [],
            delta=self.delta,
            gate=gate,
            backend=self.backend,
        )

    def _one_by_one(self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None, gate: Tensor | None) -> Tensor:
        """The same by calls of the layers, for the hooks of those that have any."""
        if autocasts(x):
            x, z_item, z_semantic = in_dtype_of(parameters_of(self, "enter", "weight"), x, z_item, z_semantic)
        h = x
        with without_autocast(x):
            for layer, (enter, core, leave) in enumerate(zip(self.enter, self.core, self.leave, strict=True)):
                h = leave(core(enter(torch.tanh(h) if layer else h), z_item, z_semantic))
            return h if gate is None else x + gate * h


def _start(enter: nn.Linear, leave: nn.Linear) -> None:
    """The factors keep the scale of what they multiply, so that the whole starts at that of an ordinary layer."""
    nn.init.normal_(enter.weight, std=enter.in_features**-0.5)
    nn.init.normal_(leave.weight, std=leave.in_features**-0.5)
