"""Codebooks in composition: what one leaves to the next, and one for each part of a vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from solid_ext.nn.codebook import Codebook, CodebookOutput
from solid_ext.ops._arguments import expect_tensor, size


class ResidualCodebook(nn.Module):
    """Codebooks in a row, each of what the ones before it left: `q = sum_l q_l` with `q_l = book_l(x - sum_{m<l} q_m)`.

    L levels of K entries make K^L vectors out of L K entries. The loss is the sum of the levels' losses, each of which
    pulls x, or what is left of it, towards its entry. Of the gradient of q, x gets what the first level passes on, once
    and not once a level; entries get theirs as in `Codebook`.

    Args:
        levels: L >= 1.
        num_codes: K, of each level.
        dim: D.
        options: those of `Codebook`, for every level; level l has the seed `seed + l`.

    Attributes:
        levels: the codebooks.

    Raises: as `Codebook`.

    Source: Zeghidour et al. 2021, "SoundStream: An End-to-End Neural Audio Codec", section III-C.
    """

    def __init__(self, levels: int, num_codes: int, dim: int, **options: Any) -> None:
        super().__init__()
        levels = size("ResidualCodebook", "levels", levels)
        seed = size("ResidualCodebook", "seed", options.pop("seed", 0), least=-(2**63))
        first = {"gradient": options.pop("gradient", "straight_through")}
        self.levels = nn.ModuleList(
            Codebook(num_codes, dim, seed=seed + level, **options, **({"gradient": "none"} if level else first))
            for level in range(levels)
        )

    def start_at_means(self, x: Tensor, mask: Tensor | None = None, *, iterations: int = 10) -> None:
        """Start each level at means of what the levels before it leave of the vectors; see `Codebook`."""
        level: Any
        for level in self.levels:
            level.start_at_means(x, mask, iterations=iterations)
            near = level.eval()(x, mask).quantized
            level.train(self.training)
            x = x - near.detach()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> CodebookOutput:
        """Looks the vectors up.

        Args:
            x: [.., D].
            mask: [..] bool or None.

        Returns:
            See `CodebookOutput`: quantized is the sum of the levels' entries, index [.., L], counts [L, K].

        Raises: as `Codebook`.
        """
        left, found = x, []
        for level in self.levels:
            found.append(level(left, mask))
            left = left - found[-1].quantized.detach()
        return CodebookOutput(
            torch.stack([part.quantized for part in found]).sum(0),
            torch.stack([part.index for part in found], -1),
            torch.stack([part.loss for part in found]).sum(),
            torch.stack([part.counts for part in found]),
        )


class GroupedCodebook(nn.Module):
    """A codebook, or a `ResidualCodebook`, for each of G equal parts of a vector: `q = [book_1(x_1), .., book_G(x_G)]`.

    The loss is the mean of the parts' losses.

    Args:
        groups: the modules of the parts in their order, G >= 1 of one kind, each of D / G dimensions.

    Attributes:
        groups: these modules.

    Raises:
        ValueError: no modules; in a call, a vector that does not divide into G parts.

    Source: Yang et al. 2023, "HiFi-Codec: Group-residual Vector Quantization for High Fidelity Audio Codec".
    """

    def __init__(self, groups: Iterable[nn.Module]) -> None:
        super().__init__()
        self.groups = nn.ModuleList(groups)
        if not self.groups:
            raise ValueError("GroupedCodebook: expected at least one codebook, got none")

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        expect_tensor("GroupedCodebook", "x", x)
        if x.dim() < 1 or x.shape[-1] % len(self.groups):
            raise ValueError(f"GroupedCodebook: expected x [.., a multiple of {len(self.groups)}], got {list(x.shape)}")
        return x.chunk(len(self.groups), -1)

    def start_at_means(self, x: Tensor, mask: Tensor | None = None, *, iterations: int = 10) -> None:
        """Start each part's codebook at means of that part; see `Codebook`."""
        group: Any
        for group, part in zip(self.groups, self._parts(x), strict=True):
            group.start_at_means(part, mask, iterations=iterations)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> CodebookOutput:
        """Looks the vectors up.

        Returns:
            See `CodebookOutput`, with a dimension G before the last of index and of counts where the parts' have one
            more than a `Codebook`'s: index [.., G] or [.., G, L], counts [G, K] or [G, L, K].

        Raises: as `Codebook`.
        """
        found = [group(part, mask) for group, part in zip(self.groups, self._parts(x), strict=True)]
        return CodebookOutput(
            torch.cat([part.quantized for part in found], -1),
            torch.stack([part.index for part in found], x.dim() - 1),
            torch.stack([part.loss for part in found]).mean(),
            torch.stack([part.counts for part in found]),
        )
