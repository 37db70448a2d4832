"""What a training step does differently on a GPU, as far as it shows without one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from solid_ext import Config
from solid_ext.config import PAPER
from solid_ext.models import DynamicRecommender
from solid_ext.train import Step, make_optimizer
from solid_ext.train.precision import tf32_products

CONFIG = Config().replace(**PAPER | {"length": 5, "dim": 8})
ON_GPU = CONFIG.replace(device="cuda")


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield tuple(torch.randint(1, 21, (16, n), generator=generator) for n in (5, 3))  # type: ignore[misc]


def step_of(config: Config) -> Step:
    """On the CPU, whatever the configuration says."""
    torch.manual_seed(0)
    model = DynamicRecommender(config.model, 20, np.concatenate([[0], np.arange(20) % 4 + 1]))
    return Step(model, make_optimizer(model, CONFIG.train), config.train)


def test_steps_are_recorded_on_a_gpu_alone_and_only_if_wanted() -> None:
    assert not CONFIG.train.records_steps
    assert ON_GPU.train.records_steps
    assert not ON_GPU.replace(cuda_graph=False).train.records_steps


def test_where_a_step_cannot_be_recorded_training_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: Step) -> None:
        step.model(step._inputs[0]).vector.sum().backward()  # type: ignore[index]  # leaves gradients behind
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain = step_of(CONFIG)
    expected = [plain(*batch)[0] for batch in batches(7)]
    monkeypatch.setattr(Step, "_aside", lambda step: step._compute(*step._inputs))
    monkeypatch.setattr(Step, "_recording", broken)
    step = step_of(ON_GPU)
    with pytest.warns(UserWarning, match="not recorded: operation not permitted when stream is capturing$") as warned:
        found = [step(*batch)[0] for batch in batches(7)]
    assert len(warned) == 1
    assert torch.equal(torch.stack(found), torch.stack(expected))


@pytest.mark.parametrize("tf32", [False, True])
def test_products_are_rounded_during_a_step_alone(tf32: bool) -> None:
    seen = []
    step = step_of(ON_GPU.replace(cuda_graph=False, tf32=tf32))
    before = torch.backends.cuda.matmul.fp32_precision
    step.model.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.fp32_precision))
    parameter = next(step.model.parameters())
    parameter.register_hook(lambda _: seen.append(torch.backends.cuda.matmul.fp32_precision))
    step(*next(batches(1)))
    assert seen == [("tf32" if tf32 else before)] * 2
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_the_setting_is_that_of_before_after_an_error_too() -> None:
    def fails() -> None:
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        raise ValueError("gone")

    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(ValueError, match="gone"), tf32_products(True):
        fails()
    assert torch.backends.cuda.matmul.fp32_precision == before
