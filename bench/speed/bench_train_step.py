"""The generator of SOLID and its whole training step, native against reference: time and peak memory.

    python -m bench.speed.bench_train_step [--json]

Sequences are full (L = 10 of 10), so padding saves nothing; B = 1024, d = k = 32, P = 2, K = 590 codes, V = 4385 items.
Before anything is timed, both back ends' losses and gradients are compared in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bench.harness import Report, compare, peak_memory, thread_counts, timed
from solid_ext import Config
from solid_ext.config import PAPER
from solid_ext.models import DynamicRecommender
from solid_ext.nn.padding import valid_mask
from solid_ext.train import Step, make_optimizer
from solid_ext.train.losses import binary_cross_entropy

BATCH, ITEMS, CODES = 1024, 4385, 590
ALIGNMENT = 0.1
Work = Callable[[], object]


def model_of(backend: str, dtype: torch.dtype = torch.float32) -> DynamicRecommender:
    torch.manual_seed(0)
    semantics = np.concatenate([[0], np.arange(ITEMS) % CODES + 1])
    return DynamicRecommender(Config().replace(**PAPER, backend=backend).model, ITEMS, semantics).to(dtype)


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sequences = torch.randint(1, ITEMS + 1, (size, 10), generator=generator)
    return sequences, torch.randint(1, ITEMS + 1, (size, 5), generator=generator)


def loss_of(model: DynamicRecommender, sequences: Tensor, candidates: Tensor) -> Tensor:
    state = model(sequences)
    return binary_cross_entropy(model.score(state.vector, candidates)) + ALIGNMENT * state.auxiliary_loss


def generator_step(model: DynamicRecommender) -> Work:
    """Forward and backward of both encoders, the lookup and the generated layers, without backbone and targets."""
    sequences, _ = batch_of(BATCH)
    mask = valid_mask(sequences)
    state = torch.randn(BATCH, model.config.dim, requires_grad=True)
    parameters = [p for name, p in model.named_parameters() if name.startswith(("semantic_", "item.", "dynamic"))]

    def step() -> object:
        z_semantic = model.semantic_encoder(model.semantic_embedding(model.semantics[sequences]), mask)
        z_item = model.item(sequences, model.item_embedding)
        total = model.dynamic(state, z_item, z_semantic).sum()
        return torch.autograd.grad(total, [state, *parameters])

    return step


def training_step(model: DynamicRecommender) -> Work:
    """What the trainer does with a batch: forward, backward, Adam."""
    sequences, candidates = batch_of(BATCH)
    train = Config().replace(**PAPER).train
    step = Step(model, make_optimizer(model, train), train)
    return lambda: step(sequences, candidates)


def validate() -> float:
    """Largest difference between the back ends' gradients in float64, relative to each tensor's largest value."""
    gradients = []
    for backend in ("native", "reference"):
        model = model_of(backend, torch.float64)
        gradients.append(torch.autograd.grad(loss_of(model, *batch_of(BATCH)), list(model.parameters())))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(*gradients, strict=True))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="write bench/results/train_step.json")
    arguments.add_argument("--seconds", type=float, default=12.0, help="about how long a case takes")
    options = arguments.parse_args()
    report = Report("train_step")
    report.notes["largest gradient difference in float64"] = difference = validate()
    if not difference < 1e-9:
        raise SystemExit(f"validation: expected a difference below 1e-9, got {difference}")
    cases = {"generator, forward and backward": generator_step, "training step": training_step}
    all_threads = thread_counts()
    for threads in all_threads:
        torch.set_num_threads(threads)
        for case, make in cases.items():
            steps = {backend: make(model_of(backend)) for backend in ("native", "reference")}
            report.rows += compare(
                f"{case}, B = {BATCH}, L = 10, K = {CODES}",
                {name: timed(step) for name, step in steps.items()},
                threads=threads,
                peak_bytes={name: peak_memory(step) for name, step in steps.items()},
                seconds=options.seconds,
            )
    torch.set_num_threads(all_threads[-1])
    report.print()
    if options.json:
        report.write()


if __name__ == "__main__":
    main()
