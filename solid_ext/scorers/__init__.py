"""Scorers that are not the network: popularity, chains, neighbourhoods, and those that wrap another scorer."""

from solid_ext.scorers.content import content_similarity
from solid_ext.scorers.finetune import FineTuned
from solid_ext.scorers.itemknn import ItemKNN
from solid_ext.scorers.markov import Markov
from solid_ext.scorers.neighbours import NoNetwork, WithNeighbours, choose_neighbours
from solid_ext.scorers.newcomers import WithNewcomers
from solid_ext.scorers.popularity import Popularity

__all__ = [
    "FineTuned",
    "ItemKNN",
    "Markov",
    "NoNetwork",
    "Popularity",
    "WithNeighbours",
    "WithNewcomers",
    "choose_neighbours",
    "content_similarity",
]
