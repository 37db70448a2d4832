"""Items that resemble each other by their features, as a sparse similarity."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from solid_ext.data.semantics.clusters import normalised

MOST_ITEMS = 65_536  # whose pairs take ten seconds; a larger catalogue would need an index of neighbours
_ROWS = 2048


def content_similarity(features: np.ndarray, *, count: int = 100, power: float = 3.0) -> sparse.csr_array:
    """`S_ij = max(0, cos(f_i, f_j))^power` of the `count` items most like each item i, and of no others.

    Args:
        features: f [V + 1, F]; row 0 (padding) and the rows of items without features are zero.
        count: how many items of each row are kept; of those as alike as the last one any.
        power: the exponent; above 1 it sets items that are nearly the same above those that are merely alike.

    Returns:
        [V + 1, V + 1] float64, sparse; no item resembles itself.

    Raises:
        ValueError: a count below 1, or more than 65,536 items, as the work grows with the square of their number.

    Source: docs/method.md#neighbours; Lops et al., Content-based recommender systems, 2011.
    """
    if count < 1:
        raise ValueError(f"content_similarity: expected count >= 1, got {count}")
    if len(features) - 1 > MOST_ITEMS:
        raise ValueError(f"content_similarity: expected at most {MOST_ITEMS:,} items, got {len(features) - 1:,}")
    unit = normalised(features)
    kept = min(count, len(unit) - 1)
    parts = []
    for first in range(0, len(unit), _ROWS):
        rows = np.arange(first, min(first + _ROWS, len(unit)))
        cosine = unit[rows] @ unit.T
        cosine[np.arange(len(rows)), rows] = 0
        columns = np.argpartition(-cosine, kept, axis=1)[:, :kept]
        value = np.maximum(np.take_along_axis(cosine, columns, axis=1), 0).astype(np.float64) ** power
        owner = np.repeat(np.arange(len(rows)), kept)
        parts.append(sparse.csr_array((value.ravel(), (owner, columns.ravel())), shape=cosine.shape))
        parts[-1].eliminate_zeros()
    return sparse.vstack(parts, format="csr")
