"""The control of dynamic layers: layers of everybody, to whose result a generated bias is added."""

from __future__ import annotations

import math

from torch import Tensor, nn

from solid_ext.models.encoder import plain_layers
from solid_ext.nn.dynamic import Branches, check_conditions, check_input, register_generators, start_generators
from solid_ext.ops.reference import generated_weights


class PersonalBias(nn.Module):
    """Ordinary layers, tanh between them, and a bias of each sequence's own: `y = MLP(x) + b`.

    `b = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)`. A sequence brings d values and no matrix, so that beside
    dynamic layers this tells what they are worth from what their conditions know. Map and offset of a branch start as
    those of a `DynamicLinear` do.

    Shapes: x [B, d] or [B, T, d], conditions [B, k] -> the shape of x.

    Gradient: to x, the conditions and all parameters.

    Args:
        dim: d.
        layers: how many ordinary layers.
        code_dim: k, the dimension of the conditions.
        delta: the bound of the item branch; infinity for none.
        branches: which branches there are, "both", "item" or "semantic".

    Attributes:
        semantic_map, item_map: A_c and A_v [1, k, d]; None without the branch.
        semantic_offset, item_offset: a_c and a_v [1, d]; None without the branch.

    Raises:
        ValueError: in a call, a tensor that does not fit, a condition of a branch that there is not, or none.
        TypeError: in a call, no tensor.

    Source: docs/device.md#the-personal-bias.
    """

    item_map: nn.Parameter | None
    item_offset: nn.Parameter | None
    semantic_map: nn.Parameter | None
    semantic_offset: nn.Parameter | None

    def __init__(self, dim: int, layers: int, code_dim: int, delta: float, *, branches: Branches = "both") -> None:
        super().__init__()
        self.dim, self.code_dim, self.delta, self.branches = dim, code_dim, float(delta), branches
        self.layers = plain_layers(dim, layers)
        register_generators(self, 1, code_dim, dim, branches)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the generator's parameters anew."""
        start_generators(self, 1 / math.sqrt(3 * self.dim))

    def bias(self, z_item: Tensor | None, z_semantic: Tensor | None) -> Tensor:
        """The generated bias [B, d] of conditions [B, k], None for a branch that is off."""
        item, semantic = (self.item_map, self.item_offset), (self.semantic_map, self.semantic_offset)
        return generated_weights(z_item, z_semantic, *item, *semantic, self.delta).squeeze(1)

    def forward(self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None) -> Tensor:
        check_input("PersonalBias", x, self.dim)
        check_conditions("PersonalBias", self.branches, self.code_dim, z_item, z_semantic)
        bias = self.bias(z_item, z_semantic)
        return self.layers(x) + (bias if x.dim() == 2 else bias.unsqueeze(1))
