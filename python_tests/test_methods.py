"""Every backbone with every method: trains, agrees between back ends, keeps candidates and padding apart."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from solid_ext import SOLID, Config, Dataset
from solid_ext.config import PAPER
from solid_ext.data import SyntheticTruth
from solid_ext.methods import METHODS, method_config
from solid_ext.models import DynamicRecommender
from solid_ext.models.backbones import BACKBONES
from solid_ext.models.state import CandidateState
from solid_ext.models.symbols import SymbolEmbedding
from solid_ext.nn import LowRankMLP
from solid_ext.scorers import FineTuned
from solid_ext.scorers.finetune import Pairs, fine_tuned, tuned_layers
from solid_ext.train.losses import binary_cross_entropy

ITEMS, SEMANTICS, LENGTH = 30, 6, 6
TINY = {"dim": 8, "heads": 2, "length": LENGTH, "codebook_hidden": 12, "rank": 3}
SMALL = Config().replace(**PAPER | TINY, epochs=1, batch_size=64, eval_negatives=20)
SEQUENCES = torch.tensor([[3, 1, 9, 0, 0, 0], [7, 8, 2, 5, 30, 4], [0] * 6, [4, 0, 0, 0, 0, 0], [11, 12, 0, 0, 0, 0]])
CANDIDATES = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [9, 9, 30], [2, 1, 17]])


def make(method: str, backbone: str, backend: str = "native", **fields: object) -> DynamicRecommender:
    torch.manual_seed(0)
    config = method_config(SMALL.replace(backbone=backbone, backend=backend, **fields), method).model
    semantics = np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1])
    return DynamicRecommender(config, ITEMS, semantics).double()


def losses(model: DynamicRecommender, steps: int = 3) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = []
    for _ in range(steps):
        state = model(SEQUENCES)
        loss = binary_cross_entropy(model.score(state.vector, CANDIDATES)) + 0.1 * state.auxiliary_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize(("backbone", "method"), list(itertools.product(BACKBONES, METHODS)))
def test_every_combination_learns_alike_on_both_back_ends(backbone: str, method: str) -> None:
    native, reference = (losses(make(method, backbone, backend)) for backend in ("native", "reference"))
    assert native[-1] < native[0]
    np.testing.assert_allclose(native, reference, rtol=1e-9)


@pytest.mark.parametrize("method", ["duet", "apg"])
def test_duet_and_apg_generate_from_the_backbones_own_item_table(method: str) -> None:
    shared, own = make(method, "sasrec"), make(method, "sasrec", backend="reference")
    assert [name for name, tensor in shared.named_parameters() if len(tensor) == ITEMS + 1] == ["item_embedding.weight"]
    torch.manual_seed(1)
    with torch.no_grad():
        shared.item_embedding.weight[1:] = torch.randn(ITEMS, 8)
    own.load_state_dict(shared.state_dict())
    table = SymbolEmbedding(ITEMS, LENGTH, 8).double()  # one of its own that holds the same rows
    table.load_state_dict({"table.weight": shared.item_embedding.weight, **shared.item.embedding.state_dict()})
    torch.testing.assert_close(shared.item(SEQUENCES, shared.item_embedding), own.item(SEQUENCES, own.item_embedding))
    found = shared.item.metacode(SEQUENCES, shared.item_embedding).sequence
    torch.testing.assert_close(found, table(SEQUENCES))
    gradient = torch.autograd.grad(found.square().sum(), shared.item_embedding.weight)[0]
    assert gradient[SEQUENCES.unique()[1:]].abs().sum(1).gt(0).all()
    assert gradient[0].eq(0).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_and_other_candidates_change_no_logit(backbone: str) -> None:
    model = make("solid", backbone).eval()
    with torch.no_grad():
        logits = model.score(model.encode(SEQUENCES), CANDIDATES)
        longer = torch.cat([SEQUENCES[:, :3], torch.zeros(5, 3, dtype=torch.int64)], dim=1)
        short = model.score(model.encode(longer[:1, :3]), CANDIDATES[:1])
        alone = torch.cat([model.score(model.encode(SEQUENCES), CANDIDATES[:, t : t + 1]) for t in range(3)], dim=1)
        shared = model.score(model.encode(SEQUENCES), torch.arange(1, ITEMS + 1))
    torch.testing.assert_close(alone, logits)
    torch.testing.assert_close(short, logits[:1])
    torch.testing.assert_close(shared.gather(1, CANDIDATES - 1), logits)


def test_a_candidate_state_is_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("solid", "din").eval()
    with torch.no_grad():
        state = model.encode(SEQUENCES)
        assert isinstance(state, CandidateState)
        whole = model.score(state, torch.arange(1, ITEMS + 1))
        monkeypatch.setattr("solid_ext.models.recommender.PAIRS", 4 * SEQUENCES.numel())
        torch.testing.assert_close(model.score(state, torch.arange(1, ITEMS + 1)), whole)
        assert model.score(state, torch.zeros(0, dtype=torch.int64)).shape == (5, 0)


def test_din_is_its_formula() -> None:
    torch.manual_seed(0)
    din = BACKBONES["din"](SMALL.model).double()
    history, candidates = torch.randn(2, 4, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    found = din(history, mask, candidates)
    for b, t in itertools.product(range(2), range(3)):
        interest = torch.zeros(8, dtype=torch.float64)
        for position in range(int(mask[b].sum())):
            q, k = candidates[b, t], history[b, position]
            hidden = din.activation(din.query(q) + din.key(k) + din.product(q * k))
            interest = interest + din.weight(hidden) * k
        torch.testing.assert_close(found[b, t], din.out(torch.cat([interest, candidates[b, t]])))


def test_bert4rec_sees_positions_and_every_item() -> None:
    model = make("static", "bert4rec").eval()
    one = model.encode(torch.tensor([[1, 2, 3, 0, 0, 0]]))
    for other in ([[2, 1, 3, 0, 0, 0]], [[1, 2, 4, 0, 0, 0]], [[9, 2, 3, 0, 0, 0]]):
        assert not torch.allclose(one, model.encode(torch.tensor(other)))
    assert model.backbone(torch.randn(1, 3, 8).double(), torch.zeros(1, 3, dtype=torch.bool)).eq(0).all()


def test_low_rank_layers_are_explicit_factors_around_a_core() -> None:
    torch.manual_seed(0)
    layers = LowRankMLP((5, 6, 4), 7, 3, 0.05).double()
    x, z_item, z_semantic = (torch.randn(2, n, dtype=torch.float64) for n in (5, 7, 7))
    expected = x
    for at, (enter, core, leave) in enumerate(zip(layers.enter, layers.core, layers.leave, strict=True)):
        entered = enter(torch.tanh(expected) if at else expected)
        item = torch.einsum("bk,iko->bio", z_item, core.item_map) + core.item_offset
        weights = torch.einsum("bk,iko->bio", z_semantic, core.semantic_map) + core.semantic_offset
        weights = weights + item.clamp(-0.05, 0.05)
        expected = leave(torch.einsum("bi,bio->bo", entered, weights[:, :-1]) + weights[:, -1])
    torch.testing.assert_close(layers(x, z_item, z_semantic), expected)
    with pytest.raises(ValueError, match="LowRankMLP: expected rank >= 1, got 0"):
        LowRankMLP((5, 4), 7, 0, 0.05)


def _layers_and_pairs() -> tuple[nn.Sequential, Pairs]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    valid = torch.tensor([[True, True, False], [False] * 3, [True] * 3])
    labels = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    return layers, Pairs(torch.randn(3, 3, 4).double(), torch.randn(3, 3, 4).double(), labels, valid)


def test_finetuning_without_steps_changes_nothing() -> None:
    layers, pairs = _layers_and_pairs()
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(tuned_layers(layers, pairs, steps=0, rate=0.1)(x), layers(x))


def test_finetuning_is_each_users_own_gradient_descent() -> None:
    layers, pairs = _layers_and_pairs()
    states, targets, labels, valid = pairs
    x = torch.randn(3, 4, dtype=torch.float64)
    with torch.inference_mode():
        found = tuned_layers(layers, pairs, steps=2, rate=0.3)(x)
    for b in range(3):
        own = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
        own.load_state_dict(layers.state_dict())
        optimizer = torch.optim.SGD(own.parameters(), lr=0.3)
        for _ in range(2 if valid[b].any() else 0):
            optimizer.zero_grad()
            logits = (own(states[b][valid[b]]) * targets[b][valid[b]]).sum(1)
            F.binary_cross_entropy_with_logits(logits, labels[valid[b]]).backward()
            optimizer.step()
        torch.testing.assert_close(found[b].clone(), own(x[b]).detach())


@pytest.mark.parametrize("backbone", ["sasrec", "din"])
def test_a_finetuned_user_does_not_depend_on_his_batch(backbone: str) -> None:
    model = fine_tuned(make("finetune", backbone).eval())
    assert isinstance(model, FineTuned)
    with torch.inference_mode():
        together = model.score(model.encode(SEQUENCES), CANDIDATES)
        for b in range(len(SEQUENCES)):
            one = model.score(model.encode(SEQUENCES[b : b + 1]), CANDIDATES[b : b + 1])
            torch.testing.assert_close(one[0], together[b])
        plain = make("static", backbone).eval()
        assert not torch.allclose(plain.score(plain.encode(SEQUENCES), CANDIDATES)[1], together[1])


@pytest.mark.parametrize(("method", "backbone"), [("finetune", "din"), ("apg", "bert4rec"), ("solid-apg", "sasrec")])
def test_a_method_runs_from_fit_to_recommend(
    method: str, backbone: str, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    solid = SOLID(method_config(SMALL.replace(backbone=backbone), method)).fit(world[0])
    values = solid.evaluate()
    assert 0 <= values["full"]["ndcg@10"] <= 1
    folder = solid.save(tmp_path / "model")
    history = [list(world[0].catalogue.raw_items(np.array([1, 2, 3])))]
    assert SOLID.load(folder).recommend(history, 3) == solid.recommend(history, 3)


def test_neighbours_are_added_to_the_fine_tuned_model(world: tuple[Dataset, SyntheticTruth], tmp_path: Path) -> None:
    solid = SOLID(method_config(SMALL.replace(neighbours=True), "finetune")).fit(world[0])
    loaded = SOLID.load(solid.save(tmp_path / "model"))
    for one in (solid, loaded):
        assert one.neighbours is not None
        assert isinstance(one.neighbours.model, FineTuned)
        assert one.neighbours.model.model is one.model
        assert (one.neighbours.model.steps, one.neighbours.model.rate) == (3, 0.1)
    assert loaded.evaluate(world[0]) == solid.evaluate()


def test_what_cannot_be_combined_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"method: expected one of static, .* got 'solidd'"):
        method_config(Config(), "solidd")
    with pytest.raises(ValueError, match="backbone: expected one of din, gru4rec, sasrec, bert4rec, got 'sasrecc'"):
        make("solid", "sasrecc")
    with pytest.raises(ValueError, match="loss: expected bce or a sampled softmax with backbone din"):
        Config().replace(backbone="din", loss="full_softmax")
    with pytest.raises(ValueError, match="finetune_steps: expected 0 with dynamic layers"):
        Config().replace(finetune_steps=1)
