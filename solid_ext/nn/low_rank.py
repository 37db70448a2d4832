"""Generated layers of low rank: fixed factors around a small generated core (APG)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from solid_ext.nn.dynamic import Branches, DynamicLinear, check_codes, check_input, layer_sizes
from solid_ext.ops._arguments import size
from solid_ext.ops.dynamic_linear import Backend


class LowRankMLP(nn.Module):
    """P layers `y = act((x U) S(z) V + b)`: U [D, r] and V [r, O] are shared, the core S(z) is generated.

    `[S; s] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)` as in `DynamicLinear`, whose kernel applies it:
    `y = act(((x U) S + s) V + b)`; tanh between layers and none after the last. A generator writes r^2 + r values in
    place of D O + O.

    Args:
        sizes: (D_0, .., D_P). code_dim: k. rank: r. delta, branches, backend: as in `DynamicLinear`.

    Shapes: x [B, D_0] or [B, T, D_0], z_item and z_semantic [B, k] or None -> [B, D_P] or [B, T, D_P].

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
            # Factors keep the scale, so that the whole starts at the core's: that of an ordinary layer.
            nn.init.normal_(enter.weight, std=inputs**-0.5)
            nn.init.normal_(leave.weight, std=rank**-0.5)
            self.enter.append(enter)
            self.leave.append(leave)
        self.core = nn.ModuleList(
            DynamicLinear(rank, rank, code_dim, delta, branches=branches, backend=backend) for _ in self.enter
        )

    def forward(self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None) -> Tensor:
        """Apply all layers."""
        check_input("LowRankMLP", x, self.sizes[0])
        check_codes("LowRankMLP", self.branches, self.code_dim, z_item, z_semantic)
        for layer, (enter, core, leave) in enumerate(zip(self.enter, self.core, self.leave, strict=True)):
            x = leave(core(enter(torch.tanh(x) if layer else x), z_item, z_semantic))
        return x
