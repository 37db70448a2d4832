"""Layers for any torch model: the codebook, dynamic layers, and what sequence models are made of."""

from solid_ext.nn.codebook import Codebook, CodebookOutput
from solid_ext.nn.conversion import codebook_from_vector_quantize
from solid_ext.nn.dropout import Dropout
from solid_ext.nn.dynamic import DynamicLinear, DynamicMLP
from solid_ext.nn.last_state import LastState
from solid_ext.nn.lookup import Lookup
from solid_ext.nn.low_rank import LowRankMLP
from solid_ext.nn.residual import GroupedCodebook, ResidualCodebook
from solid_ext.nn.transformer import TransformerBlock

__all__ = [
    "Codebook",
    "CodebookOutput",
    "Dropout",
    "DynamicLinear",
    "DynamicMLP",
    "GroupedCodebook",
    "LastState",
    "Lookup",
    "LowRankMLP",
    "ResidualCodebook",
    "TransformerBlock",
    "codebook_from_vector_quantize",
]
