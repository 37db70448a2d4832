"""The meaning of the operations, in plain torch, which every kernel is tested against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from solid_ext.ops._library import exporting, without_autocast

QUERIES_PER_BLOCK = 4096  # bounds the block of distances in `nearest_index` to 4096 x K values


def nearest_index(x: Tensor, codebook: Tensor, mask: Tensor | None = None) -> Tensor:
    """Index of the nearest entry: `argmin_k ||x - codebook_k||`, from differences, the lowest index on a tie.

    The distance is taken from differences because its expansion `||x||^2 - 2 <x, c> + ||c||^2` cancels where rows and
    entries lie far from the origin: its rounding then exceeds the distances.

    Args:
        x: [N, D] float.
        codebook: [K, D], in the same dtype.
        mask: [N] bool or None; rows where it is False get index 0.

    Returns:
        [N] int64. An entry whose distance is not below +infinity (NaN, overflow) is never chosen; the index is 0 when
        none is left, that is for a row of x with a NaN, or if every entry has one.

    Source: docs/kernels/nearest_code.md#contract.
    """
    if exporting():  # blocks of unknown number, and `cdist`, are what no other runtime has
        distance = (x.unsqueeze(1) - codebook).square().sum(2)
        blocks = [torch.where(distance < torch.inf, distance, torch.inf).argmin(1)]
    else:
        blocks = []
        with without_autocast(x):
            for rows in x.split(QUERIES_PER_BLOCK):
                distance = torch.cdist(rows, codebook, compute_mode="donot_use_mm_for_euclid_dist")
                blocks.append(torch.where(distance < torch.inf, distance, torch.inf).argmin(1))
    index = torch.cat(blocks) if blocks else x.new_zeros(0, dtype=torch.int64)
    return index if mask is None else index * mask


def segment_sum(values: Tensor, index: Tensor, mask: Tensor | None, num_codes: int) -> tuple[Tensor, Tensor]:
    """For each entry, how many rows chose it, and the sum of those rows, added in their order.

    Args:
        values: [N, D] float.
        index: [N] int64 in 0 .. num_codes - 1.
        mask: [N] bool or None; rows where it is False count for nothing.
        num_codes: K, the number of entries.

    Returns:
        counts: [K] int64.
        sums: [K, D] in the dtype of values.

    Source: docs/kernels/nearest_code.md#contract.
    """
    chosen = torch.ones_like(index) if mask is None else mask.to(torch.int64)
    counts = index.new_zeros(num_codes).index_add(0, index, chosen)
    kept = values if mask is None else torch.where(mask.unsqueeze(1), values, 0)
    sums = values.new_zeros(num_codes, values.shape[1]).index_add(0, index, kept)
    return counts, sums


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row divided by its norm, and the norm; rows of zeros stay.

    A row is divided by its largest absolute value first: the squares of its elements would overflow from 1e19 up, and
    vanish below 1e-22 in float32.

    Args:
        rows: [.., D] float32 or float64.

    Returns:
        [.., D] and [.., 1].
    """
    largest = rows.detach().abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    scaled = rows / scale
    length = torch.where(largest > 0, scaled.norm(dim=-1, keepdim=True), 0)
    return scaled / torch.where(largest > 0, length, 1), length * scale


def rotate_gradient(gradient: Tensor, x: Tensor, code: Tensor) -> Tensor:
    """`lambda R^T g`, where R turns x's direction into its entry's and lambda is the ratio of their lengths.

    With the entry c and the unit vectors `e = x / ||x||`, `f = c / ||c||` and `r = (e + f) / ||e + f||`, the rotation
    is `R = I - 2 r r^T + 2 f e^T`. A row of zeros in x has no direction, and its gradient passes as it is. Opposite
    directions have no r, and its term drops out.

    Args:
        gradient: g [N, D], of the quantized rows.
        x: [N, D].
        code: c [N, D], the entry of each row.

    Returns:
        [N, D].

    Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick", section 4.2.
    """
    return _turned(gradient, x, code, back=True)


def rotate(vector: Tensor, x: Tensor, code: Tensor) -> Tensor:
    """`lambda R v`, whose gradient to v is `rotate_gradient`; its arguments and their shapes are those of it."""
    return _turned(vector, x, code, back=False)


def _turned(vector: Tensor, x: Tensor, code: Tensor, back: bool) -> Tensor:
    (direction, length), (target, target_length) = unit_rows(x), unit_rows(code)
    between = torch.nn.functional.normalize(direction + target, dim=1)
    read, write = (target, direction) if back else (direction, target)
    turned = (
        vector
        - 2 * between * (between * vector).sum(1, keepdim=True)
        + 2 * write * (read * vector).sum(1, keepdim=True)
    )
    scale = target_length / torch.where(length > 0, length, 1)
    return torch.where(length > 0, scale * turned, vector)


def dynamic_weight(z: Tensor, generator_map: Tensor, generator_offset: Tensor, delta: float | None = None) -> Tensor:
    """The generated parameters of one branch: `clip(z A + a, -delta, +delta)`.

    Args:
        z: [B, k], the condition of each sequence.
        generator_map: A [D + 1, k, O].
        generator_offset: a [D + 1, O].
        delta: the bound; None or infinity for none.

    Returns:
        [B, D + 1, O]; rows 0 .. D - 1 are the weight matrix, row D is the bias.

    Source: docs/method.md#module-3-semantic-metacode.
    """
    weight = torch.einsum("bk,iko->bio", z, generator_map) + generator_offset
    if delta is None or math.isinf(delta):
        return weight
    bound = delta if delta <= torch.finfo(weight.dtype).max else math.inf  # which clamp takes, and no larger number
    return weight.clamp(-bound, bound)


def generated_weights(
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    item_map: Tensor | None,
    item_offset: Tensor | None,
    semantic_map: Tensor | None,
    semantic_offset: Tensor | None,
    delta: float,
) -> Tensor:
    """The generated parameters of both branches, `W_c + clip(W_v, -delta, delta)`: [B, D + 1, O]; see `dynamic_linear`.

    Source: docs/method.md#module-3-semantic-metacode.
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
    return parameters


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
        x: [B, D] or [B, T, D].
        z_item: [B, k], or None where the item branch is off.
        z_semantic: [B, k], or None where the semantic branch is off.
        item_map: [D + 1, k, O]; not read where the branch is off, nor are the other parameters of that branch.
        item_offset: [D + 1, O].
        semantic_map: [D + 1, k, O].
        semantic_offset: [D + 1, O].
        delta: the bound of the item branch.
        activation: "none" or "tanh".

    Returns:
        [B, O] or [B, T, O].

    Source: docs/kernels/dynamic_mlp.md#contract.
    """
    parameters = generated_weights(z_item, z_semantic, item_map, item_offset, semantic_map, semantic_offset, delta)
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
    """P dynamic layers, tanh between them and none after the last.

    The arguments are those of `dynamic_linear`, its parameters in lists with one for each layer.
    """
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


def low_rank_mlp(
    x: Tensor,
    z_item: Tensor | None,
    z_semantic: Tensor | None,
    enters: Sequence[Tensor],
    leaves: Sequence[Tensor],
    biases: Sequence[Tensor],
    item_maps: Sequence[Tensor],
    item_offsets: Sequence[Tensor],
    semantic_maps: Sequence[Tensor],
    semantic_offsets: Sequence[Tensor],
    *,
    delta: float,
    gate: Tensor | None = None,
) -> Tensor:
    """P layers of low rank around generated cores, `y = act(((x U) S + s) V + b)`, and with a gate `x + gate y`.

    The arguments are those of `solid_ext.ops.low_rank_mlp`; each core is a `dynamic_linear` of r inputs and outputs.

    Source: docs/kernels/low_rank.md#contract.
    """
    h = x
    for layer, (enter, leave, bias) in enumerate(zip(enters, leaves, biases, strict=True)):
        h = dynamic_linear(
            torch.nn.functional.linear(torch.tanh(h) if layer else h, enter),
            z_item,
            z_semantic,
            item_maps[layer] if z_item is not None else None,
            item_offsets[layer] if z_item is not None else None,
            semantic_maps[layer] if z_semantic is not None else None,
            semantic_offsets[layer] if z_semantic is not None else None,
            delta=delta,
        )
        h = torch.nn.functional.linear(h, leave, bias)
    return h if gate is None else x + gate * h


def gru_last_state(
    x: Tensor, mask: Tensor, weight_input: Tensor, weight_hidden: Tensor, bias_input: Tensor, bias_hidden: Tensor
) -> Tensor:
    """The state of a GRU after the last position whose mask is True.

    From zeros, each such position takes one step of `torch.nn.GRUCell`, whose gates are in the order r, z, n.

    Args:
        x: [B, L, D].
        mask: [B, L] bool.
        weight_input: [3H, D].
        weight_hidden: [3H, H].
        bias_input: [3H].
        bias_hidden: [3H].

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
    """The formula of `solid_ext.ops.symbols.embed_symbols`, whose arguments these are."""
    mask = sequences > 0
    position = mask.sum(1, keepdim=True) - 1 - torch.arange(sequences.shape[1], device=sequences.device)
    rows = symbol if looked_up else symbol.index_select(0, sequences.flatten())
    h = rows + age.index_select(0, position.clamp(min=0).flatten())
    return (h.tanh_() * mask.flatten().unsqueeze(1)).view(*sequences.shape, symbol.shape[1])


def catalogue_cross_entropy(
    state: Tensor, table: Tensor, target: Tensor, bias: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of the softmax over all items, `-log softmax(state @ table.T + bias)[target]`.

    Args:
        state: [B, D].
        table: [V, D].
        target: [B] int64.
        bias: [V] or None.
        reduction: "mean" over the rows, or "none".

    Source: docs/method.md#prediction-and-losses.
    """
    logits = state @ table.T
    if bias is not None:
        logits = logits + bias
    return torch.nn.functional.cross_entropy(logits, target, reduction=reduction)


LOW_32_BITS = 0xFFFFFFFF


def dropout(x: Tensor, key: Tensor, probability: float, first: int = 0) -> Tensor:
    """Each element dropped with a probability, the others scaled; which ones is said by their numbers and the key.

    `y[i] = x[i] [draw(first + i) >= p 2^32] / (1 - p)` with `draw` a hash of 32 bits (csrc/dropout/dropout.h).

    Args:
        x: float, of any shape; elements are numbered in the order of their indices.
        key: [] int64.
        probability: p in [0, 1).
        first: the number of the first element.

    Source: docs/kernels/dropout.md#contract.
    """
    number = torch.arange(first, first + x.numel(), device=x.device)
    draw = _mix((number ^ key) & LOW_32_BITS)
    high = (key >> 32) + (number >> 32) * 0x9E3779B9
    draw = _mix((draw ^ high) & LOW_32_BITS)
    kept = (draw >= dropped_of_2_32(probability)).view(x.shape)
    return x * kept * (1 / (1 - probability))


def dropped_of_2_32(probability: float) -> int:
    """How many of 2^32 draws are dropped."""
    return min(round(probability * 2**32), LOW_32_BITS)


def _mix(state: Tensor) -> Tensor:
    """lowbias32, by C. Wellons, of numbers below 2^32 in int64; what a product has above 32 bits is cut off."""
    state = ((state ^ (state >> 16)) * 0x7FEB352D) & LOW_32_BITS
    state = ((state ^ (state >> 15)) * 0x846CA68B) & LOW_32_BITS
    return state ^ (state >> 16)
