"""Id features without a model: items that stand near the same items are alike."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from solid_ext.data.dataset import Dataset
from solid_ext.data.histories import blocks_before
from solid_ext.data.semantics.clusters import normalised

WINDOW = 10  # positions; bounds the pairs of a user by ten times his items, however long his history is
SMOOTHING = 0.75  # of the context frequencies, so that rare neighbours do not count for more than they tell


def cooccurrence_features(dataset: Dataset, train_end: np.ndarray, *, dim: int = 64, seed: int) -> np.ndarray:
    """Factors of the items' positive pointwise mutual information.

    `M_ij = max(0, log(n_ij / (n_i q_j)))`, `q_j = n_j^0.75 / sum n^0.75`, with `n_ij` how often i and j stand within 10
    positions of each other in a user's training part and `n_i = sum_j n_ij`; features `U S^0.5` of the truncated SVD
    `U S V'` of `(M + M') / 2`.

    Args:
        dataset: the interactions.
        train_end: `[U] int64`, flat ends: only user `u`'s items before `train_end[u]` are counted.
        dim: F. Beyond the number of items the last columns are zero.
        seed: of the randomised SVD, which reads 32 bits of it.

    Returns:
        `[V + 1, F] float32`; row 0 and the rows of items without neighbours are zero.

    Raises:
        ValueError: a dim below 1, or no user with two different items to count.

    Source: Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization, 2014; Levy et al., Improving
        Distributional Similarity with Lessons Learned from Word Embeddings, 2015.
    """
    if dim < 1:
        raise ValueError(f"cooccurrence_features: expected dim >= 1, got {dim}")
    # Imported here because it takes a second, which only who clusters should wait for.
    from sklearn.utils.extmath import randomized_svd

    size = dataset.num_items + 1
    matrix, count = _information(dataset, train_end)
    rank = min(dim, dataset.num_items)
    left, scale, _ = randomized_svd(matrix, rank, random_state=seed % 2**32)
    features = np.zeros((size, dim), dtype=np.float32)
    features[:, :rank] = left * np.sqrt(scale)
    features[count == 0] = 0
    return features


def folded_in(dataset: Dataset, train_end: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Features of items by those that they stand near: `f_i = sum_j (M + M')_ij / 2 f_j`, M as above, L2-normalised.

    Args:
        dataset, train_end: where the pairs are counted.
        features: `[V + 1, F]`, zero in the rows of items without features.

    Returns:
        `[V + 1, F] float32`, of every item; zero where an item stands near none that has features.

    Source: Sarwar et al., Incremental singular value decomposition algorithms for recommender systems, 2002.
    """
    matrix, _ = _information(dataset, train_end)
    return normalised(matrix @ features.astype(np.float64))


def _information(dataset: Dataset, train_end: np.ndarray) -> tuple[sparse.csr_array, np.ndarray]:
    """`(M + M') / 2` [V + 1, V + 1], sparse, and n_i [V + 1]."""
    size = dataset.num_items + 1
    pairs = _pairs(dataset, train_end, size)
    row, column = pairs.coords
    if not len(row):
        raise ValueError("cooccurrence_features: expected users with two different items to train on, got none")
    count = np.bincount(row, pairs.data, size)
    context = count**SMOOTHING / (count**SMOOTHING).sum()
    information = np.log(pairs.data / (count[row] * context[column]))
    matrix = sparse.csr_array((np.maximum(information, 0), (row, column)), shape=(size, size))
    return (matrix + matrix.T) / 2, count


def _pairs(dataset: Dataset, train_end: np.ndarray, size: int) -> sparse.coo_array:
    """n_ij of different items, symmetric, one distance after the other."""
    total = sparse.csr_array((size, size))
    for _, users, items in blocks_before(dataset.offsets, dataset.items, train_end):
        for distance in range(1, WINDOW + 1):
            first, second = items[:-distance], items[distance:]
            near = (users[:-distance] == users[distance:]) & (first != second)
            total = total + sparse.csr_array((np.ones(near.sum()), (first[near], second[near])), shape=(size, size))
    return (total + total.T).tocoo()
