"""Fine-tuning per user: a few gradient steps of the last layers on the user's own history."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PREFIXES = 4  # of a history, the longest ones, whose next items are learned from
NEGATIVES = 4  # random items a prefix, the same for everybody: a user's result does not depend on his batch


def finetuned(
    layers: nn.Sequential,
    states: Tensor,
    targets: Tensor,
    labels: Tensor,
    valid: Tensor,
    *,
    steps: int,
    rate: float,
    through: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]] = lambda layers: layers,
) -> Callable[[Tensor], Tensor]:
    """The static layers, adapted to each user by gradient steps on his own history.

    Each user b gets copies of the layers' parameters, [B, d, d] a layer, which take `steps` steps of size `rate`
    against the gradient of the mean binary cross-entropy over his own valid pairs: a prefix of his history with the
    item that came next (label 1) or a random item (label 0).

    Args:
        layers: linear layers with tanh between. states: [B, n, d], the backbone's state of each pair.
        targets: [B, n, d], the vector of each pair's item. labels: [n] 0 or 1. valid: [B, n] bool.
        through: how the layers act on a state, where that is not directly.

    Returns:
        The adapted layers: [B, d] -> [B, d] or [B, T, d] -> [B, T, d].
    """
    batch = len(states)
    with torch.inference_mode(False), torch.enable_grad():
        states, targets, labels, valid = (t.detach().clone() for t in (states, targets, labels, valid))
        parameters = [
            p.detach().clone().expand(batch, *p.shape).contiguous().requires_grad_() for p in layers.parameters()
        ]
        share = valid / valid.sum(1, keepdim=True).clamp(min=1)
        for _ in range(steps):
            logits = (through(partial(_apply, parameters))(states) * targets).sum(2)
            loss = F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), share, reduction="sum")
            gradients = torch.autograd.grad(loss, parameters)
            parameters = [(p - rate * g).detach().requires_grad_() for p, g in zip(parameters, gradients, strict=True)]
    own = [p.detach() for p in parameters]
    return through(lambda x: _apply(own, x) if x.dim() == 3 else _apply(own, x.unsqueeze(1)).squeeze(1))


def _apply(parameters: list[Tensor], x: Tensor) -> Tensor:
    """Weights [B, out, in] and biases [B, out], by turns, on x [B, n, in]."""
    for layer in range(0, len(parameters), 2):
        weight, bias = parameters[layer : layer + 2]
        x = torch.baddbmm(bias.unsqueeze(1), torch.tanh(x) if layer else x, weight.transpose(1, 2))
    return x
