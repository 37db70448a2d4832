"""What each test row got, as a table: for tests of one's own."""

from __future__ import annotations

import polars as pl

from solid_ext.evaluate.metrics import Metrics


def row_table(sampled: Metrics, **full: Metrics) -> pl.DataFrame:
    """A row for each test row: `user`, `area` and `sampled_rank`, and of each full ranking, by its name, `NAME_rank`.

    Args:
        sampled: of the sampled protocol.
        full: of the full ranking of the same rows, one or more ways.
    """
    ranks = {f"{name}_rank": metrics.ranks for name, metrics in {"sampled": sampled, **full}.items()}
    return pl.DataFrame({"user": sampled.users, "area": sampled.areas, **ranks})
