"""Sessions: after every event what a recomputation from the whole history gives, bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from python_tests.untrained import random_similarity, untrained
from solid_ext import SOLID
from solid_ext.methods import METHODS
from solid_ext.scorers import ItemKNN

ITEMS = 130
VARIANTS: dict[str, dict[str, Any]] = {
    "solid": {},
    "static": dict(METHODS["static"].fields),
    "finetune": dict(METHODS["finetune"].fields),
    "trunk only": dict(METHODS["solid-trunk-only"].fields),
    "long history": {"generator_length": 11},
    "gru4rec": {"backbone": "gru4rec"},
    "bert4rec, paper's target": {"backbone": "bert4rec", "target": "mlp", "low_rank": False},
    "din, which reads candidates": {"backbone": "din"},
}


def made(**fields: Any) -> SOLID:
    return untrained(ITEMS, **fields)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_session_recommends_what_its_whole_history_does_after_every_event(variant: str) -> None:
    solid = made(**VARIANTS[variant])
    rng = np.random.default_rng(1)
    events = (rng.integers(0, ITEMS, 20) * 10).tolist()
    events[7] = events[5]  # an item of the window again
    session, read = solid.session(events[:2]), solid.model.length
    for end in range(2, len(events) + 1):
        for k, excluded in ((10, True), (3, False)):
            assert (
                session.recommend(k, exclude_history=excluded)
                == solid.recommend([events[:end]], k, exclude_history=excluded)[0]
            )
        rules = {"exclude": [10, 20, 30], "include": list(range(0, 600, 10))}
        assert session.recommend(4, **rules) == solid.recommend([events[:end]], 4, **rules)[0]
        assert session.history == events[max(end - read, 0) : end]
        if end < len(events):
            session.observe(str(events[end]))


def test_a_session_without_events_gets_what_a_newcomer_gets() -> None:
    solid = made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert solid.session().recommend(5) == solid.recommend([[]], 5)[0]


def test_many_events_leave_out_all_of_them() -> None:
    session = made().session([number * 10 for number in range(ITEMS - 2)])
    assert sorted(entry.item for entry in session.recommend(10)) == [(ITEMS - 2) * 10, (ITEMS - 1) * 10]
    session.observe((ITEMS - 2) * 10)
    assert [entry.item for entry in session.recommend(10)] == [(ITEMS - 1) * 10]


def test_a_session_sees_a_change_of_the_model_at_its_next_event() -> None:
    solid = made()
    session = solid.session([10, 20])
    session.recommend()
    with torch.no_grad():
        solid.model.item_embedding.weight.mul_(1.5)
    session.observe(30)
    assert session.recommend() == solid.recommend([[10, 20, 30]])[0]


def test_an_unknown_item_is_refused_and_the_session_is_as_before() -> None:
    solid = made()
    session = solid.session([10, 20])
    with pytest.raises(ValueError, match=r"observe: expected items of the catalogue, got 5, which is not in it"):
        session.observe(5)
    assert session.history == [10, 20]
    ignoring = solid.session([10, 5, 20], unknown="ignore")
    ignoring.observe("none")
    assert ignoring.recommend() == session.recommend()


@pytest.mark.parametrize(
    ("history", "error", "sentence"),
    [
        ("10", TypeError, "session: expected history as a list of item ids, got '10'"),
        ([5], ValueError, "session: expected items of the catalogue in history, got 5, which is not in it"),
        ([[10]], TypeError, "session: expected history as a list of item ids, got "),
    ],
)
def test_no_session_begins_with_a_history_that_is_none(history: Any, error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        made().session(history)


def test_k_of_a_session_is_checked_as_that_of_recommend() -> None:
    session = made().session([10])
    with pytest.raises(ValueError, match=r"recommend: expected k of at least 1, got 0"):
        session.recommend(0)
    with pytest.raises(TypeError, match=r"recommend: expected k as an integer, got 1\.5"):
        session.recommend(1.5)  # type: ignore[arg-type]


def test_neighbours_of_one_history_are_summed_as_those_of_many_bit_for_bit() -> None:
    rng = np.random.default_rng(2)
    knn = ItemKNN.of(random_similarity(41, 0.5, rng), 8)
    sequences = torch.from_numpy(rng.integers(1, 41, (30, 8)))
    sequences[3, 5:] = 0
    sequences[4] = 0
    weights = torch.from_numpy(rng.random((30, 8))) * (sequences > 0)
    together = knn.weighted(sequences, weights).toarray()
    for row in range(30):
        alone = knn.weighted(sequences[row : row + 1], weights[row : row + 1]).toarray()
        assert np.array_equal(alone[0], together[row])


def test_a_session_hints_at_what_it_takes() -> None:
    solid = made()
    with pytest.raises(ValueError, match=r"^session: .* \(unknown='ignore' reads history without such items\)"):
        solid.session([5])
    session, hint = solid.session([10]), r"\(a session made with unknown='ignore' reads {} without such items\)"
    with pytest.raises(ValueError, match="^observe: .* " + hint.format("histories")):
        session.observe(5)
    with pytest.raises(ValueError, match="^recommend: .* " + hint.format("exclude")):
        session.recommend(3, exclude=[5])
    assert session.history == [10]
    goes_on = solid.session([10], unknown="ignore")
    goes_on.observe(5)
    assert goes_on.history == [10]
