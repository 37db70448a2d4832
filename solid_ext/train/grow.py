"""A trained network with more items: what it knows stays, and each new row starts from its semantic and features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solid_ext.config import Config
from solid_ext.models import DynamicRecommender
from solid_ext.train.algorithm import build_model

ITEM_ROWS = ("item_embedding.weight", "item.embedding.table.weight")  # [V + 1, d], row 0 is padding
SEMANTIC_ROWS = "semantic_embedding.table.weight"  # [C + 1, d], row 0 is padding
GIVEN = ("semantics", "item_embedding.features")  # of the items, not learned


def grow_model(
    model: DynamicRecommender, config: Config, semantics: np.ndarray, features: Tensor | None, fresh: np.ndarray
) -> DynamicRecommender:
    """The network over V' >= V items, in eval mode, its parameters those of `model` but for the rows of fresh items.

    A fresh item's row is the mean of the rows of its semantic's other items, or of all others where it has none; the
    trained map adds what it makes of the item's features. A semantic more, the fallback that the model had no use for,
    starts from the mean of the others in the same way.

    Args:
        model: the trained network; it is not changed.
        config: whose model section is the network's.
        semantics: [V' + 1] int64.
        features: [V' + 1, F] float32; None for none.
        fresh: [V' + 1] bool, the items that the model has not been trained on; new ones are.

    Source: docs/keeping_up.md#new-items.
    """
    num_items = len(semantics) - 1
    grown = build_model(config, config.model, num_items, semantics, features)
    state = grown.state_dict()
    with torch.no_grad():
        for name, old in model.state_dict().items():
            if name in GIVEN:
                continue
            new = state[name]
            if new.dim():
                new[: len(old)] = old
            else:
                new.copy_(old)
            if name in ITEM_ROWS:
                _start_rows(new, semantics, fresh)
            elif name == SEMANTIC_ROWS and len(new) > len(old):
                new[len(old) :] = old[1:].mean(0)
            elif name in ("item.codebook.weight", "item.codebook.ema_sums") and len(new) > len(old):
                new[len(old) :] = model.state_dict()["item.codebook.weight"].mean(0)
    return grown.eval()


def _start_rows(rows: Tensor, semantics: np.ndarray, fresh: np.ndarray) -> None:
    """Fill the rows [V' + 1, d] of fresh items with the means of their semantics' other rows."""
    of = torch.from_numpy(semantics).to(rows.device)
    trained = torch.from_numpy(~fresh & (semantics > 0)).to(rows.device)
    if not trained.any():
        return
    sums = rows.new_zeros(int(of.max()) + 1, rows.shape[1]).index_add_(0, of[trained], rows[trained])
    count = torch.bincount(of[trained], minlength=len(sums)).to(rows).unsqueeze(1)
    mean = torch.where(count > 0, sums / count.clamp(min=1), rows[trained].mean(0))
    new = torch.from_numpy(fresh & (semantics > 0)).to(rows.device)
    rows[new] = mean[of[new]]
