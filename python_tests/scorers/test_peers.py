"""The peers: known answers on data small enough to do by hand, and the rows measured elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from solid_ext import Config, load_dataset
from solid_ext.compare.peers import PEERS, PeerTask, peer_config
from solid_ext.data import Dataset, SyntheticTruth, gather_sequences, leave_one_out
from solid_ext.evaluate import evaluate_full, evaluate_sampled
from solid_ext.models import SASRecSoftmax
from solid_ext.scorers import ItemKNN, Markov, itemknn
from solid_ext.train import Silent, train_stage

EVERYTHING = torch.arange(1, 61)


@pytest.fixture
def tiny() -> Dataset:
    """Users 1 1 2 3 | 2 3 2 | 2 1, one item each held out: 1 1 2 | 2 3 | 2."""
    return load_dataset(([1, 1, 1, 1, 2, 2, 2, 3, 3], [1, 1, 2, 3, 2, 3, 2, 2, 1], np.arange(9)))


def test_markov_counts_steps_and_breaks_ties_by_popularity(tiny: Dataset) -> None:
    scorer = Markov(tiny, tiny.offsets[1:] - 1)
    state = scorer.encode(torch.tensor([[1], [3], [0]]))
    score = torch.sigmoid(scorer.score(state, torch.tensor([1, 2, 3])))
    popular = np.array([2.5, 3.5, 1.5]) / 7.5
    expected = [(np.array([1, 1, 0]) + popular) / 3, popular, popular]  # from 1: to 1 and to 2; from 3: never counted
    np.testing.assert_allclose(score, expected, rtol=1e-12)
    own = scorer.score(state, torch.tensor([[2, 2], [1, 3], [3, 1]]))
    assert torch.equal(
        own, scorer.score(state, torch.tensor([1, 2, 3])).gather(1, torch.tensor([[1, 1], [0, 2], [2, 0]]))
    )


def test_markov_finds_the_planted_successor(world: tuple[Dataset, SyntheticTruth]) -> None:
    """The world is a first-order chain: what follows the last item comes from the successor of its semantic."""
    dataset, truth = world
    split = leave_one_out(dataset)
    scorer = Markov(dataset, split.train_end)
    last = torch.from_numpy(gather_sequences(dataset, split.test, 1))
    best = 1 + scorer.score(scorer.encode(last), EVERYTHING).argmax(1).numpy()
    assert (truth.semantics[best] == truth.successor[truth.semantics[last[:, 0].numpy()]]).mean() > 0.99


@pytest.mark.parametrize("pairs", [2_000_000, 50])
def test_itemknn_is_the_cosine_of_scikit_learn(
    world: tuple[Dataset, SyntheticTruth], pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of the blocks, an item that a user or a sequence has twice counts once."""
    dataset, _ = world
    split = leave_one_out(dataset)
    monkeypatch.setattr(itemknn, "_PAIRS_PER_BLOCK", pairs)
    seen = np.zeros((dataset.num_users, dataset.num_items + 1))
    for user in range(dataset.num_users):
        seen[user, dataset.items[dataset.offsets[user] : split.train_end[user]]] = 1
    similarity = cosine_similarity(seen.T)
    np.fill_diagonal(similarity, 0)
    sequences = gather_sequences(dataset, split.test.take(np.arange(50)), 20)
    sequences[0] = 0
    history = np.array([np.isin(np.arange(61), row) for row in sequences])[:, 1:]
    scorer = ItemKNN(dataset, split.train_end, neighbours=0)
    state = scorer.encode(torch.from_numpy(sequences))
    found = scorer.score(state, EVERYTHING).numpy()
    np.testing.assert_allclose(found, history @ similarity[1:, 1:], rtol=1e-9)
    own = scorer.score(state, torch.tensor([[3, 60]]).expand(50, 2)).numpy()
    np.testing.assert_array_equal(own, found[:, [2, 59]])
    nearest = np.sort(ItemKNN(dataset, split.train_end, neighbours=7).similarity.toarray(), axis=0)
    np.testing.assert_allclose(nearest[-7:, 1:], np.sort(similarity, axis=0)[-7:, 1:], rtol=1e-9)
    assert not nearest[:-7].any()


def test_itemknn_shrinks_what_few_users_had(tiny: Dataset) -> None:
    scorer = ItemKNN(tiny, tiny.offsets[1:] - 1, shrink=1.0)
    score = scorer.score(scorer.encode(torch.tensor([[1, 1, 0]])), torch.tensor([1, 2, 3]))
    assert score.tolist() == [[0.0, 1 / (np.sqrt(3) + 1), 0.0]]


@pytest.mark.parametrize("peer", [Markov, ItemKNN])
def test_ends_outside_a_history_get_a_sentence(tiny: Dataset, peer: type) -> None:
    with pytest.raises(ValueError, match=rf"{peer.__name__}: expected train_end of user 1 in 4\.\.7, got 8"):
        peer(tiny, np.array([4, 8, 8]))


def test_sasrec_softmax_never_sees_padding_or_the_future() -> None:
    torch.manual_seed(0)
    model = SASRecSoftmax(30, 6, dim=16).eval()
    sequences = torch.tensor([[4, 7, 9, 0, 0, 0], [4, 7, 9, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        model.item_embedding.weight[0] = 100.0
        noisy = model.encode(sequences)
        model.item_embedding.weight[0] = 0.0
        clean = model.encode(sequences)
    assert torch.equal(noisy[:2], clean[:2])
    assert torch.isfinite(clean).all()
    state, items = clean[:2], torch.tensor([[1, 2], [2, 3]])
    torch.testing.assert_close(model.score(state, items), model.score(state, torch.arange(31)).gather(1, items))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sasrec_softmax_is_torchs_encoder(layers: int) -> None:
    """States and gradients are those of torch's own encoder layers over all positions, padding included."""
    torch.manual_seed(0)
    model = SASRecSoftmax(30, 6, dim=8, layers=layers, dropout=0.0).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    encoder = torch.nn.ModuleList(
        torch.nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True) for _ in range(layers)
    ).double()
    for block, layer in zip(model.blocks, encoder, strict=True):
        pairs = (
            (layer.self_attn.in_proj_weight, torch.cat([block.query.weight, block.key_value.weight])),
            (layer.self_attn.in_proj_bias, torch.cat([block.query.bias, block.key_value.bias])),
            *zip(layer.self_attn.out_proj.parameters(), block.out.parameters(), strict=True),
            *zip(layer.linear1.parameters(), block.feed[0].parameters(), strict=True),
            *zip(layer.linear2.parameters(), block.feed[2].parameters(), strict=True),
            *zip(layer.norm1.parameters(), block.norm_attention.parameters(), strict=True),
            *zip(layer.norm2.parameters(), block.norm_feed.parameters(), strict=True),
        )
        with torch.no_grad():
            for to, given in pairs:
                to.copy_(given)
    sequences = torch.tensor([[4, 7, 9, 0, 0, 0], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]])
    states = model.norm(model.item_embedding(sequences) + model.position.weight)
    for layer in encoder:
        states = layer(states, src_mask=torch.ones(6, 6, dtype=torch.bool).triu(1))
    expected = torch.stack([states[0, 2], states[1, 5], torch.zeros(8, dtype=torch.float64), states[3, 0]])
    found = model.encode(sequences)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    shared = [model.position.weight, *model.norm.parameters()]
    first, second = (torch.autograd.grad(value.sin().sum(), shared, retain_graph=True) for value in (found, expected))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-11)


def test_sasrec_softmax_learns(world: tuple[Dataset, SyntheticTruth], one_thread: None) -> None:
    dataset, _ = world
    split = leave_one_out(dataset)
    config = Config().replace(loss="full_softmax", learning_rate=0.01, batch_size=256, epochs=3).train
    torch.manual_seed(0)
    model = SASRecSoftmax(dataset.num_items, 5, dim=16, layers=1, dropout=0.0)
    train_stage(
        "sasrec", model, dataset, split, config, lambda scorer: evaluate_full(scorer, dataset, split.valid)["mrr"]
    )
    assert evaluate_full(model, dataset, split.test)["hr@10"] > 0.9  # a guess has 1 in 6


def test_sasrec_softmax_goes_on_where_it_stopped(
    world: tuple[Dataset, SyntheticTruth], tmp_path: Path, one_thread: None
) -> None:
    dataset, _ = world
    split = leave_one_out(dataset)
    metrics = []
    for epochs, folder in ((1, "a"), (2, "a"), (2, "b")):
        config = peer_config(Config().replace(epochs=epochs, length=5))
        scorer, (stage,) = PEERS["sasrec-softmax"](PeerTask(config, dataset, split, tmp_path / folder, Silent()))
        metrics.append(evaluate_full(scorer, dataset, split.test).values)
    assert len(stage.history) == 2
    assert metrics[1] == metrics[2]


def test_peers_keep_their_own_settings() -> None:
    kept = {"length": 7, "epochs": 3, "eval_negatives": 20, "seed": 5}
    config = peer_config(Config().replace(learning_rate=0.1, dim=8, heads=1, **kept))
    assert config == Config().replace(**kept)


def test_reproduces_the_rows_measured_elsewhere_on_amazon_scientific(shared_data: Path) -> None:
    """ItemKNN counts the training part, reads whole histories, each item once; three digits in full ranking."""
    dataset = load_dataset(shared_data / "amazon_scientific")
    split = leave_one_out(dataset)
    rows = {
        "itemknn": (0.674, 0.253, 0.374, 0.0650, 0.0976, 0.0822, 0.1111),
        "markov": (0.641, 0.213, 0.328, 0.0561, 0.0827, 0.0605, 0.0837),
    }
    for name, expected in rows.items():
        scorer, _ = PEERS[name](PeerTask(Config(), dataset, split, Path(), Silent()))
        sampled = evaluate_sampled(scorer, dataset, split.test)
        full = evaluate_full(scorer, dataset, split.test)
        unseen = evaluate_full(scorer, dataset, split.test, exclude_history=True)
        found = [sampled["user_auc"], sampled["ndcg@10"], sampled["hr@10"]]
        assert found == pytest.approx(expected[:3], abs=0.003)  # sampling noise
        found = [metrics[key] for metrics in (full, unseen) for key in ("ndcg@10", "hr@10")]
        assert found == pytest.approx(expected[3:], abs=1.3e-4)  # a user in 8442 is 1.2e-4 in HR
