"""SOLID: a recommender whose last layers are generated afresh for every user sequence."""

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
