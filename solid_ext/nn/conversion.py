"""Codebooks of another library, by their state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from solid_ext.nn.codebook import Codebook
from solid_ext.nn.residual import ResidualCodebook

_LEVEL = re.compile(r"layers\.(\d+)\._codebook\.")
NAME = "codebook_from_vector_quantize"


def codebook_from_vector_quantize(state: Mapping[str, Tensor], **options: Any) -> Codebook | ResidualCodebook:
    """The codebook of a `VectorQuantize` of vector-quantize-pytorch, or the levels of its `ResidualVQ`.

    Entries, and with `update="ema"` the running means, are taken over: `embed` [1, K, D], `cluster_size` [1, K] and
    `embed_avg` [1, K, D]. Indices are then the same, up to ties that rounding decides.

    Args:
        state: its `state_dict()`; of one head, and without projections, which are layers of their own (`project_in`).
        options: those of `Codebook`, such as `update="ema"` and `metric="cosine"` for `use_cosine_sim=True`, which a
            state dict does not tell.

    Raises:
        ValueError: no codebook in it, more than one head, projections, entries that are not initialised, or levels of
            different sizes.

    Source: docs/examples/index.md#vector-quantisation.
    """
    projected = sorted(name for name in state if "project_" in name)
    if projected:
        raise ValueError(f"{NAME}: expected a state without projections, got {projected[0]}, a layer of its own")
    numbers = sorted({int(found[1]) for name in state if (found := _LEVEL.match(name))})
    prefixes = [f"layers.{number}._codebook." for number in numbers] or ["_codebook."]
    books = [_entries(state, prefix) for prefix in prefixes]
    shapes = {tuple(book.shape) for book in books}
    if len(shapes) > 1:
        raise ValueError(f"{NAME}: expected levels of one size, got {sorted(shapes)}")
    codes, dim = books[0].shape
    if not numbers:
        single = Codebook(codes, dim, **options)
        _fill(single, state, prefixes[0], books[0])
        return single
    residual = ResidualCodebook(len(books), codes, dim, **options)
    for level, prefix, entries in zip(residual.levels, prefixes, books, strict=True):
        _fill(level, state, prefix, entries)
    return residual


def _entries(state: Mapping[str, Tensor], prefix: str) -> Tensor:
    name = f"{prefix}embed"
    if name not in state:
        raise ValueError(f"{NAME}: expected {name} in the state, got {', '.join(sorted(state)[:5]) or 'none'}")
    embed = state[name]
    if embed.dim() != 3 or embed.shape[0] != 1:
        raise ValueError(f"{NAME}: expected {name} [1, K, D], of one head, got {list(embed.shape)}")
    started = state.get(f"{prefix}initted")
    if started is not None and not bool(started.all()):
        raise ValueError(f"{NAME}: expected entries that its k-means has started, got {prefix}initted False")
    return embed[0].float()


@torch.no_grad()
def _fill(codebook: Any, state: Mapping[str, Tensor], prefix: str, entries: Tensor) -> None:
    codebook.initialise(entries)
    if codebook.update == "ema" and f"{prefix}embed_avg" in state:
        codebook.ema_counts.copy_(state[f"{prefix}cluster_size"][0])
        codebook.ema_sums.copy_(state[f"{prefix}embed_avg"][0])
