"""Backbones, generators and the network made of them."""

from solid_ext.models.recommender import DynamicRecommender, UserState

__all__ = ["DynamicRecommender", "UserState"]
