"""Backbones, generators, and the networks made of them."""

from solid_ext.models.recommender import DynamicRecommender, UserState
from solid_ext.models.sasrec_softmax import SASRecSoftmax
from solid_ext.models.semantic import SemanticRecommender, start_from

__all__ = ["DynamicRecommender", "SASRecSoftmax", "SemanticRecommender", "UserState", "start_from"]
