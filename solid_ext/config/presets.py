"""Presets: fields by name, over the defaults."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
    "dim": 32,
    "heads": 4,
    "dropout": 0.0,
    "item_features": False,
    "target": "mlp",
    "dynamic_residual": False,
    "low_rank": False,
    "neighbours": False,
    "loss": "bce",
    "negatives": 4,
    "learning_rate": 0.001,
    "patience": 20,
    "validation": "sampled:ndcg@10",
}
"""The paper's Table 2 where the defaults are others: `Config().replace(**PAPER)`."""

DEVICE: dict[str, Any] = {"dim": 8, "generator_dim": 64, "low_rank": False}
"""A small model for a device, whose layers a wide generator that stays on the server makes: `docs/device.md`."""

PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "best": {}, "device": DEVICE}
"""paper: Table 2; best: the defaults, which do best here; device: for a device. Each sets fields by their name."""
