"""Encoders, backbones and the network: padding, shapes, registered parameters, ablations, both back ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solid_ext.config import PAPER, Config, ModelConfig
from solid_ext.data import load_dataset
from solid_ext.models import DynamicRecommender, SASRecSoftmax
from solid_ext.models.backbones import make_backbone
from solid_ext.models.encoder import ConditionEncoder
from solid_ext.models.symbols import SymbolEmbedding
from solid_ext.nn.padding import ages, last_valid, valid_mask
from solid_ext.scorers import FineTuned, ItemKNN, Markov, Popularity, WithNeighbours

ITEMS, SEMANTICS = 40, 5
SEQUENCES = torch.tensor([[3, 9, 4, 0, 0], [7, 0, 0, 0, 0], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
VARIANTS = {
    "solid": {},
    "trunk": {"item_branch": False},
    "item": {"semantic_trunk": False},
    "no codebook": {"use_codebook": False},
    "static": {"semantic_trunk": False, "item_branch": False},
    "wide generator": {"generator_dim": 24, "low_rank": False},
    "long generator": {"length": 3, "generator_length": 5},
    "personal bias": {"generator_dim": 24, "personal_bias": True},
    "residual": {"item_features": True, "target": "item", "dynamic_residual": True, "low_rank": True, "rank": 3},
}


def make_model(**fields: object) -> DynamicRecommender:
    torch.manual_seed(0)
    semantics = np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1])
    config = Config().replace(**PAPER | {"length": 5, "dim": 8, "heads": 2, "codebook_hidden": 12} | fields).model
    model = DynamicRecommender(config, ITEMS, semantics, item_features())
    if model.gate is not None:
        nn.init.constant_(model.gate, 0.5)  # from 0 on, nothing behind it gets a gradient in the first step
    return model


def item_features() -> Tensor:
    features = torch.randn(ITEMS + 1, 6, generator=torch.Generator().manual_seed(1))
    features[0] = 0
    return features


def padded(sequences: Tensor, extra: int) -> Tensor:
    return torch.cat([sequences, torch.zeros(len(sequences), extra, dtype=torch.int64)], dim=1)


def test_ages_count_from_the_end() -> None:
    mask = valid_mask(SEQUENCES)
    assert ages(mask).tolist() == [[2, 1, 0, 0, 0], [0] * 5, [4, 3, 2, 1, 0], [0] * 5]


def test_last_valid_picks_the_last_item_and_zero_for_nothing() -> None:
    states = torch.arange(20.0).view(4, 5, 1) + 1
    assert last_valid(states, valid_mask(SEQUENCES)).squeeze(1).tolist() == [3.0, 6.0, 15.0, 0.0]


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_padding_never_changes_a_state(backbone: str, blocks: int) -> None:
    torch.manual_seed(0)
    config = Config().replace(backbone=backbone, dim=8, heads=2, blocks=blocks, length=9).model
    net = make_backbone(config).eval()
    embedded = torch.randn(4, 9, 8)
    mask = valid_mask(padded(SEQUENCES, 4))
    expected = net(embedded[:, :5], mask[:, :5])
    noise = torch.where(mask.unsqueeze(2), embedded, torch.randn(4, 9, 8) * 100)
    torch.testing.assert_close(net(noise, mask), expected)
    assert torch.isfinite(expected).all()
    assert expected[3].eq(0).all()


def test_sasrec_is_causal_between_its_blocks_and_sees_every_valid_position() -> None:
    torch.manual_seed(0)
    net = make_backbone(Config().replace(dim=8, heads=2, blocks=2, length=5).model).eval()
    mask = valid_mask(SEQUENCES)
    embedded = torch.randn(4, 5, 8, requires_grad=True)
    net(embedded, mask)[2].square().sum().backward()
    assert (embedded.grad[2].abs().sum(1) > 0).all()
    assert embedded.grad[:2].eq(0).all()


def test_encoder_reads_only_valid_positions() -> None:
    torch.manual_seed(0)
    embed, encode = SymbolEmbedding(ITEMS, 9, 8), ConditionEncoder(8, 2)
    short = encode(embed(SEQUENCES), valid_mask(SEQUENCES))
    longer = padded(SEQUENCES, 4)
    torch.testing.assert_close(encode(embed(longer), valid_mask(longer)), short)
    assert embed(SEQUENCES)[~valid_mask(SEQUENCES)].eq(0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_registered_trained_and_finite(variant: str) -> None:
    model = make_model(**VARIANTS[variant])
    state = model(SEQUENCES)
    logits = model.score(state.vector, torch.randint(1, ITEMS + 1, (4, 6)))
    (logits.square().sum() + state.auxiliary_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    tensors = {id(value) for value in model.state_dict(keep_vars=True).values()}
    assert {id(parameter) for parameter in model.parameters()} <= tensors


@pytest.mark.parametrize("variant", VARIANTS)
def test_back_ends_agree_and_share_their_checkpoint(variant: str) -> None:
    native = make_model(backend="native", **VARIANTS[variant])
    reference = make_model(backend="reference", **VARIANTS[variant])
    reference.load_state_dict(native.state_dict())
    for model in (native, reference):
        model.train()
        state = model(SEQUENCES)
        (model.score(state.vector, torch.arange(1, 11)).square().sum() + state.auxiliary_loss).backward()
    for (name, one), (_, other) in zip(native.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_candidates_of_a_sequence_and_shared_ones_score_alike() -> None:
    model = make_model().eval()
    state = model.encode(SEQUENCES)
    shared = torch.arange(1, ITEMS + 1)
    torch.testing.assert_close(model.score(state, shared.expand(4, -1)), model.score(state, shared))


def test_a_user_state_depends_on_its_own_sequence_alone() -> None:
    model = make_model().eval()
    whole = model.encode(SEQUENCES)
    for row in range(len(SEQUENCES)):
        torch.testing.assert_close(model.encode(SEQUENCES[row : row + 1])[0], whole[row])
    assert model.encode(SEQUENCES[:0]).shape == (0, 8)


def test_an_item_is_its_embedding_and_a_linear_map_of_its_features() -> None:
    model = make_model(item_features=True, target="item")
    table = model.item_embedding
    plain = table.weight.detach().clone()
    torch.testing.assert_close(table(torch.arange(ITEMS + 1)), plain)  # the map starts at 0
    nn.init.normal_(table.feature_map)
    expected = plain + item_features() @ table.feature_map.detach().T
    torch.testing.assert_close(table(torch.arange(ITEMS + 1)), expected)
    assert table(torch.tensor([[0]])).eq(0).all()
    state = model.eval().encode(SEQUENCES)
    torch.testing.assert_close(model.score(state, torch.arange(1, 9)), state @ expected[1:9].T)


@pytest.mark.parametrize("branches", [{}, {"semantic_trunk": False, "item_branch": False}])
def test_a_residual_model_starts_as_its_backbone_and_opens_with_its_gate(branches: dict[str, bool]) -> None:
    model = make_model(dynamic_residual=True, **branches).eval()
    nn.init.zeros_(model.gate)
    bare = model.backbone(model.item_embedding(SEQUENCES), valid_mask(SEQUENCES))
    torch.testing.assert_close(model.encode(SEQUENCES), bare)
    direct = make_model(**branches).eval()
    direct.load_state_dict({name: value for name, value in model.state_dict().items() if name != "gate"})
    nn.init.constant_(model.gate, -0.3)
    torch.testing.assert_close(model.encode(SEQUENCES), bare - 0.3 * direct.encode(SEQUENCES))


def test_fine_tuning_reaches_the_layers_behind_the_gate() -> None:
    model = make_model(dynamic_residual=True, semantic_trunk=False, item_branch=False).eval()
    bare = model.backbone(model.item_embedding(SEQUENCES), valid_mask(SEQUENCES))
    scorer = FineTuned(model, 3, 0.1)
    tuned, untuned = scorer.encode(SEQUENCES).detach(), model.encode(SEQUENCES)
    assert not torch.allclose(tuned[2], untuned[2], atol=1e-4)
    torch.testing.assert_close(tuned[1], untuned[1])  # an only item has no prefix to learn from
    nn.init.zeros_(model.gate)
    torch.testing.assert_close(scorer.encode(SEQUENCES), bare)


def test_the_generators_drop_in_training_alone() -> None:
    embedded, mask = torch.randn(4, 5, 8), valid_mask(SEQUENCES)
    torch.manual_seed(0)
    plain, dropping = ConditionEncoder(8, 2), ConditionEncoder(8, 2, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    assert not torch.equal(dropping(embedded, mask), dropping(embedded, mask))
    torch.testing.assert_close(dropping.eval()(embedded, mask), plain(embedded, mask))


def test_features_may_be_missing_but_must_fit() -> None:
    semantics = np.array([0, 1, 2, 1])
    config = Config().model
    assert DynamicRecommender(config, 3, semantics).item_embedding.feature_map is None
    with pytest.raises(ValueError, match=r"features: expected \[V \+ 1 = 4, F\], got \[3, 2\]"):
        DynamicRecommender(config, 3, semantics, torch.zeros(3, 2))


def test_the_codebook_starts_from_the_semantic_table_and_never_offers_padding() -> None:
    model = make_model()
    table = model.semantic_embedding.table.weight.detach()
    model.initialise_codebook(table[1:])
    torch.testing.assert_close(model.item.codebook.weight.detach(), table[1:])
    assert model.item.codebook.num_codes == SEMANTICS


def test_the_auxiliary_loss_is_the_mean_squared_distance_over_valid_positions() -> None:
    model = make_model().eval()
    mask = valid_mask(SEQUENCES)
    semantic = model.semantic_embedding(model.semantics[SEQUENCES])
    entries = model.item.codebook.weight
    nearest = torch.cdist(model.item.embedding(SEQUENCES), entries).argmin(2)
    squared = (semantic - entries[nearest]).square().sum(2)
    torch.testing.assert_close(model(SEQUENCES).auxiliary_loss, squared[mask].mean())


def test_the_auxiliary_loss_reaches_the_semantic_side_only() -> None:
    model = make_model()
    model(SEQUENCES).auxiliary_loss.backward()
    assert model.semantic_embedding.table.weight.grad.abs().sum() > 0
    assert model.item.embedding.table.weight.grad is None
    assert model.item.codebook.weight.grad is None


def test_generated_layers_start_at_the_scale_of_ordinary_ones() -> None:
    torch.manual_seed(0)
    semantics = np.concatenate([[0], np.arange(500) % 50 + 1])
    solid = DynamicRecommender(ModelConfig(), 500, semantics).eval()
    static = DynamicRecommender(Config().replace(semantic_trunk=False, item_branch=False).model, 500, semantics).eval()
    sequences = torch.randint(1, 501, (256, 10))
    ratio = solid.encode(sequences).std() / static.encode(sequences).std()
    assert 0.4 < ratio < 2.5


def test_one_semantic_is_enough_for_a_codebook() -> None:
    config = Config().replace(length=5, dim=8, heads=2).model
    model = DynamicRecommender(config, ITEMS, np.minimum(np.arange(ITEMS + 1), 1))
    assert torch.isfinite(model.encode(SEQUENCES)).all()


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_the_whole_model_compiles_without_a_graph_break(backbone: str) -> None:
    model = make_model(backbone=backbone).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(SEQUENCES).vector, model(SEQUENCES).vector)


@pytest.mark.parametrize(
    ("semantics", "sentence"),
    [
        (np.ones(ITEMS, np.int64), r"semantics: expected integers \[V \+ 1 = 41\], got int64 \[40\]"),
        (np.ones(ITEMS + 1), r"semantics: expected integers \[V \+ 1 = 41\], got float64 \[41\]"),
        (np.ones(ITEMS + 1, np.int64), "expected 0 for padding and 1 .. C for every item"),
        (np.zeros(ITEMS + 1, np.int64), "expected 0 for padding and 1 .. C for every item"),
    ],
)
def test_bad_semantics_get_a_sentence(semantics: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DynamicRecommender(ModelConfig(), ITEMS, semantics)


@pytest.mark.parametrize("name", ["popularity", "markov", "itemknn", "sasrec", "neighbours", "fine-tuned"])
def test_peers_are_asked_about_their_own_items(name: str) -> None:
    """scipy reads past its arrays for such an id: the process ended in a segmentation fault."""
    data = load_dataset((np.repeat(np.arange(10), 4), np.arange(40) % 40, np.arange(40)))
    end = data.offsets[1:]
    knn = ItemKNN(data, end, 5)
    peer = {
        "popularity": lambda: Popularity(data, end),
        "markov": lambda: Markov(data, end),
        "itemknn": lambda: knn,
        "sasrec": lambda: SASRecSoftmax(40, 5).eval(),
        "neighbours": lambda: WithNeighbours(make_model().eval(), knn, 1.0),
        "fine-tuned": lambda: FineTuned(make_model(**VARIANTS["static"]).eval(), 1, 0.1),
    }[name]()
    width = min(peer.length, 5)
    with torch.inference_mode():
        state = peer.encode(torch.ones(2, width, dtype=torch.int64))
        for wrong in (10**9, -1, 41):
            with pytest.raises(ValueError, match=r"expected candidates of item ids in 0 \.\. 40"):
                peer.score(state, torch.tensor([wrong]))
            if name != "popularity":  # which reads none
                with pytest.raises(ValueError, match=r"expected sequences of item ids in 0 \.\. 40"):
                    peer.encode(torch.full((2, width), wrong))


def test_only_static_layers_are_fine_tuned() -> None:
    with pytest.raises(ValueError, match="FineTuned: expected a model with static layers"):
        FineTuned(make_model(), 1, 0.1)
    for steps, rate in ((-1, 0.1), (1, -0.1), (1, float("nan"))):
        with pytest.raises(ValueError, match=r"FineTuned: expected (steps|rate) >= 0, got"):
            FineTuned(make_model(**VARIANTS["static"]), steps, rate)
