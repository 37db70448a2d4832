"""The meaning of the operations, in plain torch: what every kernel is held against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

QUERIES_PER_BLOCK = 4096  # bounds the distance block of `nearest_index` to 4096 x K values


def nearest_index(x: Tensor, codebook: Tensor, mask: Tensor | None = None) -> Tensor:
    """Index of the nearest code: `argmin_k ||x - codebook_k||`, from differences, the lowest index on a tie.

    Differences, because the expansion `||x||^2 - 2 <x, c> + ||c||^2` cancels where rows and codes lie far from the
    origin: its rounding then exceeds the distances.

    Args:
        x: [N, D] float. codebook: [K, D], same dtype. mask: [N] bool or None; False rows get index 0.

    Returns:
        [N] int64. A code whose distance is not below +infinity (NaN, overflow) is never chosen; index 0 when no code
        is left: for a row of x with a NaN, or if every code has one.

    Source: docs/kernels/nearest_code.md#contract.
    """
    blocks = []
    with torch.autocast(x.device.type, enabled=False):
        for rows in x.split(QUERIES_PER_BLOCK):
            distance = torch.cdist(rows, codebook, compute_mode="donot_use_mm_for_euclid_dist")
            blocks.append(torch.where(distance < torch.inf, distance, torch.inf).argmin(1))
    index = torch.cat(blocks) if blocks else x.new_zeros(0, dtype=torch.int64)
    return index if mask is None else index * mask


def segment_sum(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> tuple[Tensor, Tensor]:
    """Per code: how many rows chose it, and their sum, added in the order of the rows.

    Args:
        values: [N, D] float. index: [N] int64 in 0 .. num_codes - 1.
        mask: [N] bool or None; False rows count for nothing.

    Returns:
        counts [num_codes] int64, sums [num_codes, D] in the dtype of values.

    Source: docs/kernels/nearest_code.md#contract.
    """
    chosen = torch.ones_like(index) if mask is None else mask.to(torch.int64)
    counts = index.new_zeros(num_codes).index_add(0, index, chosen)
    kept = values if mask is None else torch.where(mask.unsqueeze(1), values, 0)
    sums = values.new_zeros(num_codes, values.shape[1]).index_add(0, index, kept)
    return counts, sums


def rotate_gradient(gradient: Tensor, x: Tensor, code: Tensor) -> Tensor:
    """`lambda R^T g` where R turns x's direction into its code's and lambda is the ratio of their lengths.

    With unit vectors `e = x / ||x||`, `f = c / ||c||` and `r = (e + f) / ||e + f||`:
    `R = I - 2 r r^T + 2 f e^T`. A row of zeros in x has no direction: its gradient passes as it is. Opposite
    directions have no r: its term drops out.

    Args:
        gradient, x, code: [N, D].

    Returns:
        [N, D].

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.2.
    """
    length = x.norm(dim=1, keepdim=True)
    normalize = torch.nn.functional.normalize
    direction, target = normalize(x, dim=1), normalize(code, dim=1)
    between = normalize(direction + target, dim=1)
    turned = (
        gradient
        - 2 * between * (between * gradient).sum(1, keepdim=True)
        + 2 * direction * (target * gradient).sum(1, keepdim=True)
    )
    scale = code.norm(dim=1, keepdim=True) / torch.where(length > 0, length, 1)
    return torch.where(length > 0, scale * turned, gradient)


def dynamic_weight(z: Tensor, generator_map: Tensor, generator_offset: Tensor, delta: float | None = None) -> Tensor:
    """Generated parameters of one branch: `clip(z A + a, -delta, +delta)`.

    Args:
        z: [B, k]. generator_map A: [D + 1, k, O]. generator_offset a: [D + 1, O]. delta: the bound, or None.

    Returns:
        [B, D + 1, O]; rows 0 .. D - 1 are the weight matrix, row D the bias.

    Source: docs/method.md#module-3-semantic-metacode.
    """
    weight = torch.einsum("bk,iko->bio", z, generator_map) + generator_offset
    return weight if delta is None or math.isinf(delta) else weight.clamp(-delta, delta)


def dynamic_linear(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    item_map: Tensor | None,
    item_offset: Tensor | None,
    semantic_map: Tensor | None,
    semantic_offset: Tensor | None,
    *,
    delta: float,
    activation: str = "none",
) -> Tensor:
    """`y = act(x W + b)` with `W = W_c + clip(W_v, -delta, delta)` and b alike, written out.

    Args:
        x: [B, D] or [B, T, D]. z_item, z_semantic: [B, k] or None (that branch is absent).
        maps: [D + 1, k, O], offsets: [D + 1, O], of each branch that is present. activation: "none" or "tanh".

    Returns:
        [B, O] or [B, T, O].

    Source: docs/kernels/dynamic_mlp.md#contract.
    """
    parameters: Tensor | None = None
    if z_semantic is not None:
        assert semantic_map is not None
        assert semantic_offset is not None
        parameters = dynamic_weight(z_semantic, semantic_map, semantic_offset)
    if z_item is not None:
        assert item_map is not None
        assert item_offset is not None
        branch = dynamic_weight(z_item, item_map, item_offset, delta)
        parameters = branch if parameters is None else parameters + branch
    assert parameters is not None
    rows = x.unsqueeze(1) if x.dim() == 2 else x
    y = torch.baddbmm(parameters[:, -1:], rows, parameters[:, :-1])
    y = y.squeeze(1) if x.dim() == 2 else y
    return y.tanh() if activation == "tanh" else y


def dynamic_mlp(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    item_maps: Sequence[Tensor],
    item_offsets: Sequence[Tensor],
    semantic_maps: Sequence[Tensor],
    semantic_offsets: Sequence[Tensor],
    *,
    delta: float,
) -> Tensor:
    """P dynamic layers, tanh between them and none after the last; arguments as in `dynamic_linear`, per layer."""
    layers = max(len(item_maps), len(semantic_maps))
    for layer in range(layers):
        x = dynamic_linear(
            x,
            z_item,
            z_semantic,
            item_maps[layer] if z_item is not None else None,
            item_offsets[layer] if z_item is not None else None,
            semantic_maps[layer] if z_semantic is not None else None,
            semantic_offsets[layer] if z_semantic is not None else None,
            delta=delta,
            activation="none" if layer == layers - 1 else "tanh",
        )
    return x


def gru_last_state(
    x: Tensor, mask: Tensor, weight_input: Tensor, weight_hidden: Tensor, bias_input: Tensor, bias_hidden: Tensor
) -> Tensor:
    """The state of a GRU after the last position whose mask is True: `torch.nn.GRUCell`'s step a position, from zeros.

    Args:
        x: [B, L, D]. mask: [B, L] bool. weight_input: [3H, D]. weight_hidden: [3H, H]. biases: [3H]. Gates r, z, n.

    Returns:
        [B, H].

    Source: docs/method.md#module-2-semantic-parameter-generation.
    """
    linear = torch.nn.functional.linear
    state = x.new_zeros(x.shape[0], weight_hidden.shape[1])
    for position in range(x.shape[1]):
        valid = mask[:, position, None]
        # Nothing is read where the mask is False: zero times what is not finite would be a gradient all the same.
        given, before = torch.where(valid, x[:, position], 0), torch.where(valid, state, 0)
        of_input = torch.where(valid, linear(given, weight_input, bias_input), 0).chunk(3, 1)
        of_state = torch.where(valid, linear(before, weight_hidden, bias_hidden), 0).chunk(3, 1)
        reset, update = ((i + h).sigmoid() for i, h in zip(of_input[:2], of_state[:2], strict=True))
        fresh = (of_input[2] + reset * of_state[2]).tanh()
        state = torch.where(valid, fresh + update * (before - fresh), state)
    return state


def embed_symbols(sequences: Tensor, symbol: Tensor, age: Tensor, looked_up: bool) -> Tensor:
    """See `solid_ext.ops.symbols.embed_symbols`."""
    mask = sequences > 0
    position = mask.sum(1, keepdim=True) - 1 - torch.arange(sequences.shape[1], device=sequences.device)
    rows = symbol if looked_up else symbol.index_select(0, sequences.flatten())
    h = rows + age.index_select(0, position.clamp(min=0).flatten())
    return (h.tanh_() * mask.flatten().unsqueeze(1)).view(*sequences.shape, symbol.shape[1])
