"""Generators that read a longer history than the backbone whose layers they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load

from solid_ext import SOLID, Dataset, load_dataset
from solid_ext.compare.peers import peer_config
from solid_ext.config import PAPER, Config
from solid_ext.device import DeviceModel
from solid_ext.methods import method_config
from solid_ext.models import DynamicRecommender, SemanticRecommender
from solid_ext.nn.padding import most_recent

ITEMS, SEMANTICS, LONG = 30, 5, 12
SEMANTIC_OF = np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1])
SMALL = PAPER | {"length": 5, "dim": 8, "heads": 2, "codebook_hidden": 12}
GROUPS, USERS, EVENTS, SHORT = 4, 300, 12, 2  # of the planted world
ANSWER = {"length": SHORT, "generator_length": 6, "dim": 16, "heads": 2, "codebook_hidden": 16, "neighbours": False}
TRAINED = {"semantics": "category", "epochs": 6, "batch_size": 128, "learning_rate": 0.03, "dropout": 0.0}


def make(**fields: object) -> DynamicRecommender:
    torch.manual_seed(0)
    return DynamicRecommender(Config().replace(**SMALL | fields).model, ITEMS, SEMANTIC_OF).eval()


def sequences(width: int) -> torch.Tensor:
    """Right-padded ones of 0 .. width items."""
    drawn = torch.randint(1, ITEMS + 1, (width + 1, width), generator=torch.Generator().manual_seed(1))
    return drawn * (torch.arange(width) < torch.arange(width + 1).unsqueeze(1))


@pytest.fixture(scope="module")
def planted() -> Dataset:
    """Events are of one of 4 groups of items, that of the event three before: the last two tell nothing of the next."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, GROUPS, (USERS, SHORT + 1))[:, np.arange(EVENTS) % (SHORT + 1)]
    items = group * 10 + rng.integers(0, 10, group.shape)
    columns = {"user_id": np.repeat(np.arange(USERS), EVENTS), "item_id": items.ravel()}
    events = pl.DataFrame({**columns, "timestamp": np.tile(np.arange(EVENTS), USERS)})
    known = pl.DataFrame({"item_id": np.arange(10 * GROUPS), "categories": [f"g{v // 10}" for v in range(10 * GROUPS)]})
    return load_dataset(events, items=known)


def fitted(planted: Dataset, method: str) -> SOLID:
    config = Config().replace(**ANSWER | TRAINED, eval_negatives=20)
    return SOLID(method_config(config, method)).fit(planted)


@pytest.fixture(scope="module")
def solid(planted: Dataset) -> SOLID:
    return fitted(planted, "solid")


@pytest.mark.parametrize("fields", [{}, {"low_rank": True, "dynamic_residual": True}])
@pytest.mark.parametrize("longest", [5, 3])
def test_no_more_than_the_backbone_reads_is_the_default_bit_for_bit(fields: dict[str, object], longest: int) -> None:
    default, same = make(**fields), make(generator_length=longest, **fields)
    assert default.length == same.length == 5
    tensors, own = default.state_dict(), same.state_dict()
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in tensors)
    assert torch.equal(default.encode(sequences(5)), same.encode(sequences(5)))


def test_the_most_recent_items_are_those_of_a_loop() -> None:
    for width, length in ((12, 5), (12, 1), (5, 5), (3, 5)):
        found = most_recent(sequences(width), length)
        assert found.shape == (width + 1, min(width, length))
        for row, own in zip(sequences(width).tolist(), found.tolist(), strict=True):
            known = [item for item in row if item][-length:]
            assert own == known + [0] * (min(width, length) - len(known))


def test_ages_are_told_apart_as_far_back_as_each_part_reads() -> None:
    model = make(generator_length=LONG)
    stage1 = SemanticRecommender(model.config, SEMANTIC_OF)
    shared = make(generator_length=LONG, shared_items=True, semantic_trunk=False)
    assert model.length == stage1.length == shared.length == LONG
    for network in (model, stage1.network):
        assert len(network.backbone.position.weight) == 5
        assert len(network.semantic_embedding.position.weight) == LONG
    assert len(model.item.embedding.position.weight) == len(shared.item.embedding.position.weight) == LONG
    assert make(generator_length=LONG, semantic_trunk=False, item_branch=False).length == 5


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "bert4rec", "din"])
def test_the_backbone_reads_the_last_items_alone_and_the_encoders_all(backbone: str) -> None:
    model = make(generator_length=LONG, backbone=backbone, use_codebook=False)  # an untrained one has one entry for all
    whole = sequences(LONG)[-1:]
    older = whole.clone()
    older[0, LONG - 6] = whole[0, LONG - 6] % ITEMS + 1  # the youngest that the backbone does not read
    every, given = torch.arange(1, ITEMS + 1), model._conditions(whole)
    for conditions in (given, model._conditions(older)):
        layers = model._layers(conditions)
        expected = model.score(model.user_state(whole[:, -5:], layers), every)
        for read in (whole, older):
            torch.testing.assert_close(model.score(model.user_state(read, layers), every), expected)
    for own, other in zip(given[:2], model._conditions(older)[:2], strict=True):
        assert not torch.allclose(own, other)
    assert not torch.allclose(model.score(model.encode(whole), every), model.score(model.encode(older), every))


def test_lengths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="generator_length: expected 0 or more, got -1"):
        Config().replace(generator_length=-1)
    with pytest.raises(ValueError, match="generator_length: expected at most 65,536, got 100,000"):
        Config().replace(generator_length=100_000)
    with pytest.raises(ValueError, match=r"encode: expected sequences \[B, L\] with L in 1 \.\. 12, got \[14, 13\]"):
        make(generator_length=LONG).encode(sequences(13))


def test_the_neighbours_alone_read_what_those_of_solid_do() -> None:
    config = peer_config(Config().replace(length=5, generator_length=LONG))
    assert (config.model.length, config.model.encoder_length) == (5, LONG)


def test_only_who_reads_far_back_finds_what_is_planted_there(planted: Dataset, solid: SOLID) -> None:
    """At chance an item of the right group is among ten of forty in a quarter of all rows."""
    assert solid.evaluate()["full"]["hr@10"] > 0.7
    assert fitted(planted, "static-semantic-start").evaluate()["full"]["hr@10"] < 0.35


def test_what_is_served_is_what_was_evaluated_and_saved(planted: Dataset, solid: SOLID, tmp_path: Path) -> None:
    raw = planted.item_ids.gather(planted.items - 1).to_numpy().reshape(USERS, EVENTS)
    histories, every = raw[:, :-1].tolist(), planted.item_ids.to_list()
    scores = solid.score(histories, every)
    own = scores[np.arange(USERS), [every.index(target) for target in raw[:, -1]]]
    rank = (scores >= own[:, None]).sum(1)
    assert (rank <= 10).mean() == pytest.approx(solid.evaluate()["full"]["hr@10"])
    loaded = SOLID.load(solid.save(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.score(histories, every), scores)
    session = solid.session(histories[0][:-3])
    for item in histories[0][-3:]:
        session.observe(item)
    assert session.recommend(5) == solid.recommend(histories[:1], 5)[0]
    assert session.history == histories[0][-6:]
    explained = solid.explain(histories[0], every[9])
    assert sum(explained.parts.values()) == pytest.approx(explained.score, abs=1e-4)
    assert len(solid.user_vectors(histories[:2])) == 2


def test_a_blob_is_made_of_the_long_history_and_the_device_holds_the_short_one(
    planted: Dataset, solid: SOLID, tmp_path: Path
) -> None:
    solid.export_device(tmp_path / "device")
    device = DeviceModel(tmp_path / "device")
    group = [[10 * which + place for place in range(10)] for which in range(GROUPS)]
    recent = [group[2][0], group[3][0]]
    for older in (0, 1):
        history = [group[older][4], *recent, group[older][5], *recent]
        blob = solid.personalize(history)
        assert len(load(blob)["window"]) == SHORT
        served = solid.recommend([history], 10)[0]
        found = device.load(blob).recommend(10)
        assert [entry.item for entry in found] == [entry.item for entry in served]
        assert sum(entry.item in group[older] for entry in found) >= 6  # of the group that the device does not see
