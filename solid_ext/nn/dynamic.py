"""Dynamic layers: every sequence brings a condition, from which the weights of its layer are generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from solid_ext.ops._arguments import Backend, expect_backend, expect_tensor, real, size
from solid_ext.ops.dynamic_linear import Activation, dynamic_linear, dynamic_mlp

Branches = Literal["both", "item", "semantic"]

# The share of a generated weight's starting variance that depends on the sequence. The offset, equal for all
# sequences, has the rest, so that training starts near an ordinary layer.
GENERATED_SHARE = 0.25


class DynamicLinear(nn.Module):
    """A linear layer whose weights are generated for every sequence, as a trunk and a bounded correction.

    `y = act(x W + b)` with `[W; b] = (z_c A_c + a_c) + clip(z_v A_v + a_v, -delta, delta)`. The semantic branch, with
    the condition z_c, is the trunk; the item branch, with z_v, corrects it.

    At the start, for z of unit scale, the trunk's weights have the standard deviation 1 / sqrt(3 D) of `nn.Linear`,
    three quarters of their variance being the uniform offset's. The item branch starts with offset 0 and a standard
    deviation of min(delta, 1 / sqrt(3 D)) / 2, so that its weights lie inside the clip, where there is a gradient; a
    layer that has this branch alone, without a bound, starts as a trunk.

    Args:
        in_features: D.
        out_features: O.
        code_dim: k, the dimension of the conditions.
        delta: the bound of the item branch, > 0; infinity for none.
        branches: which branches the layer has, "both", "item" or "semantic".
        activation: "none" or "tanh".
        backend: "native" (the kernel) or "reference" (plain torch); the parameters are the same.

    Attributes:
        semantic_map: A_c [D + 1, k, O], whose row D generates the bias; None without the branch.
        semantic_offset: a_c [D + 1, O]; None without the branch.
        item_map: A_v [D + 1, k, O]; None without the branch.
        item_offset: a_v [D + 1, O]; None without the branch.

    Raises:
        ValueError: a size or an option out of range.
        TypeError: an argument of another type.

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
        register_generators(self, in_features + 1, code_dim, out_features, branches)
        self.item_map: nn.Parameter | None
        self.item_offset: nn.Parameter | None
        self.semantic_map: nn.Parameter | None
        self.semantic_offset: nn.Parameter | None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as the class describes."""
        start_generators(self, 1 / math.sqrt(3 * self.in_features))

    def forward(self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None) -> Tensor:
        """Apply the layer.

        Args:
            x: [B, D] or [B, T, D].
            z_item: z_v [B, k]; None switches the item branch off.
            z_semantic: z_c [B, k]; None switches the semantic branch off.

        Returns:
            [B, O] or [B, T, O], in x's dtype.

        Raises:
            ValueError: a tensor that does not fit, a condition of a branch that the layer lacks, or None for both.
            TypeError: a dtype that does not fit.
        """
        check_input("DynamicLinear", x, self.in_features)
        check_conditions("DynamicLinear", self.branches, self.code_dim, z_item, z_semantic)
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

    Every weight of the layers is generated, as in the paper. `LowRankMLP` generates a small core of each layer instead.
    A layer that has a hook, is sharded by itself or was replaced is called, and then so is every other: the same
    result, one call of the kernel for each.

    Args:
        sizes: (D_0, D_1, .., D_P), of P = len(sizes) - 1 layers.
        code_dim: k, the dimension of the conditions, which all layers share.
        delta: the bound of the item branch, as in `DynamicLinear`.
        branches: as in `DynamicLinear`.
        backend: as in `DynamicLinear`.

    Raises: as `DynamicLinear`.

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

    def reset_parameters(self) -> None:
        """Draw the parameters of all layers anew."""
        for layer in self.layers:
            assert isinstance(layer, DynamicLinear)
            layer.reset_parameters()

    def forward(self, x: Tensor, z_item: Tensor | None, z_semantic: Tensor | None) -> Tensor:
        """Apply all layers.

        Args:
            x: [B, D_0] or [B, T, D_0].
            z_item: z_v [B, k]; None switches the item branch off.
            z_semantic: z_c [B, k]; None switches the semantic branch off.

        Returns:
            [B, D_P] or [B, T, D_P], in x's dtype.

        Raises: as `DynamicLinear`.
        """
        check_input("DynamicMLP", x, self.sizes[0])
        check_conditions("DynamicMLP", self.branches, self.code_dim, z_item, z_semantic)
        if called_one_by_one(self.layers, DynamicLinear):
            for layer in self.layers:
                x = layer(x, z_item, z_semantic)
            return x
        return dynamic_mlp(
            x,
            z_item,
            z_semantic,
            parameters_of(self, "layers", "item_map") if z_item is not None else [],
            parameters_of(self, "layers", "item_offset") if z_item is not None else [],
            parameters_of(self, "layers", "semantic_map") if z_semantic is not None else [],
            parameters_of(self, "layers", "semantic_offset") if z_semantic is not None else [],
            delta=self.delta,
            backend=self.backend,
        )


def called_one_by_one(layers: nn.ModuleList, kind: type[nn.Module]) -> bool:
    """Whether the layers have to be called, as one of them is no plain `kind` or has hooks that wait for its call."""
    for layer in layers._modules.values():
        own = vars(layer)  # attribute access of a module takes longer than all the rest
        if type(layer) is not kind or own["_forward_hooks"] or own["_forward_pre_hooks"]:
            return True
        if own["_backward_hooks"] or own["_backward_pre_hooks"] or "forward" in own:
            return True
    return False


def parameters_of(module: nn.Module, layers: str, name: str) -> list[Tensor]:
    """The parameter of this name of every layer in the module's list of layers."""
    # Read from the modules' dictionaries where it lies there: attribute access takes 8 us more a call.
    found: list[Tensor] = []
    for layer in vars(module)["_modules"][layers]._modules.values():
        parameter = layer._parameters.get(name)
        found.append(getattr(layer, name) if parameter is None else parameter)
    return found


def register_generators(module: nn.Module, rows: int, code_dim: int, width: int, branches: Branches) -> None:
    """Give a module maps [rows, k, width] and offsets [rows, width] of its branches; None for one that it has not."""
    for branch in ("item", "semantic"):
        present = branches in (branch, "both")
        generator_map = nn.Parameter(torch.empty(rows, code_dim, width)) if present else None
        offset = nn.Parameter(torch.empty(rows, width)) if present else None
        module.register_parameter(f"{branch}_map", generator_map)
        module.register_parameter(f"{branch}_offset", offset)


@torch.no_grad()
def start_generators(module: Any, ordinary: float) -> None:
    """Draw a module's maps and offsets, so that what a trunk generates has the standard deviation of an ordinary layer.

    A branch starts inside its bound, which is no more than that; an unbounded one without a trunk is the trunk.
    """
    if module.semantic_map is not None:
        _start_trunk(module.semantic_map, module.semantic_offset, ordinary)
    if module.item_map is None:
        return
    if module.branches == "item" and math.isinf(module.delta):
        _start_trunk(module.item_map, module.item_offset, ordinary)
    else:
        bound = min(module.delta, ordinary)
        module.item_map.normal_(0, bound / 2 / math.sqrt(module.code_dim))
        module.item_offset.zero_()


def _start_trunk(generator_map: Tensor, offset: Tensor, std: float) -> None:
    generator_map.normal_(0, std * math.sqrt(GENERATED_SHARE / generator_map.shape[1]))
    bound = std * math.sqrt(3 * (1 - GENERATED_SHARE))
    offset.uniform_(-bound, bound)


def _check_options(name: str, delta: float, branches: str, backend: str) -> None:
    delta = real(name, "delta", delta)
    if not delta > 0:
        raise ValueError(f"{name}: expected delta > 0, got {delta}")
    if branches not in get_args(Branches):
        raise ValueError(f"{name}: expected branches 'both', 'item' or 'semantic', got {branches!r}")
    expect_backend(name, backend)


def layer_sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes (D_0, .., D_P) of P >= 1 layers as ints.

    Raises:
        ValueError: fewer than two sizes, or one below 1.
        TypeError: a size that is no whole number.
    """
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) < 2:
        raise ValueError(f"{name}: expected at least two sizes (D_0, .., D_P), got {sizes!r}")
    return tuple(size(name, f"sizes[{at}]", value) for at, value in enumerate(sizes))


def check_input(name: str, x: Tensor, inputs: int) -> None:
    """Refuse what is not [B, inputs] or [B, T, inputs].

    Raises:
        ValueError: another shape.
        TypeError: no tensor.
    """
    expect_tensor(name, "x", x)
    if x.dim() not in (2, 3) or x.shape[-1] != inputs:
        raise ValueError(f"{name}: expected x [B, D={inputs}] or [B, T, D={inputs}], got {list(x.shape)}")


def check_conditions(name: str, branches: str, code_dim: int, z_item: Tensor | None, z_semantic: Tensor | None) -> None:
    """Refuse conditions that are not [B, code_dim], those of a branch that the layer lacks, and None for both.

    Raises:
        ValueError: another shape, a branch that the layer lacks, or no condition.
        TypeError: no tensor.
    """
    if z_item is None and z_semantic is None:
        raise ValueError(f"{name}: expected z_item or z_semantic, got None for both")
    for branch, other, z in (("item", "semantic", z_item), ("semantic", "item", z_semantic)):
        if z is None:
            continue
        expect_tensor(name, f"z_{branch}", z)
        if branches == other:
            raise ValueError(f"{name}: expected z_{branch} None (branches={other!r}), got {list(z.shape)}")
        if z.dim() != 2 or z.shape[1] != code_dim:
            raise ValueError(f"{name}: expected z_{branch} [B, k={code_dim}], got {list(z.shape)}")
