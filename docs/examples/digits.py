"""`Codebook` in a small VQ autoencoder of scikit-learn's digits, beside the layer of vector-quantize-pytorch.

An image of 8 x 8 becomes four vectors of 16 numbers, each of which is replaced by one of 32 entries that follow running
means. The same autoencoder is trained with either layer from the same start; `--peer FOLDER` names a folder with
vector-quantize-pytorch (`pip install --target FOLDER vector-quantize-pytorch`), without which ours is trained alone.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from solid_ext.nn import Codebook
from solid_ext.nn.codebook import perplexity

PARTS, DIM, CODES = 4, 16, 32


class Autoencoder(nn.Module):
    """Two layers each way around a layer that quantises [B, 4, 16]."""

    def __init__(self, book: nn.Module) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, PARTS * DIM))
        self.decode = nn.Sequential(nn.Linear(PARTS * DIM, 128), nn.ReLU(), nn.Linear(128, 64))
        self.book = book

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images again, the layer's loss, and the entries' numbers [B, 4]."""
        quantized, index, loss, *_ = self.book(self.encode(images).view(-1, PARTS, DIM))
        return self.decode(quantized.flatten(1)), loss, index


def books(peer: Any, seed: int) -> dict[str, nn.Module]:
    """The layers to compare, both with running means of decay .9, and vectors of a batch for entries out of use."""
    found: dict[str, nn.Module] = {
        "Codebook": Codebook(CODES, DIM, update="ema", decay=0.9, commitment=0.25, revive_after=20, seed=seed)
    }
    if peer is not None:
        options = {"decay": 0.9, "commitment_weight": 0.25, "kmeans_init": True, "threshold_ema_dead_code": 0.1}
        found["vector-quantize-pytorch"] = _Peer(peer.VectorQuantize(dim=DIM, codebook_size=CODES, **options))
    return found


class _Peer(nn.Module):
    """The order of ours: quantized, index, loss."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, index, loss = self.layer(x)
        return quantized, index, loss.sum()


def run(
    peer: Any = None, epochs: int = 30, seeds: tuple[int, ...] = (0, 1, 2), images: int = 1797
) -> dict[str, list[dict[str, float]]]:
    """For each layer and seed the squared error of unseen images, the perplexity of their entries, and seconds."""
    data = torch.from_numpy(load_digits().data[:images]).float() / 16
    unseen, trained = data[: images // 5], data[images // 5 :]
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        for name in books(peer, seed):
            torch.manual_seed(seed)
            model = Autoencoder(books(peer, seed)[name])
            torch.manual_seed(seed)
            for part in (*model.encode, *model.decode):
                if isinstance(part, nn.Linear):
                    part.reset_parameters()  # the same for both, whatever the layer drew
            if isinstance(model.book, Codebook):
                model.book.start_at_means(model.encode(trained[:256]).view(-1, PARTS, DIM).detach())
            optimiser = torch.optim.Adam([*model.encode.parameters(), *model.decode.parameters()], lr=0.002)
            begun = time.process_time()
            for _ in range(epochs):
                for at in torch.randperm(len(trained)).split(128):
                    again, loss, _ = model(trained[at])
                    loss = (again - trained[at]).square().mean() + loss
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            seconds = time.process_time() - begun
            model.eval()
            with torch.no_grad():
                again, _, index = model(unseen)
            found.setdefault(name, []).append(
                {
                    "squared error": float((again - unseen).square().mean()),
                    "perplexity": float(perplexity(index.flatten().bincount(minlength=CODES))),
                    "seconds": seconds,
                }
            )
    return found


def peer_in(folder: str) -> Any:
    """vector-quantize-pytorch from a folder of its own."""
    sys.path.append(folder)
    return importlib.import_module("vector_quantize_pytorch")


if __name__ == "__main__":
    json.dump(run(peer_in(sys.argv[2]) if sys.argv[1:2] == ["--peer"] else None), sys.stdout, indent=2)
