"""`DynamicMLP` as the head of somebody's own recommender: the same model with a static head and with a generated one.

The model is plain torch: item embeddings, a head of two layers, products with all items. In the generated world items
lie on a ring, and each of twelve tastes walks round it by steps of its own length, which the first item of a history
tells. One time in ten a user takes any item.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.nn import DynamicMLP

ITEMS, TASTES, LENGTH, DIM = 150, 12, 4, 16


def world(users: int, seed: int) -> tuple[Tensor, Tensor]:
    """Histories [U, L] of items, the first of which tells the taste, and the item that comes next [U]."""
    generator = torch.Generator().manual_seed(seed)
    taste = torch.randint(0, TASTES, (users,), generator=generator)
    last = torch.randint(TASTES, ITEMS, (users, LENGTH - 1), generator=generator)
    ring = ITEMS - TASTES
    following = (last[:, -1] - TASTES + 7 * (taste + 1)) % ring + TASTES
    anything = torch.randint(TASTES, ITEMS, (users,), generator=generator)
    noisy = torch.rand(users, generator=generator) < 0.1
    return torch.cat([taste.unsqueeze(1), last], 1), torch.where(noisy, anything, following)


class Recommender(nn.Module):
    """Somebody's own: the embeddings of the last item and of the one that tells the taste, a head, products."""

    def __init__(self, dynamic: bool) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, DIM)
        self.condition = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh())
        # The same sizes twice: weights of the model, or generated for every user from the taste.
        self.dynamic = DynamicMLP((DIM, DIM, DIM), DIM, branches="semantic") if dynamic else None
        self.static = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM))

    def forward(self, histories: Tensor) -> Tensor:
        embedded = self.items(histories)
        last, taste = embedded[:, -1], self.condition(embedded[:, 0])
        user = self.static(last + taste) if self.dynamic is None else self.dynamic(last, None, taste)
        return user @ self.items.weight.T


def hits(model: nn.Module, histories: Tensor, following: Tensor) -> float:
    """The share of users whose next item is the first of all."""
    with torch.no_grad():
        return float((model(histories).argmax(1) == following).float().mean())


def run(users: int = 6000, epochs: int = 20, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, list[dict[str, float]]]:
    """For each head and seed the share of hits on users that were not trained on, parameters, and seconds."""
    found: dict[str, list[dict[str, float]]] = {"static head": [], "DynamicMLP": []}
    for seed in seeds:
        trained, unseen = world(users, seed), world(users // 2, seed + 1000)
        for name, rows in found.items():
            torch.manual_seed(seed)
            model = Recommender(dynamic=name == "DynamicMLP")
            used = [p for n, p in model.named_parameters() if (model.dynamic is None) or not n.startswith("static")]
            optimiser = torch.optim.Adam(used, lr=0.005)
            begun = time.process_time()
            for _ in range(epochs):
                for at in torch.randperm(users).split(256):
                    loss = F.cross_entropy(model(trained[0][at]), trained[1][at])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            seconds = time.process_time() - begun
            rows.append({"HR@1": hits(model, *unseen), "parameters": sum(p.numel() for p in used), "seconds": seconds})
    return found


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=2)
