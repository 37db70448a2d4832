"""Backbones, generators, the network made of them, and the peers that all are compared with."""

from solid_ext.models.content import content_similarity
from solid_ext.models.encoder import valid_mask
from solid_ext.models.itemknn import ItemKNN
from solid_ext.models.markov import Markov
from solid_ext.models.neighbours import WithNeighbours, choose_neighbours
from solid_ext.models.newcomers import WithNewcomers
from solid_ext.models.popularity import Popularity
from solid_ext.models.recommender import DynamicRecommender, UserState
from solid_ext.models.sasrec_softmax import SASRecSoftmax
from solid_ext.models.semantic import SemanticRecommender, start_from

__all__ = [
    "DynamicRecommender",
    "ItemKNN",
    "Markov",
    "Popularity",
    "SASRecSoftmax",
    "SemanticRecommender",
    "UserState",
    "WithNeighbours",
    "WithNewcomers",
    "choose_neighbours",
    "content_similarity",
    "start_from",
    "valid_mask",
]
