"""The codebook layer: every vector is replaced by the entry nearest to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from solid_ext.nn.ranks import Ranks
from solid_ext.ops._arguments import Backend, expect_mask, expect_tensor, real, size
from solid_ext.ops.nearest_code import (
    Gradient,
    Metric,
    NearestCodeStatistics,
    codebook_lookup,
    nearest_code_statistics,
    unit_rows,
)

Update = Literal["frozen", "ema", "gradient"]

LOW_32_BITS = 0xFFFFFFFF
STATISTICS = ("ema_counts", "ema_sums", "distance_before")


class CodebookOutput(NamedTuple):
    """What a `Codebook` returns.

    Attributes:
        quantized: [.., D] in x's dtype, the chosen entries; zero where masked.
        index: [..] int64, which entries they are; 0 where masked. Of a `ResidualCodebook` [.., levels].
        loss: [] float32, see `Codebook`.
        counts: [K] int64, how many valid positions of this call chose each entry. Of a `ResidualCodebook` [levels, K].
    """

    quantized: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, as the contract names it
    loss: Tensor
    counts: Tensor

    @property
    def perplexity(self) -> Tensor:
        """`exp(-sum_k p_k log p_k)` of the entries' shares p in this call, [] float32, of a `ResidualCodebook`
        [levels]; 0 without any."""
        return perplexity(self.counts)


def perplexity(counts: Tensor) -> Tensor:
    """`exp(-sum_k p_k log p_k)` of counts [.., K] with the shares `p = counts / sum counts`: [..] float32; 0 when all
    are zero."""
    total = counts.sum(-1, keepdim=True)
    share = counts / total.clamp(min=1)
    return torch.special.entr(share).sum(-1).exp() * (total > 0).squeeze(-1)


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
            resume; 0 for never. Of entries that are a Parameter it is not for FSDP, which gathers a copy of them.
        metric: "l2", or "cosine", by which vectors and entries are compared, and returned, as unit vectors.
        commitment: the weight of the pull of x towards its entry.
        with_loss: whether the loss is computed; without it, it is 0 and nothing is kept for it.
        backend: "native" (the kernel) or "reference" (plain torch).
        seed: of the choice of revived entries.
        sync: whether what training learns of a batch is that of the batches of all ranks of `torch.distributed`, one
            after the other: running means, usage and revival are then those of one process on the whole batch, but for
            the order in which sums are added. Every rank takes part in every training call. Loss and counts stay those
            of the rank's own batch. The entries have to start alike, as DDP makes them.

    Attributes:
        weight: [K, D], the entries; a Parameter for the update "gradient", else a buffer.
        usage: [K] int64, how often training chose each entry so far.
        ema_counts: [K], n of the update "ema". Statistics stay in float32 or wider in a module of a narrower dtype,
            whose rounding is more than what a step adds to them.
        ema_sums: [K, D], s of the update "ema", likewise.
        idle: [K] int64, for revival: training calls since each entry was last chosen.
        calls: [] int64, for revival: training calls so far.

    Raises:
        ValueError: a size or an option out of range; in a call, a tensor that does not fit.
        TypeError: an argument of another type.
        RuntimeError: in the backward pass of `torch.utils.checkpoint`, when another training call has moved the entries
            that the recomputed one looked its vectors up in.

    Gradient: as in `nearest_code`. A forward pass that `torch.utils.checkpoint` computes again teaches nothing, and
    looks up in the entries as they were the first time.

    Source: docs/method.md#module-4-semantic-codebook; van den Oord et al. 2017, "Neural Discrete Representation
    Learning", appendix A.1.
    """

    weight: Tensor
    usage: Tensor
    ema_counts: Tensor
    entries_before: Tensor
    counts_before: Tensor
    distance_before: Tensor
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
        sync: bool = False,
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
        self.with_loss, self.ranks = with_loss, Ranks(sync)
        self.moves = update == "ema" or revive_after > 0  # in place, and not by an optimiser
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
        if self.moves:  # of the latest training call, for one that is computed again
            self.register_buffer("entries_before", torch.empty(num_codes, dim), persistent=False)
            self.register_buffer("counts_before", torch.empty(num_codes, dtype=torch.int64), persistent=False)
            self.register_buffer("distance_before", torch.empty(()), persistent=False)
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
        if self.moves:
            self.entries_before.copy_(weights)
            self.counts_before.zero_()
            self.distance_before.zero_()

    @torch.no_grad()
    def start_at_means(self, x: Tensor, mask: Tensor | None = None, *, iterations: int = 10) -> None:
        """Start the entries at the means of K clusters of vectors, by k-means, and forget all statistics.

        The means begin at vectors that the codebook's seed picks, and take so many turns of assigning each vector to
        the nearest mean and averaging. A mean that no vector chose stays. With `sync` the vectors are those of all
        ranks. With the metric "cosine" vectors and means are unit vectors.

        Args:
            x: [.., D] of a floating dtype, at least one of them finite.
            mask: [..] bool or None; vectors where it is False are left out.
            iterations: turns, 0 or more.

        Raises:
            ValueError: a shape that does not fit, or no finite vector.
            TypeError: no tensor, or another dtype.
        """
        iterations = size("Codebook.start_at_means", "iterations", iterations, least=0)
        self._check(x, "Codebook.start_at_means")
        if mask is not None:
            expect_mask("Codebook.start_at_means", mask, x.shape[:-1], x)
        rows = x.reshape(-1, self.dim)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        valid = torch.isfinite(rows).all(1)
        if mask is not None:
            valid &= mask.reshape(-1)
        if self.metric == "cosine":
            rows = unit_rows(rows)
        order = torch.arange(1, self.num_codes + 1, device=rows.device)
        means, found = self._rows_of(rows, valid, order, calls=-1)
        if not bool(found):
            raise ValueError("Codebook.start_at_means: expected at least one finite vector, got none")
        for _ in range(iterations):
            near = nearest_code_statistics(rows, means, valid, backend=self.backend)
            counts, sums = self.ranks.totals(near.counts, near.sums)
            averaged = sums / counts.clamp(min=1).unsqueeze(1)
            if self.metric == "cosine":
                averaged = unit_rows(averaged)
            means = torch.where(counts.unsqueeze(1) > 0, averaged, means)
        self._start(means)

    def _check(self, x: Tensor, name: str = "Codebook") -> None:
        expect_tensor(name, "x", x)
        if x.dim() < 1 or x.shape[-1] != self.dim:
            raise ValueError(f"{name}: expected x [.., D={self.dim}], got {list(x.shape)}")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> CodebookOutput:
        """Looks the vectors up.

        Args:
            x: [.., D], in a dtype that `nearest_code` takes.
            mask: [..] bool or None; a position where it is False gives zeros and teaches the entries nothing.

        Returns:
            See `CodebookOutput`.

        Raises: as `nearest_code`.
        """
        self._check(x)
        again = self.training and _computed_again()
        if again and self.moves:
            self._expect_the_latest(x, mask)
        index, quantized, distance, counts, sums = self._look_up(x, self._entries(again), mask)
        loss = distance.new_zeros(())
        if self.with_loss:
            valid = max(distance.numel(), 1) if mask is None else mask.sum().clamp(min=1)
            learns = self.update == "gradient"
            loss = distance.sum() * ((self.commitment + learns) / self.dim) / valid
        if self.training and not again:
            self._learn(x.detach(), mask, counts, sums, distance.detach())
        return CodebookOutput(quantized, index, loss, counts)

    def _look_up(self, x: Tensor, entries: Tensor, mask: Tensor | None) -> NearestCodeStatistics:
        learns = self.update == "gradient"
        of_x = self.commitment / (self.commitment + 1) if learns else 1.0
        of_code = 1 / (self.commitment + 1) if learns else 0.0
        return codebook_lookup(
            x,
            entries,
            mask,
            gradient=self.gradient,
            metric=self.metric,
            backend=self.backend,
            sums=self.training and self.update == "ema",
            distance_gradient=(of_x, of_code) if self.with_loss else (0.0, 0.0),
        )

    def _entries(self, again: bool) -> Tensor:
        """The entries that a call looks up in, not those that it moves: their gradient may need them as they were."""
        if not (self.moves and self.training):
            return self.weight
        if not again:
            with torch.no_grad():
                self.entries_before.copy_(self.weight)
        if self.update == "gradient":
            return self.entries_before + (self.weight - self.weight.detach())
        return self.entries_before

    @torch.no_grad()
    def _expect_the_latest(self, x: Tensor, mask: Tensor | None) -> None:
        """Refuse a call that is computed again where its entries are no longer known.

        It is looked up here by itself, as what is computed again ends where the last tensor of a gradient is found.
        """
        found = self._look_up(x, self.entries_before, mask)
        total = found.distance.sum()
        same = torch.isclose(total, self.distance_before.to(total.dtype), rtol=0, atol=0, equal_nan=True)
        if not (bool(same) and torch.equal(found.counts, self.counts_before)):
            raise RuntimeError(
                "Codebook: expected the backward pass of a checkpointed call before the next training call, got "
                "another call in between, which moved the entries"
            )

    @torch.no_grad()
    def _learn(self, x: Tensor, mask: Tensor | None, counts: Tensor, sums: Tensor, distance: Tensor) -> None:
        if self.moves:
            self.counts_before.copy_(counts)
            self.distance_before.copy_(distance.sum())
        counts, sums = self.ranks.totals(counts, sums)
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
        if rows.shape[0] == 0 and not self.ranks.several:
            return
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + 1))
        dead = self.idle >= self.revive_after
        valid = torch.isfinite(rows).all(1)
        if mask is not None:
            valid &= mask.reshape(-1)
        fresh, found = self._rows_of(rows, valid, dead.cumsum(0), self.calls)
        dead &= found
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

    def _rows_of(self, rows: Tensor, valid: Tensor, order: Tensor, calls: Tensor | int) -> tuple[Tensor, Tensor]:
        """Of valid rows [N, D] one for each entry, [K, D], and whether there is any, [] bool.

        The j-th of J entries takes a row of the j-th of J equal stretches: different rows, if there are enough.

        Args:
            order: [K], the number j of each entry, rising to J.
        """
        rank_of_row = valid.cumsum(0)
        own = valid.sum()
        first, total = self.ranks.place(own)
        place = (order - 1 + self._uniform(order, calls)) / order[-1].clamp(min=1)
        wanted = (place * total).to(torch.int64).clamp(min=0).minimum((total - 1).clamp(min=0)) - first
        if rows.shape[0]:
            row = torch.searchsorted(rank_of_row, wanted.clamp(min=0) + 1).clamp(max=rows.shape[0] - 1)
            chosen = rows[row]
        else:
            chosen = rows.new_zeros(len(order), self.dim)
        return self.ranks.owned(chosen, (wanted >= 0) & (wanted < own)), total > 0

    def _uniform(self, counter: Tensor, calls: Tensor | int) -> Tensor:
        """Numbers in [0, 1), mixed of seed, number of calls and counter (the constants are C. Wellons' lowbias32's)."""
        seed = (self.seed * 0x85EBCA6B) & LOW_32_BITS
        state = (counter + calls * 0x9E3779B9 + seed) & LOW_32_BITS
        state = ((state ^ (state >> 16)) * 0x7FEB352D) & LOW_32_BITS
        state = ((state ^ (state >> 15)) * 0x846CA68B) & LOW_32_BITS
        state = state ^ (state >> 16)
        return state.to(torch.float64) / 2**32

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        statistics = {name: getattr(self, name) for name in STATISTICS if name in self._buffers}
        super()._apply(fn, recurse)
        for name, before in statistics.items():
            self._keep_wide(name, before)
        return self

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        for name in STATISTICS:  # `assign` takes tensors as they are
            if name in self._buffers:
                self._keep_wide(name, self._buffers[name])
        if self.moves and self.entries_before.device != self.weight.device:  # which `assign` put elsewhere
            self.entries_before = torch.zeros_like(self.weight.detach())
            self.counts_before = torch.zeros_like(self.usage)
            self.distance_before = torch.zeros_like(self.distance_before, device=self.weight.device)

    def _keep_wide(self, name: str, before: Tensor | None) -> None:
        """A statistic that was converted to a narrow dtype takes its values of before again, where it is now."""
        after = self._buffers[name]
        if before is None or after is None or after.dtype in (torch.float32, torch.float64):
            return
        self._buffers[name] = after.float() if before.is_meta or after.is_meta else before.to(after.device).float()

    def extra_repr(self) -> str:
        """The options, as `print` shows them."""
        return (
            f"{self.num_codes}, {self.dim}, gradient={self.gradient!r}, update={self.update!r}, "
            f"metric={self.metric!r}, backend={self.backend!r}"
        )


def _computed_again() -> bool:
    """Whether this forward pass runs inside a backward pass, as one that `torch.utils.checkpoint` computes again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
