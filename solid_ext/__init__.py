"""SOLID: a recommender whose last layers are generated afresh for every user sequence."""

from solid_ext._native import build_info

__all__ = ["build_info"]
