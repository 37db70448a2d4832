"""Scores, vectors, similar items and explanations of a model, against its parts asked one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from solid_ext import SOLID, Dataset, load_dataset
from solid_ext.data import gather_sequences, leave_one_out
from solid_ext.evaluate import full_ranks
from solid_ext.evaluate.protocols import sampled_candidates, sampled_scores
from solid_ext.scorers import WithNeighbours
from solid_ext.scorers.finetune import fine_tuned
from solid_ext.serve import Explanation

TINY: dict[str, Any] = {"length": 5, "dim": 16, "heads": 2, "codebook_hidden": 16, "epochs": 1, "eval_negatives": 20}
KINDS = {
    "default": {},
    "paper": {"target": "mlp", "dynamic_residual": False, "low_rank": False, "neighbours": False},
    "trunk alone": {"item_branch": False},
    "items alone": {"semantic_trunk": False},
    "static": {"semantic_trunk": False, "item_branch": False},
    "fine-tuned": {"semantic_trunk": False, "item_branch": False, "finetune_steps": 2},
    "gru4rec": {"backbone": "gru4rec", "target": "mlp"},
    "din": {"backbone": "din"},
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    """A world with texts, so that items have features."""
    rng = np.random.default_rng(1)
    words = ["red", "green", "blue", "iron", "glass", "paper", "wool"]
    titles = {item: f"{words[item % 7]} {words[item % 5]} thing {item}" for item in range(60)}
    items = (rng.integers(0, 60, (200, 1)) + rng.integers(0, 4, (200, 7)).cumsum(1)) % 60
    table = {"item_id": list(titles), "title": list(titles.values())}
    return load_dataset((np.repeat(np.arange(200), 7), items.ravel(), np.arange(1400)), items=table)


@pytest.fixture(scope="module", params=KINDS)
def solid(request: pytest.FixtureRequest, data: Dataset) -> SOLID:
    model = SOLID(**{**TINY, **KINDS[request.param]}).fit(data)
    if model.model is not None and model.model.gate is not None:
        with torch.no_grad():  # one epoch hardly opens it
            model.model.gate.fill_(0.7)
    return model


def raw_histories(data: Dataset, users: range) -> list[list[Any]]:
    ids = data.item_ids.to_list()
    return [[ids[item - 1] for item in data.items[data.offsets[u] : data.offsets[u + 1] - 1]] for u in users]


def test_scores_are_those_that_evaluation_ranks_by(solid: SOLID, data: Dataset) -> None:
    rows = leave_one_out(data).test.take(slice(0, 30))
    candidates = sampled_candidates(data, rows, negatives=20, seed=0)
    ids = np.array(data.item_ids.to_list())
    found = solid.score(raw_histories(data, range(30)), ids[candidates - 1])
    assert np.array_equal(found, sampled_scores(solid.scorer, data, rows, candidates))
    shared = solid.score(raw_histories(data, range(30)), ids)
    target = data.items[rows.positions]
    own = np.take_along_axis(shared, target[:, None].astype(int) - 1, 1)
    assert shared.shape == (30, 60)
    assert np.array_equal((shared >= own).sum(1), full_ranks(solid.scorer, data, rows))


def test_the_products_of_vectors_are_the_network_s_logits(solid: SOLID, data: Dataset) -> None:
    histories = raw_histories(data, range(20))
    network: Any = fine_tuned(solid.model)
    if solid.model.reads_candidates:
        with pytest.raises(ValueError, match="user_vectors: expected a backbone with one state a user, got 'din'"):
            solid.user_vectors(histories)
        return
    ids, items = solid.item_vectors()
    users = solid.user_vectors(histories)
    assert ids == data.item_ids.to_list()
    assert (items.shape, users.shape) == ((60, 16), (20, 16))
    rows = leave_one_out(data).test.take(slice(0, 20))
    with torch.inference_mode():
        state = network.encode(torch.from_numpy(gather_sequences(data, rows, 5)))
        logits = network.score(state, torch.arange(1, 61)).numpy()
    assert users @ items.T == pytest.approx(logits, rel=1e-4, abs=1e-4)
    if not isinstance(solid.neighbours, WithNeighbours) or not solid.neighbours.weight:
        assert users @ items.T == pytest.approx(solid.score(histories, ids), rel=1e-4, abs=1e-4)


def test_similar_items_are_those_of_the_cosine(solid: SOLID, data: Dataset) -> None:
    ids, vectors = solid.item_vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for place, found in zip((4, 17), solid.similar_items([ids[4], str(ids[17])], 6), strict=True):
        cosine = unit @ unit[place]
        cosine[place] = -2
        assert [entry.item for entry in found] == [ids[row] for row in np.argsort(-cosine, kind="stable")[:6]]
        assert [entry.score for entry in found] == pytest.approx(np.sort(cosine)[::-1][:6], abs=1e-5)
        assert found[0].title == data.titles([data.item_index([found[0].item])[0]])[0]
    assert [len(found) for found in solid.similar_items([ids[0]], 1000)] == [59]
    assert solid.similar_items([], 3) == []


def test_the_parts_of_an_explanation_add_up_to_the_score(solid: SOLID, data: Dataset) -> None:
    for history in [*raw_histories(data, range(6)), [3, 7, 3, 3, 9, 7]]:
        for item in (0, 11, history[-1]):
            found = solid.explain(history, item)
            assert found.score == pytest.approx(float(solid.score([history], [item])[0, 0]), abs=1e-5)
            assert sum(found.parts.values()) == pytest.approx(found.score, abs=2e-5)
            assert sum(own.neighbours for own in found.history) == pytest.approx(found.neighbours, abs=1e-9)
            assert [own.item for own in found.history] == list(dict.fromkeys(history[-5:][::-1]))[::-1]
            for own in found.history:
                rest = [each for each in history if each != own.item]
                less = None if not rest else found.score - float(solid.score([rest], [item])[0, 0])
                assert own.effect == (None if less is None else pytest.approx(less, abs=1e-5))


def numbers(found: Explanation) -> list[float]:
    """All that an explanation tells in numbers, the semantics in an order that no rounding changes."""
    by_semantic = sorted(found.by_semantic, key=lambda own: own.semantic)
    history = [value for own in found.history for value in (own.neighbours, own.effect or 0.0)]
    return [found.score, *found.parts.values(), *history, *(own.effect for own in by_semantic)]


def test_items_explained_together_get_what_each_gets_alone(solid: SOLID, data: Dataset) -> None:
    asked = [0, 11, 50, 11, 3]
    for history in [*raw_histories(data, range(4)), [3, 7, 3, 3, 9, 7], [5]]:
        together = solid.explain_items(history, asked)
        assert [found.item for found in together] == asked
        for found in together:
            alone = solid.explain(history, found.item)
            assert (found.item, found.title) == (alone.item, alone.title)
            assert numbers(found) == pytest.approx(numbers(alone), abs=2e-6)
            assert [own.item for own in found.history] == [own.item for own in alone.history]
            assert [own.effect is None for own in found.history] == [own.effect is None for own in alone.history]
            assert {own.semantic: own.items for own in found.by_semantic} == {
                own.semantic: own.items for own in alone.by_semantic
            }
    assert solid.explain_items([3, 7], []) == []


def test_the_network_s_parts_are_its_logits_with_the_conditions_switched_to_0(solid: SOLID, data: Dataset) -> None:
    """By hooks that put 0, or the condition of fewer semantics, in the place of what the encoders give."""
    history, item = raw_histories(data, range(1))[0][-5:], 50
    network: Any = fine_tuned(solid.model)
    model: Any = solid.model
    config, found = solid.config.model, solid.explain(history, item)
    sequence = torch.from_numpy(data.item_index(history)).long().unsqueeze(0)

    def logit(semantics: Tensor | None) -> float:
        """Without the branch of items and the candidate's features, by these semantics; None for 0."""

        def in_place(module: Any, given: Any, encoded: Tensor) -> Tensor:
            if semantics is None or not semantics.numel():
                return torch.zeros_like(encoded)
            return module.forward(model.semantic_embedding(semantics), semantics > 0)

        hooks = []
        if config.semantic_trunk:
            hooks.append(model.semantic_encoder.register_forward_hook(in_place))
        if config.item.item_branch:
            hooks.append(model.item.encoder.register_forward_hook(lambda _, given, encoded: encoded * 0))
        with torch.inference_mode():
            state = network.encode(sequence)
            kept = model.item_embedding.features[item + 1].clone()
            model.item_embedding.features[item + 1] = 0
            value = float(network.score(state, torch.tensor([item + 1]))[0, 0])
            model.item_embedding.features[item + 1] = kept
        for hook in hooks:
            hook.remove()
        return value

    assert item not in history
    semantics = model.semantics[sequence]
    base, trunk = logit(None), logit(semantics)
    assert found.sequence == pytest.approx(base, abs=2e-5)
    assert found.semantics == pytest.approx(trunk - base, abs=2e-5)
    for own in found.by_semantic:
        assert own.effect == pytest.approx(trunk - logit(semantics[semantics != own.semantic].unsqueeze(0)), abs=2e-5)


def test_a_gate_that_is_shut_leaves_nothing_to_the_generated_layers(data: Dataset) -> None:
    solid = SOLID(**TINY).fit(data)
    assert solid.model is not None
    assert solid.model.gate is not None
    with torch.no_grad():
        solid.model.gate.zero_()
    found = solid.explain([3, 7, 9], 11)
    assert [found.semantics, found.items] == pytest.approx([0, 0], abs=1e-9)
    assert [own.effect for own in found.by_semantic] == pytest.approx([0] * len(found.by_semantic), abs=1e-9)


def test_a_part_that_a_model_lacks_is_0_and_one_that_it_has_is_not(solid: SOLID, data: Dataset) -> None:
    found = [solid.explain(history, 11) for history in raw_histories(data, range(8))]
    config = solid.config.model
    dynamic = config.semantic_trunk or config.item.item_branch
    there = {
        "sequence": True,
        "semantics": config.semantic_trunk,
        "items": config.item.item_branch,
        "features": True,
        "neighbours": solid.neighbours is not None and solid.neighbours.weight > 0,
        "popularity": False,
    }
    assert dynamic == (there["semantics"] or there["items"])
    for name, expected in there.items():
        assert any(each.parts[name] != 0 for each in found) == expected, name
    for each in found:
        assert bool(each.by_semantic) == config.semantic_trunk
        assert all({*own.items} <= {part.item for part in each.history} for own in each.by_semantic)


def test_a_part_is_what_changes_when_its_cause_is_taken_away(solid: SOLID, data: Dataset) -> None:
    """The features by a model without the map of features for this item alone, the neighbours by the scorer inside."""
    history = raw_histories(data, range(1))[0]
    found = solid.explain(history, 50)
    if solid.neighbours is not None:
        network = solid.neighbours.model
        sequence = torch.tensor([data.item_index(history[-5:]).tolist()])
        with torch.inference_mode():
            alone = float(network.score(network.encode(sequence), torch.tensor([51]))[0, 0])
        assert found.neighbours == pytest.approx(found.score - alone, abs=1e-5)
    features = solid.model.item_embedding.features
    kept = features[51].clone()
    features[51] = 0
    without = solid.explain(history, 50)
    features[51] = kept
    assert 50 not in history
    assert without.features == pytest.approx(0, abs=1e-6)
    assert found.features == pytest.approx(found.score - without.score, abs=1e-5)
    for name in ("sequence", "semantics", "items", "neighbours"):
        assert found.parts[name] == pytest.approx(without.parts[name], abs=1e-5)


def test_the_last_semantic_s_effect_is_the_whole_part(data: Dataset) -> None:
    solid = (
        SOLID(**TINY, semantics="category", category_min_items=1) if "categories" in data.item_table.columns else None
    )
    assert solid is None  # the world has texts alone; its clusters are semantics
    solid = SOLID(**TINY).fit(data)
    found = solid.explain([5, 5, 5], 9)
    assert len(found.by_semantic) == 1
    assert found.by_semantic[0].effect == pytest.approx(found.semantics, abs=1e-6)
    assert found.by_semantic[0].items == (5,)
    assert found.history[0].effect is None


def test_a_newcomer_s_score_is_popularity(data: Dataset) -> None:
    solid = SOLID(**TINY).fit(data)
    found = solid.explain([], 9)
    with pytest.warns(UserWarning, match="score: histories without an item that the model knows: 1 of 1"):
        expected = float(solid.score([[]], [9])[0, 0])
    assert found.score == found.popularity == expected
    assert found.history == found.by_semantic == ()
    assert solid.explain(["strange"], 9, unknown="ignore") == found
    assert [own.score for own in solid.explain_items([], [9, 4])] == [found.score, solid.explain([], 4).score]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (lambda s: s.score([[1]], "1"), "score: expected items as a list of item ids for all .*, got '1'"),
        (lambda s: s.score([[1]], ["x"]), "score: expected items of the catalogue in items, got 'x', .* not in it$"),
        (lambda s: s.score([["x"]], [1]), r"score: .* got 'x', .* \(unknown='ignore' reads histories without"),
        (lambda s: s.score([[1], [2]], [[1, 2], [3]]), "score: expected as many items for each .*, got 1 .* and 2 for"),
        (lambda s: s.score([[1], [2]], [[1]]), "score: expected items for all histories or for each of 2, got 1 lists"),
        (lambda s: s.score([1], [1]), "score: expected each history to be a list of item ids, got 1 as history 0"),
        (lambda s: s.score([[1]], [1], unknown=1), "score: expected unknown 'error' or 'ignore', got 1"),
        (lambda s: s.similar_items("1"), "similar_items: expected items as a list of item ids, got '1'"),
        (lambda s: s.similar_items([[1]]), r"similar_items: expected items as a list of item ids, got \[\[1\]\]"),
        (lambda s: s.similar_items(["x"]), "similar_items: expected items of the catalogue in items, got 'x'"),
        (lambda s: s.similar_items([1], 0), "similar_items: expected k of at least 1, got 0"),
        (
            lambda s: s.user_vectors([[1], []]),
            "user_vectors: expected an item .* in every history, got none in history 1",
        ),
        (lambda s: s.user_vectors([["x"]]), "user_vectors: expected items of the catalogue, got 'x'"),
        (lambda s: s.explain("1", 2), "explain: expected history as a list of item ids, got '1'"),
        (lambda s: s.explain([[1]], 2), r"explain: expected history as a list of item ids, got \[\[1\]\]"),
        (lambda s: s.explain(["x"], 2), "explain: expected items of the catalogue in history, got 'x'"),
        (lambda s: s.explain([1], "x"), "explain: expected items of the catalogue in item, got 'x', .* not in it$"),
        (lambda s: s.explain([1], [2]), r"explain: expected item as a list of item ids, got \[\[2\]\]"),
        (lambda s: s.explain_items([1], 2), "explain_items: expected items as a list of item ids, got 2"),
        (
            lambda s: s.explain_items([1], ["x"]),
            "explain_items: expected items of the catalogue in items, got 'x', .*it$",
        ),
        (lambda s: s.explain_items(["x"], []), "explain_items: expected items of the catalogue in history, got 'x'"),
        (lambda s: s.explain([1], 2, unknown="x"), "explain: expected unknown 'error' or 'ignore', got 'x'"),
        (lambda s: SOLID.load("m", device="gpu"), "load: device: expected cpu, cuda or cuda:N, got 'gpu'"),
        (lambda s: SOLID.load("m", device=3), "load: device: expected str, got 3"),
        (lambda s: SOLID.load("m", backend="fast"), "load: backend: expected one of native, reference, got 'fast'"),
    ],
)
def test_bad_questions_get_a_sentence(skewed: tuple[Dataset, SOLID], asked: Any, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{sentence}"):
        asked(skewed[1])


def test_nothing_is_asked_of_a_model_before_it_is_there() -> None:
    for asked in (
        lambda s: s.score([[1]], [1]),
        lambda s: s.explain([1], 1),
        lambda s: s.explain_items([1], [1]),
        lambda s: s.similar_items([1]),
        lambda s: s.item_vectors(),
        lambda s: s.user_vectors([[1]]),
        lambda s: s.recommend_users([]),
    ):
        with pytest.raises(ValueError, match="SOLID: expected a fitted model, got one before fit"):
            asked(SOLID())


def test_eight_threads_get_the_bits_that_one_gets(skewed: tuple[Dataset, SOLID], tmp_path: Path) -> None:
    """Of every question, the item table not made yet, and of a model that was left in training mode."""
    data, fitted = skewed
    solid = SOLID.load(fitted.save(tmp_path / "model"))
    ids = data.item_ids.to_list()
    histories = [[ids[(i + 3 * j) % len(ids)] for j in range(1 + i % 7)] for i in range(40)]

    def everything(model: SOLID) -> tuple[Any, ...]:
        return (
            model.recommend(histories, 5, exclude=ids[:9], include=[ids[i : i + 60] for i in range(40)]),
            model.recommend_users(data, k=4).rows(),
            model.score(histories, ids[:30]).tobytes(),
            model.similar_items(ids[:20], 5),
            model.item_vectors()[1].tobytes(),
            model.user_vectors(histories).tobytes(),
            [model.explain(histories[place], ids[3]) for place in range(5)],
            model.explain_items(histories[6], ids[:4]),
        )

    expected = everything(fitted)
    assert solid.model is not None
    solid.model.train()
    with ThreadPoolExecutor(8) as pool:
        assert all(found == expected for found in pool.map(lambda _: everything(solid), range(16)))
    assert solid.model.training


def test_a_model_is_loaded_for_another_back_end_and_keeps_its_configuration(
    skewed: tuple[Dataset, SOLID], tmp_path: Path
) -> None:
    data, solid = skewed
    folder = solid.save(tmp_path / "model")
    plain = SOLID.load(folder, device="cpu", backend="reference")
    assert plain.model is not None
    assert {module.backend for module in plain.model.modules() if hasattr(module, "backend")} == {"reference"}
    assert plain.config == SOLID.load(folder).config == solid.config
    histories = raw_histories(data, range(9))
    items = data.item_ids.to_list()
    assert plain.score(histories, items) == pytest.approx(solid.score(histories, items), rel=1e-4, abs=1e-4)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"load: device: expected cpu or one of the 0 CUDA devices .*, got cuda"):
            SOLID.load(folder, device="cuda")
