"""The backbones for one sequence, in numpy: what `solid_ext.models.backbones` computes for a batch, without padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]
EPS = 1e-5  # of a layer norm
CANDIDATES = 4096  # that DIN is given at once, so that a pair's arrays stay small

_erf = np.vectorize(math.erf, otypes=[np.float32])


def linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """`x W^T + b` [.., out] of x [.., in], the bias where the layer has one."""
    y = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias


def layer_norm(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """The layer norm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPS)
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _softmax(x: np.ndarray) -> np.ndarray:
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _block(
    weights: Weights, name: str, queries: np.ndarray, states: np.ndarray, allowed: np.ndarray | None, heads: int
) -> np.ndarray:
    """A pre-normalised transformer block: queries [Q, d], states [n, d], allowed [Q, n] bool or None for all."""
    query = linear(weights, f"{name}.query", layer_norm(weights, f"{name}.norm_attention", queries))
    both = linear(weights, f"{name}.key_value", layer_norm(weights, f"{name}.norm_attention", states))
    key, value = np.split(both, 2, axis=1)
    split = [part.reshape(len(part), heads, -1).transpose(1, 0, 2) for part in (query, key, value)]
    scores = split[0] @ split[1].transpose(0, 2, 1) / math.sqrt(split[0].shape[2])  # [heads, Q, n]
    share = _softmax(scores if allowed is None else np.where(allowed, scores, -np.inf))
    attended = (share @ split[2]).transpose(1, 0, 2).reshape(query.shape)
    queries = queries + linear(weights, f"{name}.out", attended)
    hidden = linear(weights, f"{name}.feed.0", layer_norm(weights, f"{name}.norm_feed", queries))
    hidden = hidden * 0.5 * (1 + _erf(hidden / math.sqrt(2)))
    return queries + linear(weights, f"{name}.feed.2", hidden)


def sasrec(weights: Weights, embedded: np.ndarray, heads: int, blocks: int) -> np.ndarray:
    """The state [d] after the embedded items [n, d] of a sequence, the newest last."""
    n = len(embedded)
    states = embedded + weights["position.weight"][n - 1 :: -1]
    causal = np.tril(np.ones((n, n), dtype=bool))
    for block in range(blocks - 1):
        states = _block(weights, f"blocks.{block}", states, states, causal, heads)
    last = _block(weights, f"blocks.{blocks - 1}", states[-1:], states, None, heads)
    return layer_norm(weights, "norm", last)[0]


def bert4rec(weights: Weights, embedded: np.ndarray, heads: int, blocks: int) -> np.ndarray:
    """The state [d] of the mask token after the embedded items [n, d]."""
    position, n = weights["position.weight"], len(embedded)
    states = np.concatenate([embedded + position[n:0:-1], weights["token"][None] + position[:1]])
    for block in range(blocks - 1):
        states = _block(weights, f"blocks.{block}", states, states, None, heads)
    last = _block(weights, f"blocks.{blocks - 1}", states[-1:], states, None, heads)
    return layer_norm(weights, "norm", last)[0]


def gru4rec(weights: Weights, embedded: np.ndarray, heads: int, blocks: int) -> np.ndarray:
    """The state [d] of the GRU after the embedded items [n, d]."""
    state = np.zeros(embedded.shape[1], dtype=embedded.dtype)
    inputs = embedded @ weights["gru.cell.weight_ih"].T + weights["gru.cell.bias_ih"]
    for row in inputs:
        hidden = weights["gru.cell.weight_hh"] @ state + weights["gru.cell.bias_hh"]
        (reset_x, update_x, new_x), (reset_h, update_h, new_h) = np.split(row, 3), np.split(hidden, 3)
        update = _sigmoid(update_x + update_h)
        new = np.tanh(new_x + _sigmoid(reset_x + reset_h) * new_h)
        state = new + update * (state - new)
    return state


def din(weights: Weights, embedded: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The state [T, d] of each candidate [T, d] with the embedded items [n, d]."""
    key = linear(weights, "key", embedded)
    slope, states = weights["activation.weight"], []
    for first in range(0, len(candidates), CANDIDATES):
        some = candidates[first : first + CANDIDATES]
        query, interest = linear(weights, "query", some), np.zeros_like(some)
        for item, own in zip(embedded, key, strict=True):
            hidden = (some * item) @ weights["product.weight"].T + query + own
            share = linear(weights, "weight", np.where(hidden > 0, hidden, slope * hidden))
            interest += share * item
        states.append(linear(weights, "out", np.concatenate([interest, some], axis=1)))
    return np.concatenate(states)


STATES: dict[str, Callable[[Weights, np.ndarray, int, int], np.ndarray]] = {
    "sasrec": sasrec,
    "bert4rec": bert4rec,
    "gru4rec": gru4rec,
}
"""Those with one state a sequence; `din` has one a candidate."""
NAMES = ("din", *STATES)
