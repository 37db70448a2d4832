"""Losses against numbers worked out by hand and torch's own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from solid_ext.config import ModelConfig
from solid_ext.models import DynamicRecommender, SASRecSoftmax, SemanticRecommender
from solid_ext.ops._arguments import Backend
from solid_ext.train.losses import binary_cross_entropy, full_softmax, sampled_softmax

BACKENDS: tuple[Backend, ...] = ("native", "reference")


def test_binary_cross_entropy_of_one_positive_and_two_negatives() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.float64)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)) / 3
    torch.testing.assert_close(binary_cross_entropy(logits).item(), expected)


def test_sampled_softmax_is_log_of_the_number_of_candidates_at_a_tie() -> None:
    torch.testing.assert_close(sampled_softmax(torch.zeros(3, 5)).item(), math.log(5))


def test_full_softmax_by_hand() -> None:
    state = torch.tensor([[0.0, 0.0, math.log(2)]], dtype=torch.float64)
    for backend in BACKENDS:
        for item, items in ((2, 2), (0, 4)):
            loss = full_softmax(state, torch.eye(3).double(), torch.tensor([item]), backend=backend)
            torch.testing.assert_close(loss.item(), math.log(items))


def test_full_softmax_of_rows_that_stand_for_several_items_by_hand() -> None:
    """Logits 0, 0 and log 2 of 3, 0 and 2 items: 3 + 0 + 4 in the denominator."""
    state = torch.tensor([[0.0, 0.0, math.log(2)]], dtype=torch.float64)
    for backend in BACKENDS:
        loss = full_softmax(state, torch.eye(3).double(), torch.tensor([2]), torch.tensor([3, 0, 2]), backend)
        torch.testing.assert_close(loss.item(), math.log(7 / 2))


def test_full_softmax_over_semantics_is_that_over_their_items() -> None:
    torch.manual_seed(0)
    semantics = np.array([0, 2, 1, 2, 4, 4, 4, 2, 1])  # of items 1 .. 8; none of semantic 3
    model = SemanticRecommender(ModelConfig(dim=8), semantics).double().eval()
    items = torch.tensor([1, 8, 5])
    state = model.encode(torch.tensor([[1, 3, 0], [8, 0, 0], [4, 5, 6]]))
    written_out = model.score(state, torch.arange(1, 9))
    losses = F.cross_entropy(written_out, items - 1), full_softmax(*model.over_catalogue(state, items))
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True) for loss in losses
    ]
    for expected, found in zip(*gradients, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)


def catalogue_models(backend: Backend) -> dict[str, Any]:
    """One of each kind of model that a softmax over the catalogue trains, the same for every back end."""
    torch.manual_seed(0)
    config = ModelConfig(dim=8, length=4, backend=backend)
    semantics = np.concatenate([[0], np.arange(150) % 7 + 1])
    tower = DynamicRecommender(replace(config, target="mlp"), 150, semantics)
    known = DynamicRecommender(config, 150, semantics, torch.randn(151, 5).index_fill(0, torch.tensor([0]), 0))
    assert known.item_embedding.feature_map is not None
    torch.nn.init.normal_(known.item_embedding.feature_map)
    of_semantics = SemanticRecommender(config, semantics)
    return {
        "tower": tower,
        "features": known,
        "semantics": of_semantics,
        "sasrec-softmax": SASRecSoftmax(150, 4, dim=8, backend=backend),
    }


@pytest.mark.parametrize("name", ["tower", "features", "semantics", "sasrec-softmax"])
def test_back_ends_agree_on_the_softmax_of_every_model_and_so_does_its_score(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    sequences = torch.randint(1, 151, (20, 4), generator=generator)
    items = torch.randint(1, 151, (20,), generator=generator)
    found = []
    for backend in BACKENDS:
        model = catalogue_models(backend)[name].double().eval()
        state = model(sequences).vector
        given = model.over_catalogue(state, items)
        assert given.backend == backend
        loss = full_softmax(*given)
        torch.testing.assert_close(loss, F.cross_entropy(model.score(state, torch.arange(1, 151)), items - 1))
        parameters = list(model.parameters())
        found.append([loss, *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_log_q_over_every_other_item_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    catalogue = torch.randn(4, 9, dtype=torch.float64)
    positives = torch.zeros(4, dtype=torch.int64)  # column 0; the other 8 items are the negatives
    torch.testing.assert_close(sampled_softmax(catalogue, items=9), F.cross_entropy(catalogue, positives))


def test_log_q_denominator_is_the_catalogues_on_average() -> None:
    torch.manual_seed(0)
    items, negatives = 200, 5
    scores = torch.randn(items, dtype=torch.float64)
    drawn = torch.randint(1, items, (2000, negatives))
    logits = torch.cat([scores[0].expand(len(drawn), 1), scores[drawn]], dim=1)
    # exp(loss) = denominator / exp(positive), a row at a time
    rows = torch.stack([sampled_softmax(row[None], items=items) for row in logits])
    expected = scores.exp().sum() / scores[0].exp()
    assert abs(rows.exp().mean() / expected - 1) < 0.1
