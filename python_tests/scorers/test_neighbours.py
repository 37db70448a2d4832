"""A model with its neighbours: the formula by hand, the choice of the weight, and SOLID around it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy import sparse
from torch import Tensor

from solid_ext import SOLID, Config, load_dataset
from solid_ext.data import Dataset, SyntheticTruth, make_split, synthetic_dataset
from solid_ext.evaluate import Validation
from solid_ext.scorers import ItemKNN, WithNeighbours, choose_neighbours, content_similarity

TINY = {"length": 5, "dim": 16, "heads": 2, "codebook_hidden": 16, "epochs": 2, "batch_size": 256, "eval_negatives": 20}


class ByItem:
    """A scorer whose logit of an item is a tenth of its number."""

    length = 4

    def encode(self, sequences: Tensor) -> Tensor:
        return sequences

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        return candidates.expand(len(state), -1).double() / 10


class Counted(ByItem):
    """ByItem, which counts what it is asked."""

    encoded = scored = 0

    def encode(self, sequences: Tensor) -> Tensor:
        self.encoded += 1
        return super().encode(sequences)

    def score(self, state: Tensor, candidates: Tensor) -> Tensor:
        self.scored += 1
        return super().score(state, candidates)


def each(validate: Callable[[WithNeighbours], float]) -> Callable[[list[WithNeighbours]], list[float]]:
    return lambda scorers: [validate(scorer) for scorer in scorers]


@pytest.fixture
def knn() -> ItemKNN:
    """Users 1 2 | 1 2 | 2 3 | 4: S[1, 2] = 2 / sqrt(2 * 3), S[2, 3] = 1 / sqrt(3 * 1), all others 0."""
    dataset = load_dataset(([1, 1, 2, 2, 3, 3, 4], [1, 2, 1, 2, 2, 3, 4], np.arange(7)))
    return ItemKNN(dataset, dataset.offsets[1:], 4)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_the_logits_are_the_formula_by_hand(knn: ItemKNN, decay: float) -> None:
    scorer = WithNeighbours(ByItem(), knn, 2.0, decay)
    state = scorer.encode(torch.tensor([[2, 0, 0, 0], [1, 3, 1, 0], [0, 0, 0, 0]]))
    one_two, two_three = 2 / math.sqrt(6), 1 / math.sqrt(3)
    # The second history has item 1 twice: its later place, of age 0, counts alone; item 3 is of age 1.
    both = (one_two + decay * two_three) / math.sqrt(1 + decay)
    similar = np.array([[one_two, 0, two_three, 0], [0, both, 0, 0], [0, 0, 0, 0]])
    expected = np.arange(1, 5) / 10 + 2 * similar
    np.testing.assert_allclose(scorer.score(state, torch.arange(1, 5)), expected, rtol=1e-6)
    own = torch.tensor([[3, 1], [2, 2], [4, 1]])
    np.testing.assert_allclose(
        scorer.score(state, own), np.take_along_axis(expected, own.numpy() - 1, axis=1), rtol=1e-6
    )


def test_weight_and_decay_are_those_of_the_best_validation(knn: ItemKNN) -> None:
    asked = []

    def validate(scorer: WithNeighbours) -> float:
        """Best at (8, 0.4); at the first decay, 0.8, a weight of 4 is."""
        asked.append((scorer.weight, scorer.decay))
        return -abs(math.log2(scorer.weight + 0.01) - 3 + 2 * (scorer.decay - 0.4)) - 3 * abs(scorer.decay - 0.4)

    chosen = choose_neighbours(ByItem(), knn, each(validate))
    assert (chosen.weight, chosen.decay) == (8, 0.4)
    assert len(asked) == len(set(asked)), "no setting is validated twice"
    assert choose_neighbours(ByItem(), knn, each(lambda scorer: 0.5)).weight == 0


@pytest.mark.parametrize(("validation", "batch"), [("full:ndcg@10", 256), ("sampled:user_auc", 1024)])
def test_the_model_is_asked_once_a_batch_for_all_settings_that_are_compared(validation: str, batch: int) -> None:
    dataset = synthetic_dataset(1100, 40, 6, predictability=0.8, seed=0)[0]
    config = Config().replace(eval_negatives=20, validation=validation)
    split = make_split("leave_one_out", dataset)
    validate = Validation(config.resolved(dataset.num_users, dataset.num_items), dataset, split)
    knn, model, asked = ItemKNN(dataset, split.train_end, 4), Counted(), []

    def told(scorers: list[WithNeighbours]) -> list[float]:
        before = model.encoded, model.scored
        found = validate.of_each(scorers)
        asked.append((len(scorers), model.encoded - before[0], model.scored - before[1]))
        assert found == [validate(WithNeighbours(ByItem(), s.knn, s.weight, s.decay)) for s in scorers]
        return found

    chosen = choose_neighbours(model, knn, told)
    batches = -(-len(split.valid) // batch)
    assert asked[0] == (7, batches, batches), "of the weights"
    assert {(encoded, scored) for settings, encoded, scored in asked if settings} == {(batches, batches)}
    assert chosen.model is model


def test_content_is_added_where_it_helps(knn: ItemKNN) -> None:
    content = sparse.csr_array((np.ones(2), ([1, 4], [4, 1])), shape=(5, 5))

    def fourth(scorer: WithNeighbours) -> float:
        """How far item 4, which nobody had with another, is above its logit of 0.4 for a history of item 1."""
        return float(scorer.score(scorer.encode(torch.tensor([[1, 0, 0, 0]])), torch.tensor([4]))) - 0.4

    chosen = choose_neighbours(ByItem(), knn, each(lambda scorer: scorer.weight + fourth(scorer)), content)
    assert fourth(chosen) == pytest.approx(32 * 0.8)
    assert choose_neighbours(ByItem(), knn, each(lambda s: s.weight - fourth(s)), content).knn is knn


def test_content_similarity_is_brute_force(rng: np.random.Generator) -> None:
    features = np.concatenate([np.zeros((1, 3)), rng.normal(size=(40, 3))]).astype(np.float32)
    features[7] = 0
    found = content_similarity(features, count=5).toarray()
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, 0)
    for item in range(41):
        best = np.argsort(-cosine[item])[:5]
        expected = np.zeros(41)
        expected[best] = np.maximum(cosine[item, best], 0) ** 3
        np.testing.assert_allclose(found[item], expected, rtol=1e-5, atol=1e-7)
    assert not found[[0, 7]].any()
    assert not found[:, [0, 7]].any()
    whole = content_similarity(features, count=100, power=1).toarray()
    np.testing.assert_allclose(whole, np.maximum(cosine, 0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="content_similarity: expected count >= 1, got 0"):
        content_similarity(features, count=0)
    with pytest.raises(ValueError, match="content_similarity: expected at most 65,536 items, got 65,537"):
        content_similarity(np.zeros((65_538, 1), np.float32))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_what_is_out_of_range_is_refused(knn: ItemKNN) -> None:
    with pytest.raises(ValueError, match="expected weight >= 0, got -1"):
        WithNeighbours(ByItem(), knn, -1.0)
    for decay in (0.0, 1.1):
        with pytest.raises(ValueError, match="expected 0 < decay <= 1, got"):
            WithNeighbours(ByItem(), knn, 1.0, decay)


@pytest.mark.slow
def test_solid_with_neighbours_is_saved_whole(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    dataset, _ = world
    plain = SOLID(**TINY, learning_rate=1e-4, neighbours=False).fit(dataset)
    solid = SOLID(**TINY, learning_rate=1e-4).fit(dataset)
    assert solid.neighbours is not None
    assert solid.neighbours.weight > 0, "two epochs of small steps know less than the neighbourhood does"
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, solid.neighbours.model.state_dict()[name]), "the network itself is the same"
    # They were chosen on the validation rows; on the test rows of 400 users they may lose .002 by the draw (seed 5).
    validate = Validation(solid.config.resolved(dataset.num_users, dataset.num_items), dataset, solid.training.split)
    assert validate(solid.neighbours) > validate(plain.model)
    measured = solid.evaluate()
    assert measured != plain.evaluate()
    solid.save(tmp_path / "model")
    loaded = SOLID.load(tmp_path / "model")
    assert loaded.evaluate(dataset) == measured
    history = dataset.item_ids.head(4).to_list()
    assert loaded.recommend([history], 5) == solid.recommend([history], 5)
    file = tmp_path / "model" / "neighbours.safetensors"
    file.write_bytes(b"no neighbours")
    with pytest.raises(ValueError, match=r"load: expected .* bytes in .*neighbours"):
        SOLID.load(tmp_path / "model")
    with pytest.raises(ValueError, match="load: expected neighbours in"):
        WithNeighbours.load(file, solid.model)


class OfFour(ByItem):
    num_items = 4


def test_neighbours_come_back_as_they_were_in_narrow_types(knn: ItemKNN, tmp_path: Path) -> None:
    made = WithNeighbours(OfFour(), knn, 2.0, 0.5)
    made.save(tmp_path / "n.safetensors")
    arrays = load_file(tmp_path / "n.safetensors")
    assert (arrays["indices"].dtype, arrays["indptr"].dtype) == (np.uint16, np.int32)
    assert oct((tmp_path / "n.safetensors").stat().st_mode & 0o777) == oct(0o666 & ~umask())
    loaded = WithNeighbours.load(tmp_path / "n.safetensors", OfFour())
    assert (loaded.weight, loaded.decay) == (2.0, 0.5)
    np.testing.assert_array_equal(loaded.knn.similarity.toarray(), knn.similarity.toarray())
    WithNeighbours(OfFour(), knn, 0.0).save(tmp_path / "none.safetensors")
    assert len(load_file(tmp_path / "none.safetensors")["data"]) == 0, "a weight of 0 needs no similarities"
    wide = ItemKNN.of(sparse.csr_array(([1.0], ([1], [2**16])), shape=(2**16 + 1, 2**16 + 1)), 4)
    WithNeighbours(OfFour(), wide, 1.0).save(tmp_path / "wide.safetensors")
    assert load_file(tmp_path / "wide.safetensors")["indices"].tolist() == [2**16]


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"indices": np.array([10**9, 1, 3, 2])}, "indices 1 .. 1000000000 of 4 items"),
        ({"indices": np.array([-(10**9), 1, 3, 2])}, "indices -1000000000 .. 3 of 4 items"),
        ({"indices": np.array([5, 1, 3, 2])}, "indices 1 .. 5 of 4 items"),
        ({"indices": np.array([2.0, 1, 3, 2])}, "indices float64"),
        ({"indices": np.array([2, 1])}, r"indices int64 \[2\] of 4 similarities"),
        ({"indptr": np.array([0, 0, 3, 1, 4, 4])}, "row ends that do not rise"),
        ({"indptr": np.array([0, 0, 1, 3, 4, 10**9])}, "row ends that do not rise"),
        ({"indptr": np.array([-5, 0, 1, 3, 4, 4])}, "row ends that do not rise"),
        ({"indptr": np.array([0, 4])}, r"row ends int64 \[2\] of 4 items"),
        ({"shape": np.array([3, 3])}, r"similarities \[3, 3\] for a model of 4 items"),
        ({"shape": np.array([10**12, 5])}, "similarities .* for a model of 4 items"),
        ({"shape": np.array([[5, 5]])}, "similarities .* for a model of 4 items"),
        ({"data": np.array([1.0, np.nan, 1, 1])}, "similarities that are no finite numbers"),
        ({"data": np.array([1.0, np.inf, 1, 1])}, "similarities that are no finite numbers"),
        ({"data": np.array([1.0, -1.0, 1, 1])}, "similarities that are no finite numbers"),
        ({"data": np.array([[1.0, 1, 1, 1]])}, "similarities that are no finite numbers"),
        ({"data": np.array([1, 1, 1, 1])}, "similarities that are no finite numbers"),
    ],
)
def test_similarities_that_point_elsewhere_are_refused_before_they_are_followed(
    knn: ItemKNN, changes: dict[str, np.ndarray], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "n.safetensors"
    WithNeighbours(OfFour(), knn, 2.0).save(file)
    arrays = load_file(file)
    assert WithNeighbours.load(file, OfFour()).weight == 2
    save_file({**arrays, **changes}, file, metadata={"neighbours": '{"weight": 2, "decay": 1}'})
    with pytest.raises(ValueError, match=f"load: expected neighbours in .*{sentence}"):
        WithNeighbours.load(file, OfFour())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ('{"weight": 1, "floor": 0.1, "decay": 1}', "'floor'"),
        ('{"weight": NaN, "decay": 1}', "expected weight >= 0, got nan"),
        ('{"weight": 1, "decay": 1e9}', "expected 0 < decay <= 1"),
        ('{"weight": 1, "decay": 1, "content": NaN}', "expected content >= 0, got nan"),
        ("[1, 2]", "settings"),
        pytest.param("[" * 100_000, "recursion", id="deep"),
    ],
)
def test_settings_that_are_none_are_refused(knn: ItemKNN, settings: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "n.safetensors"
    WithNeighbours(OfFour(), knn, 2.0).save(file)
    save_file(load_file(file), file, metadata={"neighbours": settings})
    with pytest.raises(ValueError, match=f"load: expected neighbours in .*{sentence}"):
        WithNeighbours.load(file, OfFour())
