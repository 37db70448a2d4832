"""Layers without weights of their own: every sequence brings a code, from which its weights are generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from solid_ext.ops._arguments import expect_number, expect_tensor, size
from solid_ext.ops.dynamic_linear import Activation, Backend, dynamic_linear, dynamic_mlp

Branches = Literal["both", "item", "semantic"]

# Share of a generated weight's starting variance that depends on the sequence; the offset, equal for all
# sequences, has the rest, so that training starts near an ordinary layer.
GENERATED_SHARE = 0.25


class DynamicLinear(nn.Module):
    """A linear layer whose weights are generated for every sequence, from a trunk and a bounded correction.

    `y = act(x W + b)` with `[W; b] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)`. The semantic
    branch (z_c) is the trunk; the item branch (z_v) corrects it. Parameters, of the branches that the layer has:
    `semantic_map`, `item_map` (A) [D + 1, k, O] and `semantic_offset`, `item_offset` (a) [D + 1, O]; row D
    generates the bias b.

    At the start, for z of unit scale, trunk weights have standard deviation 1 / sqrt(3 D), that of `nn.Linear`
    (three quarters of the variance from the uniform offset). The item branch starts with offset 0 and a standard
    deviation of min(delta, 1 / sqrt(3 D)) / 2, inside the clip, where its gradient lives; alone and unbounded
    it starts as a trunk.

    Args:
        in_features: D. out_features: O. code_dim: k.
        delta: bound of the item branch, > 0; infinity for none.
        branches: "both", "item" or "semantic": which branches the layer has.
        activation: "none" or "tanh".
        backend: "native" (kernel) or "reference" (plain torch); the parameters are the same.

    Source: docs/method.md#module-3-semantic-metacode.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        code_dim: int = 32,
        delta: float = 0.01,
        *,
        branches: Branches = "both",
        activation: Activation = "none",
        backend: Backend = "native",
    ) -> None:
        super().__init__()
        in_features = size("DynamicLinear", "in_features", in_features)
        out_features = size("DynamicLinear", "out_features", out_features)
        code_dim = size("DynamicLinear", "code_dim", code_dim)
        _check_options("DynamicLinear", delta, branches, backend)
        if activation not in get_args(Activation):
            raise ValueError(f"DynamicLinear: expected activation 'none' or 'tanh', got {activation!r}")
        self.in_features = in_features
        self.out_features = out_features
        self.code_dim = code_dim
        self.delta = float(delta)
        self.branches = branches
        self.activation: Activation = activation
        self.backend: Backend = backend
        rows = in_features + 1
        for branch in ("item", "semantic"):
            present = branches in (branch, "both")
            generator_map = nn.Parameter(torch.empty(rows, code_dim, out_features)) if present else None
            offset = nn.Parameter(torch.empty(rows, out_features)) if present else None
            self.register_parameter(f"{branch}_map", generator_map)
            self.register_parameter(f"{branch}_offset", offset)
        self.item_map: nn.Parameter | None
        self.item_offset: nn.Parameter | None
        self.semantic_map: nn.Parameter | None
        self.semantic_offset: nn.Parameter | None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the class describes."""
        ordinary = 1 / math.sqrt(3 * self.in_features)
        if self.semantic_map is not None and self.semantic_offset is not None:
            _start_trunk(self.semantic_map, self.semantic_offset, ordinary)
        if self.item_map is not None and self.item_offset is not None:
            if self.branches == "item" and math.isinf(self.delta):
                _start_trunk(self.item_map, self.item_offset, ordinary)
            else:
                self.item_map.normal_(0, min(self.delta, ordinary) / 2 / math.sqrt(self.code_dim))
                self.item_offset.zero_()

    def forward(self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None) -> Tensor:
        """Apply the layer.

        Args:
            x: [B, D] or [B, T, D]. z_item, z_semantic: [B, k]; None switches a branch off.

        Returns:
            [B, O] or [B, T, O].

        Errors: ValueError or TypeError for tensors that do not fit, z of a branch that the layer lacks, or None for
        both.
        """
        check_input("DynamicLinear", x, self.in_features)
        check_codes("DynamicLinear", self.branches, self.code_dim, z_item, z_semantic)
        return dynamic_linear(
            x,
            z_item,
            z_semantic,
            self.item_map,
            self.item_offset,
            self.semantic_map,
            self.semantic_offset,
            delta=self.delta,
            activation=self.activation,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, code_dim={self.code_dim}, delta={self.delta}, "
            f"branches={self.branches!r}, activation={self.activation!r}, backend={self.backend!r}"
        )


class DynamicMLP(nn.Module):
    """A stack of `DynamicLinear` layers in one call, tanh between them and none after the last.

    Args:
        sizes: (D_0, D_1, .., D_P), so P = len(sizes) - 1 layers.
        code_dim: k, shared by all layers. delta, branches, backend: as in `DynamicLinear`.

    Source: docs/kernels/dynamic_mlp.md#contract.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (32, 32, 32),
        code_dim: int = 32,
        delta: float = 0.01,
        *,
        branches: Branches = "both",
        backend: Backend = "native",
    ) -> None:
        super().__init__()
        sizes = layer_sizes("DynamicMLP", sizes)
        _check_options("DynamicMLP", delta, branches, backend)
        self.sizes = sizes
        self.delta = float(delta)
        self.branches = branches
        self.backend: Backend = backend
        self.code_dim = code_dim
        last = len(sizes) - 2
        self.layers = nn.ModuleList(
            DynamicLinear(
                inputs,
                outputs,
                code_dim,
                delta,
                branches=branches,
                activation="none" if layer == last else "tanh",
                backend=backend,
            )
            for layer, (inputs, outputs) in enumerate(pairwise(sizes))
        )

    def forward(self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None) -> Tensor:
        """Apply all layers.

        Args:
            x: [B, D_0] or [B, T, D_0].
            z_item, z_semantic: [B, k]; None switches a branch off (stage 1 trains the semantic branch alone).

        Returns:
            [B, D_P] or [B, T, D_P].

        Errors: ValueError or TypeError for tensors that do not fit, z of a branch that the layers lack, or None for
        both.
        """
        check_input("DynamicMLP", x, self.sizes[0])
        check_codes("DynamicMLP", self.branches, self.code_dim, z_item, z_semantic)
        return dynamic_mlp(
            x,
            z_item,
            z_semantic,
            self._parameters_of("item_map") if z_item is not None else [],
            self._parameters_of("item_offset") if z_item is not None else [],
            self._parameters_of("semantic_map") if z_semantic is not None else [],
            self._parameters_of("semantic_offset") if z_semantic is not None else [],
            delta=self.delta,
            backend=self.backend,
        )

    def _parameters_of(self, name: str) -> list[Tensor]:
        # From the modules' dictionaries where it lies there: attribute access takes 8 us more per call.
        found: list[Tensor] = []
        for layer in vars(self)["_modules"]["layers"]._modules.values():
            parameter = layer._parameters.get(name)
            found.append(getattr(layer, name) if parameter is None else parameter)
        return found


def _start_trunk(generator_map: Tensor, offset: Tensor, std: float) -> None:
    generator_map.normal_(0, std * math.sqrt(GENERATED_SHARE / generator_map.shape[1]))
    bound = std * math.sqrt(3 * (1 - GENERATED_SHARE))
    offset.uniform_(-bound, bound)


def _check_options(name: str, delta: float, branches: str, backend: str) -> None:
    expect_number(name, "delta", delta)
    if not delta > 0:
        raise ValueError(f"{name}: expected delta > 0, got {delta}")
    if branches not in get_args(Branches):
        raise ValueError(f"{name}: expected branches 'both', 'item' or 'semantic', got {branches!r}")
    if backend not in get_args(Backend):
        raise ValueError(f"{name}: expected backend 'native' or 'reference', got {backend!r}")


def layer_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes (D_0, .., D_P) of P >= 1 layers as ints, or a ValueError or TypeError."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) < 2:
        raise ValueError(f"{name}: expected at least two sizes (D_0, .., D_P), got {sizes!r}")
    return tuple(size(name, f"sizes[{at}]", value) for at, value in enumerate(sizes))


def check_input(name: str, x: Tensor, inputs: int) -> None:
    """ValueError or TypeError unless x is [B, inputs] or [B, T, inputs]."""
    expect_tensor(name, "x", x)
    if x.dim() not in (2, 3) or x.shape[-1] != inputs:
        raise ValueError(f"{name}: expected x [B, D={inputs}] or [B, T, D={inputs}], got {list(x.shape)}")


def check_codes(name: str, branches: str, codes: int, z_item: Tensor | None, z_semantic: Tensor | None) -> None:
    """ValueError or TypeError unless the codes of these branches, and of at least one, are [B, codes]."""
    if z_item is None and z_semantic is None:
        raise ValueError(f"{name}: expected z_item or z_semantic, got None for both")
    for branch, other, z in (("item", "semantic", z_item), ("semantic", "item", z_semantic)):
        if z is None:
            continue
        expect_tensor(name, f"z_{branch}", z)
        if branches == other:
            raise ValueError(f"{name}: expected z_{branch} None (branches={other!r}), got {list(z.shape)}")
        if z.dim() != 2 or z.shape[1] != codes:
            raise ValueError(f"{name}: expected z_{branch} [B, k={codes}], got {list(z.shape)}")
