"""Fine-tuning per user: a static model, whose last layers take a few gradient steps on each user's own history."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.models.checks import check_sequences
from solid_ext.models.recommender import DynamicRecommender
from solid_ext.models.state import CandidateState, Layers
from solid_ext.nn.padding import valid_mask

PREFIXES = 4  # of a history, the longest ones, whose next items are learned from
NEGATIVES = 4  # random items a prefix, the same for everybody, so that a user's result does not depend on the batch


class Pairs(NamedTuple):
    """What each user's layers learn from: a prefix of the history with the item that came next, or with a random one.

    Attributes:
        states: [B, n, d], the backbone's state of each pair's prefix.
        targets: [B, n, d], the target vector of each pair's item.
        labels: [n], 1 for the item that came next, 0 for a random one.
        valid: [B, n] bool, the pairs that the user's history is long enough for.
    """

    states: Tensor
    targets: Tensor
    labels: Tensor
    valid: Tensor


class FineTuned:
    """A static model whose last layers are fine-tuned to each user when it scores; a `Scorer`.

    Every user gets copies of the layers' parameters, which take `steps` gradient steps of size `rate` against the mean
    binary cross-entropy of the pairs of the user's own history, see `Pairs`. The model is not changed.

    Args:
        model: one without a semantic trunk and without an item branch.
        steps: 0 or more.
        rate: 0 or more.

    Raises:
        ValueError: a model with dynamic layers; steps or rate below 0.
    """

    def __init__(self, model: DynamicRecommender, steps: int, rate: float) -> None:
        if not isinstance(model.dynamic, nn.Sequential):
            raise ValueError("FineTuned: expected a model with static layers, got one with dynamic layers")
        if steps < 0:
            raise ValueError(f"FineTuned: expected steps >= 0, got {steps}")
        if not rate >= 0:
            raise ValueError(f"FineTuned: expected rate >= 0, got {rate}")
        self.model, self.steps, self.rate = model, steps, rate
        self.length, self.num_items = model.length, model.num_items

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, sequences: Tensor) -> Tensor | CandidateState:
        """The user state of sequences [B, L] int64, by layers that are each user's own.

        Raises:
            TypeError: sequences of another dtype.
            ValueError: another shape, or ids that are no items.
        """
        check_sequences(sequences, self.num_items, self.length)
        model, pairs = self.model, self._pairs(sequences)
        layers: Layers = model.dynamic
        if pairs is not None:
            layers = tuned_layers(model.dynamic, pairs, steps=self.steps, rate=self.rate, acting=model.gated)
        return model.user_state(sequences, model.gated(layers))

    def score(self, state: Tensor | CandidateState, candidates: Tensor) -> Tensor:
        """The logits [B, T] of candidates [B, T] or [T] int64."""
        return self.model.score(state, candidates)

    def _pairs(self, sequences: Tensor) -> Pairs | None:
        """The pairs of every history; None where none can be long enough to have one."""
        model = self.model
        prefixes, following = [], []
        rest = sequences.clone()
        for _ in range(min(PREFIXES, sequences.shape[1] - 1)):
            last = (rest > 0).sum(1, keepdim=True) - 1
            following.append(rest.gather(1, last.clamp(min=0)))
            rest = rest.scatter(1, last.clamp(min=0), 0)
            prefixes.append(rest)
        if not prefixes:
            return None
        others = torch.linspace(1, model.num_items, NEGATIVES, device=sequences.device).round().long()
        items = [torch.cat([item, others.expand(len(item), -1)], dim=1) for item in following]  # [B, 1 + m] a prefix
        states = []
        for prefix, candidates in zip(prefixes, items, strict=True):
            given = model.item_embedding(prefix), valid_mask(prefix)
            if model.reads_candidates:
                states.append(model.backbone(*given, model.item_embedding(candidates)))
            else:
                states.append(model.backbone(*given).unsqueeze(1).expand(-1, 1 + NEGATIVES, -1))
        label = torch.eye(1, 1 + NEGATIVES, dtype=states[0].dtype, device=sequences.device)
        return Pairs(
            torch.cat(states, dim=1),
            model.target_vectors(torch.cat(items, dim=1)),
            label.repeat(1, len(prefixes)).squeeze(0),
            torch.cat([(prefix[:, :1] > 0).expand(-1, 1 + NEGATIVES) for prefix in prefixes], dim=1),
        )


def fine_tuned(model: DynamicRecommender) -> DynamicRecommender | FineTuned:
    """The model as it scores: fine-tuned where its configuration has `finetune_steps`, else the model itself."""
    config = model.config
    return FineTuned(model, config.finetune_steps, config.finetune_rate) if config.finetune_steps else model


def tuned_layers(
    layers: nn.Module,
    pairs: Pairs,
    *,
    steps: int,
    rate: float,
    acting: Callable[[Layers], Layers] = lambda layers: layers,
) -> Layers:
    """The layers of each user after gradient descent on the user's own valid pairs.

    The loss of user b is the mean over these pairs of the binary cross-entropy of `<layers_b(state), target>`. Without
    a valid pair the layers stay as they are.

    Args:
        layers: linear layers with tanh between.
        pairs: of B users.
        steps: how many gradient steps.
        rate: the size of each.
        acting: how layers act on a state, where that is not directly.

    Returns:
        Layers [B, d] -> [B, d] or [B, T, d] -> [B, T, d], a user's own in each row, that do not act in that way yet.
    """
    batch = len(pairs.states)
    with torch.inference_mode(False), torch.enable_grad():
        states, targets, labels, valid = (t.detach().clone() for t in pairs)
        parameters = [
            p.detach().clone().expand(batch, *p.shape).contiguous().requires_grad_() for p in layers.parameters()
        ]
        share = valid / valid.sum(1, keepdim=True).clamp(min=1)
        for _ in range(steps):
            logits = (acting(partial(_apply, parameters))(states) * targets).sum(2)
            loss = F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), share, reduction="sum")
            gradients = torch.autograd.grad(loss, parameters)
            parameters = [(p - rate * g).detach().requires_grad_() for p, g in zip(parameters, gradients, strict=True)]
    own = [p.detach() for p in parameters]
    return lambda x: _apply(own, x) if x.dim() == 3 else _apply(own, x.unsqueeze(1)).squeeze(1)


def _apply(parameters: list[Tensor], x: Tensor) -> Tensor:
    """Weights [B, out, in] and biases [B, out], in turn, on x [B, n, in], with tanh between layers."""
    for layer in range(0, len(parameters), 2):
        weight, bias = parameters[layer : layer + 2]
        x = torch.baddbmm(bias.unsqueeze(1), torch.tanh(x) if layer else x, weight.transpose(1, 2))
    return x
