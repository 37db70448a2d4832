"""The neighbourhood beside a trained network: chosen on validation rows, and counted again when there is more data."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from solid_ext.config import Config
from solid_ext.data import Dataset, Split
from solid_ext.evaluate import Scorer, Validation
from solid_ext.models import DynamicRecommender
from solid_ext.scorers import ItemKNN, WithNeighbours, choose_neighbours, content_similarity
from solid_ext.scorers.content import MOST_ITEMS
from solid_ext.scorers.finetune import fine_tuned

NEIGHBOUR_ROWS = 5_000  # of the validation, on which the neighbours' settings are chosen


def chosen_neighbours(
    config: Config, model: DynamicRecommender, dataset: Dataset, split: Split, features: np.ndarray | None
) -> WithNeighbours | None:
    """The model with the neighbours that are best on the validation rows; None where the configuration has none."""
    if not config.model.item.neighbours:
        return None
    return best_neighbours(config, fine_tuned(model), dataset, split, features)


def best_neighbours(
    config: Config, scorer: Scorer, dataset: Dataset, split: Split, features: np.ndarray | None
) -> WithNeighbours:
    """A scorer with the neighbours, counted in the training part, that are best on the validation rows."""
    validate = Validation(config, dataset, split, most=NEIGHBOUR_ROWS)
    knn = ItemKNN(dataset, split.train_end, scorer.length)
    return choose_neighbours(scorer, knn, validate.of_each, content_of(features)).narrow()


def counted_neighbours(
    chosen: WithNeighbours | None, model: DynamicRecommender, dataset: Dataset, features: np.ndarray | None
) -> WithNeighbours | None:
    """The model with neighbours as they were chosen for another, counted in all interactions."""
    if chosen is None:
        return None
    knn, content = ItemKNN(dataset, dataset.offsets[1:], model.length), content_of(features)
    if content is not None and chosen.content:
        knn = ItemKNN.of(knn.similarity + content * chosen.content, knn.length)
    return WithNeighbours(fine_tuned(model), knn, chosen.weight, chosen.decay, chosen.content).narrow()


def grown_neighbours(
    known: WithNeighbours | None, model: DynamicRecommender, features: np.ndarray | None
) -> WithNeighbours | None:
    """The neighbours of a model that has more items now, which nobody has had: the new ones resemble by features alone.

    Args:
        features: [V' + 1, F], of the model's items and the new ones.
    """
    if known is None:
        return None
    old = known.knn.similarity
    had, size = old.shape[0], model.num_items + 1
    row, column = old.tocoo().coords
    similarity = sparse.csr_array((old.tocoo().data, (row, column)), shape=(size, size))
    content = content_of(features) if known.content else None
    if content is not None:
        pairs = content.tocoo()
        row, column = pairs.coords
        new = (row >= had) | (column >= had)
        values = (pairs.data[new] * known.content).astype(old.dtype)
        similarity = similarity + sparse.csr_array((values, (row[new], column[new])), shape=(size, size))
    return WithNeighbours(
        fine_tuned(model), ItemKNN.of(similarity.tocsr(), model.length), known.weight, known.decay, known.content
    )


def content_of(features: np.ndarray | None) -> sparse.csr_array | None:
    """How much items resemble each other by features [V + 1, F]; None without any, or of too many items."""
    return None if features is None or len(features) - 1 > MOST_ITEMS else content_similarity(features)
