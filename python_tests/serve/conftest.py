"""A small model that the tests of serving ask."""

from __future__ import annotations

import numpy as np
import pytest

from solid_ext import SOLID, Config, Dataset, load_dataset

TINY = Config().replace(length=5, dim=16, heads=2, codebook_hidden=16, batch_size=512, epochs=1, eval_negatives=20)


@pytest.fixture(scope="session")
def skewed() -> tuple[Dataset, SOLID]:
    """Items drawn by Zipf's law, and a model of them."""
    rng = np.random.default_rng(0)
    items = np.minimum(rng.zipf(1.4, 300 * 8), 200)
    data = load_dataset((np.repeat(np.arange(300), 8), items, np.arange(items.size)))
    return data, SOLID(TINY).fit(data)
