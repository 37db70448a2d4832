"""Generators that are wider than the model that they make the layers of, and the bias that is their control."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from solid_ext import SOLID
from solid_ext.config import DEVICE, PAPER, Config
from solid_ext.models import DynamicRecommender, SemanticRecommender, start_from
from solid_ext.models.personal_bias import PersonalBias

ITEMS, SEMANTICS, WIDE = 30, 5, 24
SEMANTIC_OF = np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1])
SMALL = PAPER | {"length": 5, "dim": 8, "heads": 2, "codebook_hidden": 12}


def make(**fields: object) -> DynamicRecommender:
    torch.manual_seed(0)
    return DynamicRecommender(Config().replace(**SMALL | fields).model, ITEMS, SEMANTIC_OF)


@pytest.mark.parametrize("fields", [{}, {"low_rank": True, "dynamic_residual": True}])
def test_a_generator_of_the_models_own_width_is_the_default_bit_for_bit(fields: dict[str, object]) -> None:
    default, same = make(**fields).state_dict(), make(generator_dim=8, **fields).state_dict()
    assert default.keys() == same.keys()
    assert all(torch.equal(default[name], same[name]) for name in default)


def test_all_that_generates_is_wide_and_all_that_a_device_holds_is_narrow() -> None:
    shapes = {name: list(tensor.shape) for name, tensor in make(generator_dim=WIDE).state_dict().items()}
    assert shapes["item_embedding.weight"] == [ITEMS + 1, 8]
    assert shapes["backbone.blocks.0.query.weight"] == shapes["target.2.weight"] == [8, 8]
    assert shapes["item.embedding.table.weight"] == [ITEMS + 1, WIDE]
    assert shapes["item.codebook.weight"] == [SEMANTICS, WIDE]
    assert shapes["item.decoder.0.weight"] == [12, WIDE]
    assert shapes["item.encoder.gru.cell.weight_hh"] == [3 * WIDE, WIDE]
    assert shapes["semantic_embedding.position.weight"] == [5, WIDE]
    assert shapes["semantic_encoder.mlp.2.weight"] == [WIDE, WIDE]
    assert shapes["dynamic.layers.1.item_map"] == shapes["dynamic.layers.1.semantic_map"] == [9, WIDE, 8]


def test_a_wide_generator_starts_from_stage_1_with_its_codebook() -> None:
    model = make(generator_dim=WIDE)
    stage1 = SemanticRecommender(model.config, SEMANTIC_OF)
    start_from(model, stage1, "generator")
    trained, own = stage1.network.state_dict(), model.state_dict()
    for name in ("semantic_embedding.table.weight", "dynamic.layers.0.semantic_map"):
        assert torch.equal(own[name], trained[name])
    assert torch.equal(own["item.codebook.weight"], trained["semantic_embedding.table.weight"][1:])


def test_a_personal_bias_is_added_to_what_everybodys_layers_give() -> None:
    torch.manual_seed(0)
    layer = PersonalBias(8, 2, WIDE, 0.01).double()
    x, z_item, z_semantic = (torch.randn(3, size, dtype=torch.float64) for size in (8, WIDE, WIDE))
    branch = (z_item * 100 @ layer.item_map[0] + layer.item_offset).clamp(-0.01, 0.01)
    bias = z_semantic @ layer.semantic_map[0] + layer.semantic_offset + branch
    first, last = layer.layers[0], layer.layers[2]
    expected = last(torch.tanh(first(x))) + bias
    torch.testing.assert_close(layer(x, z_item * 100, z_semantic), expected)
    many = layer(x.unsqueeze(1).expand(-1, 4, -1), z_item * 100, z_semantic)
    torch.testing.assert_close(many, expected.unsqueeze(1).expand(-1, 4, -1))
    torch.testing.assert_close(layer(x, None, z_semantic), expected - branch)


def test_a_bias_that_nothing_generates_is_refused() -> None:
    with pytest.raises(ValueError, match="personal_bias: expected False without semantic_trunk and item_branch"):
        Config().replace(personal_bias=True, semantic_trunk=False, item_branch=False)
    with pytest.raises(ValueError, match="generator_dim: expected 0 or more, got -1"):
        Config().replace(generator_dim=-1)
    with pytest.raises(ValueError, match="generator_dim: expected at most 65,536, got 100,000"):
        Config().replace(generator_dim=100_000)


def test_a_device_model_is_fitted_saved_and_explained(world: tuple, tmp_path: object) -> None:
    dataset, _ = world
    small = {"epochs": 1, "patience": 1, "batch_size": 256, "eval_negatives": 20, "num_semantics": 6}
    solid = SOLID(Config().replace(**DEVICE | {"generator_dim": WIDE}), **small).fit(dataset)
    loaded = SOLID.load(solid.save(f"{tmp_path}/model"))
    history = dataset.item_ids.to_list()[:4]
    every = dataset.item_ids.to_list()
    np.testing.assert_allclose(loaded.score([history], every), solid.score([history], every), rtol=1e-5, atol=1e-6)
    part = solid.explain(history, every[9])
    assert sum(part.parts.values()) == pytest.approx(part.score, abs=1e-4)
    assert solid.user_vectors([history]).shape == (1, 8)
    assert solid.add_items({"item_id": [10_000]}).recommend([history])
