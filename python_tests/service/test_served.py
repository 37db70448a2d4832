"""What a call of the model answers: everybody's own question, whoever else asked."""

from __future__ import annotations

import warnings

import pytest

from python_tests.service.conftest import ITEMS, TITLES
from python_tests.untrained import untrained
from solid_ext import SOLID
from solid_ext.service.served import Served, answer


def test_questions_of_all_kinds_in_one_batch_are_answered_as_if_they_were_alone(solid: SOLID) -> None:
    other = untrained(ITEMS, TITLES, seed=5)
    served = {id(model): Served(model, "name") for model in (solid, other)}
    asked = [
        (solid, [10, 20], 3, {}),
        (other, [10, 20], 3, {}),
        (solid, [10, 20], 7, {}),
        (solid, [590], ITEMS + 5, {}),
        (solid, [10, 20], 3, {"exclude_history": False}),
        (solid, [10, 20], 3, {"exclude": [30, 40, 50]}),
        (solid, [30], 3, {"include": [0, 10, 20, 30]}),
        (solid, [], 4, {}),
        (other, [5], 4, {"unknown": "ignore"}),
    ]
    found = answer([served[id(model)].question(history, k, **options) for model, history, k, options in asked])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about newcomers
        for (model, history, k, options), entries in zip(asked, found, strict=True):
            alone = model.recommend([history], k, **options)[0]
            assert not isinstance(entries, Exception)
            assert [entry.item for entry in entries] == [entry.item for entry in alone]
            assert [entry.score for entry in entries] == pytest.approx([entry.score for entry in alone], abs=1e-4)


def test_a_question_that_cannot_be_answered_spoils_no_other(solid: SOLID) -> None:
    broken = untrained(ITEMS, TITLES, seed=6)
    assert broken.model is not None
    broken.model.item_embedding.weight.data.fill_(float("nan"))
    good, bad = Served(solid, "good"), Served(broken, "bad")
    found = answer([good.question([10]), bad.question([10]), good.question([20])])
    assert isinstance(found[1], ValueError)
    assert [len(entries) for entries in (found[0], found[2])] == [1, 1]  # type: ignore[arg-type]
