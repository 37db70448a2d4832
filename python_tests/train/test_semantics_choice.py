"""The source of semantics where the configuration leaves it open: the probe, and what becomes of its choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from solid_ext import SOLID, Config, Dataset
from solid_ext.cli.train import show_semantics
from solid_ext.data import Semantics, SyntheticTruth, leave_one_out, load_dataset
from solid_ext.scorers.semantic_chain import SemanticChain
from solid_ext.train.semantics import chosen_semantics

QUICK = Config().replace(epochs=1, dim=8, length=5, batch_size=512, eval_negatives=20, num_semantics=6)


@pytest.fixture(scope="module")
def groups() -> Dataset:
    """Users who stay in one of six groups of ten items: ids tell the next item's group, and each title is another."""
    rng = np.random.default_rng(1)
    items = np.concatenate([rng.permutation(10) + 10 * (user % 6) for user in range(240)])
    titles = rng.permutation([f"word{item % 7}" for item in range(60)]).tolist()
    table = {"item_id": np.arange(60), "title": titles, "categories": titles}
    return load_dataset((np.repeat(np.arange(240), 10), items, np.arange(items.size)), items=table)


def test_a_chain_is_its_formula() -> None:
    dataset = load_dataset(([1, 1, 1, 1, 2, 2, 2, 2], [1, 2, 3, 1, 3, 2, 1, 2]))
    split = leave_one_out(dataset)  # one training row a user: item 2 after 1, and 2 after 3
    chain = SemanticChain(dataset, split.train, Semantics(np.array([0, 1, 2, 1]), 2, "id"), 3)
    pairs = np.zeros((3, 3))
    pairs[1, 2] = 2
    frequency = (pairs.sum(0) + 1) / (2 + 3)
    chance = (pairs + 20 * frequency) / (pairs.sum(1, keepdims=True) + 20)
    weights = np.array([0.8, 1.0]) / 1.8
    state = chain.encode(torch.tensor([[1, 2, 0], [0, 0, 0]]))
    found = chain.score(state, torch.tensor([1, 2, 3])).exp().numpy()
    mixed = weights @ chance[[1, 2]]
    np.testing.assert_allclose(found, [[mixed[1] / 2, mixed[2], mixed[1] / 2], [0, 0, 0]], atol=1e-300)
    each = chain.score(state, torch.tensor([[2, 1], [1, 2]])).exp().numpy()
    np.testing.assert_allclose(each, [found[0, [1, 0]], found[1, [0, 1]]], atol=1e-300)


def test_text_that_tells_the_next_item_is_chosen_and_text_that_tells_nothing_is_not(
    world: tuple[Dataset, SyntheticTruth], groups: Dataset
) -> None:
    for data, sources in ((world[0], {"text", "id+text"}), (groups, {"id", "id+text"})):
        config = QUICK.resolved(data.num_users, data.num_items)
        found = chosen_semantics(config, data, leave_one_out(data))
        probed = found.report["probed"]
        assert list(probed) == ["text", "id+text", "id"]
        assert found.source == max(probed, key=probed.get)
        assert found.source in sources
        if data is world[0]:
            assert probed["text"] > 1.5 * probed["id"]
    bare = replace(groups, item_table=groups.item_table.drop("categories", "title"))
    found = chosen_semantics(config, bare, leave_one_out(bare))
    assert found.source == "id"
    assert "probed" not in found.report
    asked = chosen_semantics(config.replace(semantics="text"), groups, leave_one_out(groups))
    assert asked.source == "text"
    assert "probed" not in asked.report


def test_what_was_chosen_is_what_would_be_asked_for_and_is_kept_with_the_model(
    groups: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = SOLID(QUICK).fit(groups)
    source = auto.training.semantics.source
    asked = SOLID(QUICK, semantics=source).fit(groups)
    assert asked.evaluate() == auto.evaluate()
    loaded = SOLID.load(auto.save(tmp_path / "model"))
    assert loaded.trained.semantics == auto.trained.semantics == source
    assert source != "text"
    assert loaded.config.semantics.semantics == "auto"
    # By the rule of thumb these semantics would be of texts, and other features than the model's.
    more = loaded.add_items({"item_id": [9999], "title": ["3"], "categories": ["3"]})
    assert more.trained.semantics == source
    show_semantics({"source": source, "count": 7, **auto.training.semantics.report})
    assert f"{source} chosen on validation rows by a probe without training: text 0." in capsys.readouterr().out
