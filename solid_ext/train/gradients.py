"""A step's gradient before it is applied: finite, and no longer than is allowed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from solid_ext.config import TrainConfig


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
