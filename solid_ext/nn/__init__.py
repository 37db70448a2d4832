"""Layers for any torch model: the codebook, and linear layers whose weights are generated for every sequence."""

from solid_ext.nn.codebook import Codebook, CodebookOutput
from solid_ext.nn.dynamic import DynamicLinear, DynamicMLP

__all__ = ["Codebook", "CodebookOutput", "DynamicLinear", "DynamicMLP"]
