"""Backbones, generators, the network made of them, and the baseline that all are compared with."""

from solid_ext.models.encoder import valid_mask
from solid_ext.models.popularity import Popularity
from solid_ext.models.recommender import DynamicRecommender, UserState
from solid_ext.models.semantic import SemanticRecommender, start_from

__all__ = ["DynamicRecommender", "Popularity", "SemanticRecommender", "UserState", "start_from", "valid_mask"]
