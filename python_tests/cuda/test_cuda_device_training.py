"""The training step and a whole training on a GPU, against the CPU.

Unlike the kernels' own tests they need all that the package imports, polars too. SOLID_EXT_TEST_DEVICE=cpu: see
test_cuda_device_layers.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from python_tests.cuda.test_cuda_device_layers import DEVICE, gpu_alone
from python_tests.cuda.test_cuda_device_layers import pytestmark as pytestmark
from solid_ext import Config
from solid_ext.config import PAPER
from solid_ext.models import DynamicRecommender

if TYPE_CHECKING:
    from solid_ext import Dataset
    from solid_ext.data import SyntheticTruth

pytest.importorskip("polars", reason="no polars: solid_ext.train cannot be imported")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Sums in a fixed order where there is a way, so that two runs may be compared closely."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
        yield
    torch.use_deterministic_algorithms(False)


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        sequences, candidates = (torch.randint(1, 201, (32, n), generator=generator) for n in (10, 5))
        yield sequences.to(DEVICE), candidates.to(DEVICE)


def losses(**fields: object) -> Tensor:
    from solid_ext.train import Step, make_optimizer

    torch.manual_seed(0)
    config = Config().replace(
        **PAPER | {"device": str(DEVICE), "cuda_graph": False} | fields
    )  # without dropout, whose draws a recording changes
    model = DynamicRecommender(config.model, 200, np.concatenate([[0], np.arange(200) % 20 + 1])).to(DEVICE)
    step = Step(model, make_optimizer(model, config.train), config.train)
    return torch.stack([step(*batch)[0] for batch in batches(8)]).cpu()


def test_a_training_step_is_that_of_the_reference() -> None:
    expected = losses(backend="reference")
    torch.testing.assert_close(losses(), expected, rtol=1e-4, atol=1e-5)
    # bfloat16 rounds to 2^-9; measured on the CPU over 5 seeds: at most .1 x 2^-8 after 8 steps.
    torch.testing.assert_close(losses(amp=True), expected, rtol=2**-7, atol=0)


@gpu_alone
def test_a_recorded_training_step_is_the_same(deterministic: None) -> None:
    torch.testing.assert_close(losses(cuda_graph=True), losses(), rtol=1e-5, atol=1e-6)


@gpu_alone
def test_a_training_step_in_tf32_is_close_to_one_in_float32() -> None:
    torch.testing.assert_close(losses(tf32=True), losses(), rtol=2**-7, atol=0)


@gpu_alone
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_run_on_the_device_gives_the_metrics_of_the_processor(
    cuda_graph: bool, world: tuple[Dataset, SyntheticTruth]
) -> None:
    """In float64: three epochs in float32 drive two roundings as far apart as .015, at one seed of four."""
    from solid_ext import SOLID

    tiny = {"length": 5, "dim": 16, "heads": 2, "codebook_hidden": 16, "learning_rate": 0.01}
    config = Config().replace(**PAPER | tiny, batch_size=256, epochs=3, eval_negatives=20, dtype="float64")
    on_cpu = SOLID(config).fit(world[0]).evaluate()
    on_device = SOLID(config.replace(device="cuda", cuda_graph=cuda_graph)).fit(world[0]).evaluate()
    for protocol, values in on_cpu.items():
        for name, value in values.items():
            assert abs(on_device[protocol][name] - value) < 0.005, name
