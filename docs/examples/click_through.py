"""`DynamicMLP` as a click-through tower: the weights of the last layers are generated for every request.

The rows have the schema of the Criteo display advertising challenge: a label, 13 counts I1 .. I13 and 26 categories
C1 .. C26, all generated here. Whether an advertisement's counts speak for a click depends on where it is shown, which
some of the categories tell; a tower with weights of its own has to learn a product for each place.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.nn import DynamicMLP

COUNTS, CATEGORIES, VALUES, DIM = 13, 26, 50, 8
PLACE = 4  # the first categories tell the place


def rows(number: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts [N, 13], categories [N, 26] and labels [N]."""
    rng, effects = np.random.default_rng(seed), np.random.default_rng(0)  # one world, other rows
    of_place = effects.normal(size=(PLACE, VALUES, COUNTS)) / np.sqrt(PLACE)
    counts = rng.poisson(3, size=(number, COUNTS)).astype(np.float32)
    categories = rng.integers(0, VALUES, size=(number, CATEGORIES))
    weight = sum(of_place[at, categories[:, at]] for at in range(PLACE))
    logits = 1.5 * (weight * (np.log1p(counts) - 1.25)).sum(1)
    clicked = rng.random(number) < 1 / (1 + np.exp(-logits))
    return (
        torch.from_numpy(np.log1p(counts)),
        torch.from_numpy(categories),
        torch.from_numpy(clicked.astype(np.float32)),
    )


class Tower(nn.Module):
    """Embedded categories and counts, a tower of two hidden layers, one logit."""

    def __init__(self, dynamic: bool, hidden: int = 32) -> None:
        super().__init__()
        self.tables = nn.Embedding(CATEGORIES * VALUES, DIM)
        width = COUNTS + CATEGORIES * DIM
        self.enter = nn.Linear(width, hidden)
        self.condition = nn.Linear(PLACE * DIM, 16)
        sizes = (COUNTS, 16, 1)
        self.generated = DynamicMLP(sizes, 16, branches="semantic") if dynamic else None
        self.leave = nn.Sequential(nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, counts: Tensor, categories: Tensor) -> Tensor:
        embedded = self.tables(categories + VALUES * torch.arange(CATEGORIES))
        logit = self.leave(self.enter(torch.cat([counts, embedded.flatten(1)], 1)))
        if self.generated is not None:
            place = torch.tanh(self.condition(embedded[:, :PLACE].flatten(1)))
            logit = logit + self.generated(counts, None, place)
        return logit.squeeze(1)


def run(number: int = 60000, epochs: int = 3, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, list[dict[str, float]]]:
    """For each tower and seed AUC and log loss on rows that were not trained on, parameters, and seconds."""
    found: dict[str, list[dict[str, float]]] = {"static tower": [], "DynamicMLP": []}
    for seed in seeds:
        counts, categories, labels = rows(number, seed + 1)
        unseen = rows(number // 3, seed + 1001)
        for name, results in found.items():
            torch.manual_seed(seed)
            # The static tower is given the parameters that the other one spends on its generator.
            model = Tower(dynamic=name == "DynamicMLP", hidden=32 if name == "DynamicMLP" else 48)
            optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
            begun = time.process_time()
            for _ in range(epochs):
                for at in torch.randperm(number).split(512):
                    loss = F.binary_cross_entropy_with_logits(model(counts[at], categories[at]), labels[at])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            seconds = time.process_time() - begun
            with torch.no_grad():
                share = model(unseen[0], unseen[1]).sigmoid().double().numpy()
            results.append(
                {
                    "AUC": float(roc_auc_score(unseen[2].numpy(), share)),
                    "log loss": float(log_loss(unseen[2].numpy(), share)),
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "seconds": seconds,
                }
            )
    return found


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=2)
