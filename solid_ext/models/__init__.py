"""Backbones, encoders, and the networks made of them."""

from solid_ext.models.recommender import DynamicRecommender
from solid_ext.models.sasrec_softmax import SASRecSoftmax
from solid_ext.models.semantic import SemanticRecommender, start_from
from solid_ext.models.state import UserState

__all__ = ["DynamicRecommender", "SASRecSoftmax", "SemanticRecommender", "UserState", "start_from"]
