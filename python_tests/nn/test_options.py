"""Options of layers that are not what they are taken for: refused where the layer is made, not where it is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from solid_ext.nn import Dropout, LastState, Lookup


@pytest.mark.parametrize(
    "make", [lambda b: LastState(3, b), lambda b: Dropout(0.5, b), lambda b: Lookup(3, 4, backend=b)]
)
def test_what_names_no_backend_is_refused(make: Callable[[object], nn.Module]) -> None:
    for backend in (4, "gpu", None):
        with pytest.raises(ValueError, match="expected backend 'native' or 'reference', got"):
            make(backend)


def test_sizes_and_probabilities_are_checked() -> None:
    with pytest.raises(ValueError, match="LastState: expected dim >= 1, got 0"):
        LastState(0)
    for probability in (1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"Dropout: expected 0 <= probability < 1, got"):
            Dropout(probability)
    with pytest.raises(TypeError, match=r"Dropout: expected probability a number, got '0\.5'"):
        Dropout("0.5")
