"""The codebook layer: every vector is replaced by the entry nearest to it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from solid_ext.ops._arguments import Backend, expect_tensor, real, size
from solid_ext.ops.nearest_code import Gradient, Metric, codebook_lookup, unit_rows

Update = Literal["frozen", "ema", "gradient"]

LOW_32_BITS = 0xFFFFFFFF


class CodebookOutput(NamedTuple):
    """What a `Codebook` returns.

    Attributes:
        quantized: [.., D] in x's dtype, the chosen entries; zero where masked.
        index: [..] int64, which entries they are; 0 where masked.
        loss: [] float32, see `Codebook`.
        counts: [K] int64, how many valid positions of this call chose each entry.
    """

    quantized: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, as the contract names it
    loss: Tensor
    counts: Tensor

    @property
    def perplexity(self) -> Tensor:
        """`exp(-sum_k p_k log p_k)` of the entries' shares p in this call, [] float32; 0 without any."""
        return perplexity(self.counts)


def perplexity(counts: Tensor) -> Tensor:
    """`exp(-sum_k p_k log p_k)` with the shares `p = counts / sum counts`, [] float32; 0 when all counts are zero."""
    total = counts.sum()
    share = counts / total.clamp(min=1)
    return torch.special.entr(share).sum().exp() * (total > 0)


class Codebook(nn.Module):
    """Replaces every vector by the nearest of `num_codes` entries: `q = weight[argmin_k ||x - weight_k||^2]`.

    The loss is `commitment * mean (x - sg(q))^2`, plus `mean (sg(x) - q)^2` for the update "gradient"; the mean is over
    the elements of the valid positions, and 0 without any.

    Args:
        num_codes: K >= 1, the number of entries.
        dim: D >= 1.
        gradient: what reaches x from q: "straight_through", "none" or "rotation" (see `nearest_code`).
        update: how the entries learn. "frozen": not at all. "ema": in training mode each call moves the entries in use
            to a running mean of the vectors that chose them. "gradient": `weight` is a Parameter that gets the
            gradient of q and of the loss.
        decay: of the running means, `n <- decay n + (1 - decay) count` and `s <- decay s + (1 - decay) sum`, whose
            entry is `s / n`. An entry starts with `n = 1` and `s = entry`, and stays where it is while unused.
        revive_after: an entry that no vector chose in this many training calls in a row becomes a vector of the batch,
            picked by a hash of `seed` and the number of calls, so that it is the same on every device and after a
            resume; 0 for never.
        metric: "l2", or "cosine", by which vectors and entries are compared, and returned, as unit vectors.
        commitment: the weight of the pull of x towards its entry.
        with_loss: whether the loss is computed; without it, it is 0 and nothing is kept for it.
        backend: "native" (the kernel) or "reference" (plain torch).
        seed: of the choice of revived entries.

    Attributes:
        weight: [K, D], the entries; a Parameter for the update "gradient", else a buffer.
        usage: [K] int64, how often training chose each entry so far.
        ema_counts: [K], n of the update "ema".
        ema_sums: [K, D], s of the update "ema".
        idle: [K] int64, for revival: training calls since each entry was last chosen.
        calls: [] int64, for revival: training calls so far.

    Raises:
        ValueError: a size or an option out of range; in a call, a tensor that does not fit.
        TypeError: an argument of another type.

    Gradient: as in `nearest_code`.

    Source: docs/method.md#module-4-semantic-codebook; van den Oord et al. 2017, "Neural Discrete Representation
    Learning", appendix A.1.
    """

    weight: Tensor
    usage: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    idle: Tensor
    calls: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        gradient: Gradient = "straight_through",
        update: Update = "frozen",
        decay: float = 0.99,
        revive_after: int = 0,
        metric: Metric = "l2",
        commitment: float = 0.25,
        with_loss: bool = True,
        backend: Backend = "native",
        seed: int = 0,
    ) -> None:
        super().__init__()
        num_codes, dim = size("Codebook", "num_codes", num_codes), size("Codebook", "dim", dim)
        revive_after = size("Codebook", "revive_after", revive_after, least=0)
        decay, commitment = real("Codebook", "decay", decay), real("Codebook", "commitment", commitment)
        seed = size("Codebook", "seed", seed, least=-(2**63))
        for name, value, options in (
            ("gradient", gradient, get_args(Gradient)),
            ("update", update, get_args(Update)),
            ("metric", metric, get_args(Metric)),
            ("backend", backend, get_args(Backend)),
        ):
            if value not in options:
                raise ValueError(f"Codebook: expected {name} in {options}, got {value!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"Codebook: expected 0 <= decay < 1, got {decay}")
        if not commitment >= 0:
            raise ValueError(f"Codebook: expected commitment >= 0, got {commitment}")
        if math.isinf(commitment):
            raise ValueError(f"Codebook: expected a finite commitment, got {commitment}")
        if revive_after > 0 and update == "frozen":
            raise ValueError(f"Codebook: expected revive_after 0 for update 'frozen', got {revive_after}")
        self.num_codes, self.dim = num_codes, dim
        self.gradient, self.update, self.metric, self.backend = gradient, update, metric, backend
        self.decay, self.revive_after, self.commitment, self.seed = decay, revive_after, commitment, seed
        self.with_loss = with_loss
        weight = torch.empty(num_codes, dim)
        if update == "gradient":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.register_buffer("usage", torch.zeros(num_codes, dtype=torch.int64))
        if update == "ema":
            self.register_buffer("ema_counts", torch.empty(num_codes))
            self.register_buffer("ema_sums", torch.empty(num_codes, dim))
        if revive_after:
            self.register_buffer("idle", torch.empty(num_codes, dtype=torch.int64))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the entries from a normal distribution of unit expected length and forgets all statistics."""
        self._start(torch.randn(self.num_codes, self.dim) * self.dim**-0.5)

    @torch.no_grad()
    def initialise(self, weights: Tensor) -> None:
        """Copies the given entries [K, D], such as a trained embedding table, and forgets all statistics.

        Raises:
            ValueError: another shape, an integer dtype, or numbers that are not finite.
            TypeError: no tensor.
        """
        expect_tensor("Codebook.initialise", "weights", weights)
        if weights.shape != self.weight.shape:
            raise ValueError(
                f"Codebook.initialise: expected weights {list(self.weight.shape)}, got {list(weights.shape)}"
            )
        if not weights.is_floating_point() or not bool(torch.isfinite(weights).all()):
            raise ValueError("Codebook.initialise: expected finite floating-point weights")
        self._start(weights)

    @torch.no_grad()
    def _start(self, weights: Tensor) -> None:
        self.weight.copy_(weights)
        self.usage.zero_()
        if self.update == "ema":  # an entry starts as the mean of one vector, itself
            self.ema_counts.fill_(1)
            self.ema_sums.copy_(weights)
        if self.revive_after:
            self.idle.zero_()
            self.calls.zero_()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> CodebookOutput:
        """Looks the vectors up.

        Args:
            x: [.., D], in a dtype that `nearest_code` takes.
            mask: [..] bool or None; a position where it is False gives zeros and teaches the entries nothing.

        Returns:
            See `CodebookOutput`.

        Raises: as `nearest_code`.
        """
        expect_tensor("Codebook", "x", x)
        if x.dim() < 1 or x.shape[-1] != self.dim:
            raise ValueError(f"Codebook: expected x [.., D={self.dim}], got {list(x.shape)}")
        learns = self.update == "gradient"
        of_x = self.commitment / (self.commitment + 1) if learns else 1.0
        of_code = 1 / (self.commitment + 1) if learns else 0.0
        index, quantized, distance, counts, sums = codebook_lookup(
            x,
            self.weight,
            mask,
            gradient=self.gradient,
            metric=self.metric,
            backend=self.backend,
            sums=self.training and self.update == "ema",
            distance_gradient=(of_x, of_code) if self.with_loss else (0.0, 0.0),
        )
        loss = distance.new_zeros(())
        if self.with_loss:
            valid = max(distance.numel(), 1) if mask is None else mask.sum().clamp(min=1)
            loss = distance.sum() * ((self.commitment + learns) / self.dim) / valid
        if self.training:
            self._learn(x.detach(), mask, counts, sums)
        return CodebookOutput(quantized, index, loss, counts)

    @torch.no_grad()
    def _learn(self, x: Tensor, mask: Tensor | None, counts: Tensor, sums: Tensor) -> None:
        self.usage.add_(counts)
        if self.update == "ema":
            self.ema_counts.lerp_(counts.to(self.ema_counts.dtype), 1 - self.decay)
            self.ema_sums.lerp_(sums.to(self.ema_sums.dtype), 1 - self.decay)
            # Without a vector s and n shrink alike and the entry stays; used ones have n >= 1 - decay.
            means = self.ema_sums / self.ema_counts.unsqueeze(1)
            if self.metric == "cosine":
                means = unit_rows(means)
            self.weight.copy_(torch.where(counts.unsqueeze(1) > 0, means, self.weight))
        if self.revive_after:
            self._revive(x.reshape(-1, self.dim), mask, counts)

    def _revive(self, rows: Tensor, mask: Tensor | None, counts: Tensor) -> None:
        """Gives each entry that was idle for too long a valid row of its own, without waiting for the device."""
        if rows.shape[0] == 0:
            return
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + 1))
        dead = self.idle >= self.revive_after
        valid = torch.isfinite(rows).all(1)
        if mask is not None:
            valid &= mask.reshape(-1)
        rank_of_row = valid.cumsum(0)
        num_valid = rank_of_row[-1]
        dead &= num_valid > 0
        # The j-th of J dead entries takes a row of the j-th of J equal stretches: different rows, if there are enough.
        order = dead.cumsum(0)
        place = (order - 1 + self._uniform(order)) / order[-1].clamp(min=1)
        wanted = (place * num_valid).to(torch.int64).clamp(min=0).minimum((num_valid - 1).clamp(min=0))
        row = torch.searchsorted(rank_of_row, wanted + 1).clamp(max=rows.shape[0] - 1)
        fresh = rows[row]
        if self.metric == "cosine":
            fresh = unit_rows(fresh)
        fresh = fresh.to(self.weight.dtype)
        chosen = dead.unsqueeze(1)
        self.weight.copy_(torch.where(chosen, fresh, self.weight))
        if self.update == "ema":
            self.ema_counts.copy_(torch.where(dead, 1, self.ema_counts))
            self.ema_sums.copy_(torch.where(chosen, fresh, self.ema_sums))
        self.idle.copy_(torch.where(dead, 0, self.idle))
        self.calls.add_(1)

    def _uniform(self, counter: Tensor) -> Tensor:
        """Numbers in [0, 1), mixed of seed, number of calls and counter (the constants are C. Wellons' lowbias32's)."""
        seed = (self.seed * 0x85EBCA6B) & LOW_32_BITS
        state = (counter + self.calls * 0x9E3779B9 + seed) & LOW_32_BITS
        state = ((state ^ (state >> 16)) * 0x7FEB352D) & LOW_32_BITS
        state = ((state ^ (state >> 15)) * 0x846CA68B) & LOW_32_BITS
        state = state ^ (state >> 16)
        return state.to(torch.float64) / 2**32

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return (
            f"{self.num_codes}, {self.dim}, gradient={self.gradient!r}, update={self.update!r}, "
            f"metric={self.metric!r}, backend={self.backend!r}"
        )
