"""What scores items without being the network: counts, chains, neighbourhoods, and what wraps another scorer."""

from solid_ext.scorers.content import content_similarity
from solid_ext.scorers.itemknn import ItemKNN
from solid_ext.scorers.markov import Markov
from solid_ext.scorers.neighbours import WithNeighbours, choose_neighbours
from solid_ext.scorers.newcomers import WithNewcomers
from solid_ext.scorers.popularity import Popularity

__all__ = [
    "ItemKNN",
    "Markov",
    "Popularity",
    "WithNeighbours",
    "WithNewcomers",
    "choose_neighbours",
    "content_similarity",
]
