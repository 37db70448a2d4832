"""Backbones, generators, the network made of them, and the baseline that all are compared with."""

from solid_ext.models.encoder import valid_mask
from solid_ext.models.popularity import Popularity
from solid_ext.models.recommender import DynamicRecommender, UserState

__all__ = ["DynamicRecommender", "Popularity", "UserState", "valid_mask"]
