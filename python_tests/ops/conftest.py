from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from python_tests.ops.cases import IMPLEMENTATIONS, instruction_set


@pytest.fixture(params=IMPLEMENTATIONS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend, the native one at each instruction set."""
    name, _, level = request.param.partition("-")
    with instruction_set(level) if level else nullcontext():
        yield name
