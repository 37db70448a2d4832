"""The operations: checked, differentiable, on the compiled kernels or in plain torch."""

from solid_ext.ops.catalogue_cross_entropy import catalogue_cross_entropy
from solid_ext.ops.dynamic_linear import dynamic_linear, dynamic_mlp
from solid_ext.ops.gru import gru_last_state
from solid_ext.ops.low_rank import low_rank_mlp
from solid_ext.ops.nearest_code import NearestCode, nearest_code

__all__ = [
    "NearestCode",
    "catalogue_cross_entropy",
    "dynamic_linear",
    "dynamic_mlp",
    "gru_last_state",
    "low_rank_mlp",
    "nearest_code",
]
