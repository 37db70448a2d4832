"""Dropout of the networks' layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solid_ext.ops._arguments import Backend, expect_backend, real
from solid_ext.ops.dropout import dropout

_state = {"before": 0}


@contextmanager
def rows_behind(before: int) -> Iterator[None]:
    """Inside, what layers are given are rows of a batch that has so many before them: what is dropped of a row is what
    would be dropped of it in the whole batch."""
    outside, _state["before"] = _state["before"], before
    try:
        yield
    finally:
        _state["before"] = outside


class Dropout(nn.Module):
    """In training each element is 0 with probability p and else divided by 1 - p; in eval mode all stay as they are.

    On the CPU each call draws one key from torch's generator, and `solid_ext.ops.dropout` says the rest; on a GPU it
    is torch's own dropout, whose generator is counter-based as well.

    Args:
        probability: p in [0, 1).
        backend: "native" (the kernel) or "reference" (plain torch, the same elements).

    Raises:
        ValueError: another probability or backend.
        TypeError: a probability that is no number.
    """

    def __init__(self, probability: float, backend: Backend = "native") -> None:
        super().__init__()
        if not 0 <= real("Dropout", "probability", probability) < 1:
            raise ValueError(f"Dropout: expected 0 <= probability < 1, got {probability}")
        expect_backend("Dropout", backend)
        self.probability = probability
        self.backend: Backend = backend

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        key = torch.empty((), dtype=torch.int64, device=x.device).random_()
        before = _state["before"] * (x.numel() // max(len(x), 1)) if _state["before"] else 0
        return dropout(x, key, self.probability, first=before, backend=self.backend)

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return f"{self.probability}, backend={self.backend!r}"
