"""SOLID: a recommender whose last layers are generated afresh for every user sequence.

The names below are loaded when they are first asked for: who takes a layer or an operation alone imports torch and
numpy, and nothing of what the recommender needs besides.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solid_ext._native import build_info
    from solid_ext.config import Config
    from solid_ext.data import Dataset, load_dataset
    from solid_ext.nn import Codebook, DynamicLinear, DynamicMLP
    from solid_ext.ops import dynamic_linear, dynamic_mlp, nearest_code
    from solid_ext.solid import SOLID

__all__ = [
    "SOLID",
    "Codebook",
    "Config",
    "Dataset",
    "DynamicLinear",
    "DynamicMLP",
    "build_info",
    "dynamic_linear",
    "dynamic_mlp",
    "load_dataset",
    "nearest_code",
]

_HOMES = {
    "SOLID": "solid",
    "Codebook": "nn",
    "Config": "config",
    "Dataset": "data",
    "DynamicLinear": "nn",
    "DynamicMLP": "nn",
    "build_info": "_native",
    "dynamic_linear": "ops",
    "dynamic_mlp": "ops",
    "load_dataset": "data",
    "nearest_code": "ops",
}
_PACKAGES = {"config", "data", "device", "evaluate", "models", "nn", "ops", "scorers", "serve", "solid", "train"}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
