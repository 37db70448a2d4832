"""A step's gradient before it is applied: that of all processes, finite, and no longer than is allowed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from solid_ext import distributed
from solid_ext.config import TrainConfig
from solid_ext.train.row_adam import RowAdam, total_of_rows


class NotFinite(FloatingPointError):
    """A step whose loss or gradient is not finite, raised before its update: the weights are those before it."""


@torch.no_grad()
def check_and_clip(model: nn.Module, loss: Tensor, config: TrainConfig) -> None:
    """Refuse a loss or gradient that is not finite, and scale a gradient longer than `clip_gradient` to that length.

        g <- g min(1, clip_gradient / ||g||),  ||g|| over all parameters

    On a CUDA device, where reading a number waits for the device, the loss and the weights are looked at after the
    epoch instead.

    Raises:
        NotFinite: with the loss, or the first parameter whose gradient is not finite.
    """
    if not (config.clip_gradient or loss.device.type == "cpu"):
        return
    if config.clip_gradient:
        for parameter in model.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()  # or a row that stands there twice counts as two
    gradients = {
        name: parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    values = [gradient for gradient in gradients.values() if gradient.numel()]
    norm = torch.nn.utils.get_total_norm(values)
    if loss.device.type == "cpu" and not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
        if not math.isfinite(float(loss)):
            raise NotFinite(f"a finite loss, got {float(loss)}")
        for name, gradient in gradients.items():
            if not bool(torch.isfinite(gradient).all()):
                raise NotFinite(f"finite gradients, got NaN or infinity in that of {name}")
    if config.clip_gradient:
        scale = (config.clip_gradient / (norm + 1e-6)).clamp(max=1.0)
        for gradient in values:
            gradient.mul_(scale)


@torch.no_grad()
def sum_gradients(optimizer: RowAdam) -> None:
    """Give every parameter the sum of all ranks' gradients, the same bits on each.

    Dense gradients go in one sum. Of tables that are updated by rows the rows that have a gradient are sent, each
    once with its total, so that what is sent does not grow with the table.
    """
    tables = [*optimizer.tables]
    by_row = set(tables)
    dense = [one for group in optimizer.param_groups for one in group["params"] if one not in by_row]
    # Behind the gradients a number of each: how many ranks have one. Without any the parameter has none, as alone.
    there = [0.0 if one.grad is None else 1.0 for one in (*dense, *tables)]
    parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in dense]
    packed = torch.cat([*(part.flatten() for part in parts), parts[0].new_tensor(there)])
    distributed.summed(packed)
    *gradients, counts = packed.split([*(one.numel() for one in dense), len(there)])
    many = counts.tolist()
    for one, gradient, ranks in zip(dense, gradients, many, strict=False):
        one.grad = gradient.view_as(one) if ranks else None
    for weight, ranks in zip(tables, many[len(dense) :], strict=True):
        weight.grad = _rows_of_all(weight) if ranks else None


def _rows_of_all(weight: Tensor) -> Tensor:
    """The gradient of a table that is updated by rows, those of all ranks after one another."""
    if weight.grad is None:
        rows, total = torch.zeros(0, dtype=torch.int64, device=weight.device), weight.new_zeros(0, weight.shape[1])
    else:
        rows, total = total_of_rows(weight.grad)
    index, values = (torch.cat(parts) for parts in zip(*distributed.gathered(rows, total), strict=True))
    return torch.sparse_coo_tensor(index.unsqueeze(0), values, weight.shape, is_coalesced=False, check_invariants=False)
