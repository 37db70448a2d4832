"""Training steps of the default SOLID by whatever solid_ext is found: a contestant in a process of its own.

    python peer_default_step.py DATA BACKEND

DATA is a folder of interactions, whose training rows are the batches; semantics and features are drawn, for a step
costs the same whatever they are. For every line on its input it makes a step and answers with its processor seconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch

from solid_ext import Config, load_dataset
from solid_ext.data import gather_sequences, make_split
from solid_ext.train import Step, build_model, make_optimizer

BATCHES = 8
FEATURES = 64


def default_steps(data: Path, backend: str, **fields: object) -> tuple[Step, list[tuple[torch.Tensor, torch.Tensor]]]:
    """What the trainer does with a batch in stage 2, and some batches."""
    dataset = load_dataset(data)
    config = Config().replace(backend=backend, **fields).resolved(dataset.num_users, dataset.num_items)
    clusters = config.semantics.num_semantics or min(max(dataset.num_items // 10, 16), 1024)
    rng = np.random.default_rng(0)
    semantics = np.concatenate([[0], rng.permutation(dataset.num_items) % clusters + 1])
    features = rng.normal(size=(dataset.num_items + 1, FEATURES)).astype(np.float32) / FEATURES**0.5
    features[0] = 0
    dtype = getattr(torch, config.train.dtype)
    model = build_model(config, config.model, dataset.num_items, semantics, torch.from_numpy(features)).to(dtype)
    if model.gate is not None:
        torch.nn.init.constant_(model.gate, 0.1)  # from 0 nothing would reach the generators' gradients
    rows = make_split(config.evaluate.split, dataset).train
    order = rng.permutation(len(rows.positions))
    batches = []
    for number in range(BATCHES):
        batch = rows.take(order[number * config.train.batch_size :][: config.train.batch_size])
        targets = torch.from_numpy(dataset.items[batch.positions].astype(np.int64))
        batches.append((torch.from_numpy(gather_sequences(dataset, batch, config.model.length)), targets))
    return Step(model.train(), make_optimizer(model, config.train), config.train), batches


def main() -> None:
    from peer_answers import answer  # beside this file, where it is run as a script

    data, backend = sys.argv[1:]
    torch.set_num_threads(1)
    step, batches = default_steps(Path(data), backend)
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        step(*batches[calls % BATCHES])

    answer(work, time.process_time)


if __name__ == "__main__":
    main()
