"""Algorithm 1: the semantic generator first, then both generators, tied by the codebook."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from solid_ext.config import Config, ItemConfig, ModelConfig, Stage2Config
from solid_ext.data import Dataset, Split
from solid_ext.models import DynamicRecommender, SemanticRecommender, start_from
from solid_ext.ops.catalogue_cross_entropy import KEPT_ROWS
from solid_ext.train.checkpoint import check_fit, load_model
from solid_ext.train.isolation import isolated, seed_generators
from solid_ext.train.progress import Reporter
from solid_ext.train.stage import Stage, Trainable, Validate, train_stage


@contextmanager
def seeded(config: Config) -> Iterator[None]:
    """Parameters made inside are drawn from the configuration's seed alone."""
    with isolated():
        seed_generators(config.train.seed, torch.device("cpu"))
        yield


def build_model(
    config: Config, model: ModelConfig, num_items: int, semantics: np.ndarray, features: Tensor | None = None
) -> DynamicRecommender:
    """A network in the configuration's dtype and on its device, its parameters drawn from the seed on the CPU.

    Raises:
        ValueError: parameters that this machine's memory cannot hold.
    """
    _check_memory(_shapes(model, num_items, semantics, features))
    with seeded(config):
        network = DynamicRecommender(model, num_items, semantics, features)
    return network.to(config.train.device, getattr(torch, config.train.dtype))


def build_stage1(config: Config, semantics: np.ndarray) -> SemanticRecommender:
    """Stage 1's network, likewise."""
    with seeded(config):
        network = SemanticRecommender(config.model, semantics)
    return network.to(config.train.device, getattr(torch, config.train.dtype))


def restore_model(config: Config, num_items: int, tensors: dict[str, Tensor], path: Path) -> DynamicRecommender:
    """The network that a checkpoint's tensors are of, in eval mode; they hold semantics and features as well.

    Raises:
        ValueError: tensors that are not those of the configuration; said before memory is taken for it.
    """
    features = tensors.get("item_embedding.features")
    semantics = tensors.get("semantics")
    if semantics is None or tuple(semantics.shape) != (num_items + 1,) or semantics.dtype != torch.int64:
        found = "none" if semantics is None else f"{semantics.dtype} {list(semantics.shape)}"
        raise ValueError(f"load: expected a tensor `semantics` [{num_items + 1}] int64 in {path}, got {found}")
    check_fit(_shapes(config.model, num_items, semantics.numpy(), features), tensors, path)
    model = build_model(config, config.model, num_items, semantics.numpy(), features)
    load_model(model, tensors, path)
    return model.eval()


def _shapes(model: ModelConfig, num_items: int, semantics: np.ndarray, features: Tensor | None) -> dict[str, Tensor]:
    """The tensors that the network would have, without any memory for them."""
    with torch.device("meta"), _Undrawn():
        known = None if features is None else torch.empty(features.shape, dtype=features.dtype, device="meta")
        return dict(DynamicRecommender(model, num_items, semantics, known).state_dict())


class _Undrawn(TorchFunctionMode):
    """Draws and scales no random values: for those of tensors on no device, torch imports its compiler, in a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        scaled = name == "mul" and isinstance(args[1], float)
        if name in ("normal_", "uniform_") or scaled:
            return args[0] if args else kwargs["tensor"]
        if name not in ("randn", "rand"):
            return func(*args, **kwargs)
        return torch.empty(*args, **{key: value for key, value in kwargs.items() if key != "device"}, device="meta")


def _memory() -> float:
    """Bytes of this machine's memory; without bound on a system that does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _check_memory(shapes: dict[str, Tensor]) -> None:
    """Refuse a network whose parameters, gradients and moments together are more than the memory there is."""
    memory = _memory()
    name, largest = max(shapes.items(), key=lambda entry: entry[1].nbytes)
    wanted = 4 * sum(tensor.nbytes for tensor in shapes.values())
    if wanted > memory:
        raise ValueError(
            f"model: expected a network that can be trained in this machine's {memory / 2**30:,.0f} GiB, got one of "
            f"{wanted / 2**30:,.0f} GiB, the largest tensor being {name} {list(largest.shape)}"
        )


def check_memory(config: Config, num_items: int, rows: int) -> None:
    """Refuse a network, or a step over a batch of `rows` at most, that this machine's memory cannot hold.

    Whatever the semantics and features will be. Of a step only what no step goes without is counted, forward and
    backward: the sequences' embeddings, and the candidates or what is held of the logits.

    Raises:
        ValueError: see `build_model`.
    """
    _check_memory(_shapes(config.model, num_items, np.minimum(np.arange(num_items + 1), 1), None))
    model, train = config.model, config.train
    batch, size = min(train.batch_size, rows), 8 if train.dtype == "float64" else 4
    numbers = {"length and dim": model.length * model.dim}  # of the backbone's states, and of the generators'
    if model.generates:
        numbers["generator_length and generator_dim"] = model.encoder_length * model.code_dim
    largest = max(numbers, key=numbers.__getitem__)
    states = 2 * size * batch * numbers[largest]
    if train.loss == "full_softmax":
        held = 2 * batch if model.backend == "reference" else min(batch, KEPT_ROWS)
        fields, scored = "batch_size", size * held * num_items
    elif train.loss == "sampled_softmax_log_q" and train.shared_negatives > 0:
        fields, scored = "batch_size and shared_negatives", 2 * size * batch * (1 + train.shared_negatives)
    else:
        fields, scored = "batch_size and negatives", (8 + 2 * size * model.dim) * batch * (1 + train.negatives)
    if states > scored:
        fields = f"batch_size, {largest}"
    memory = _memory() if train.device == "cpu" else math.inf
    if states + scored > memory:
        raise ValueError(
            f"{fields}: expected a step that fits into this machine's {memory / 2**30:,.0f} GiB, got one of at least "
            f"{(states + scored) / 2**30:,.0f} GiB with a batch of {batch:,} sequences"
        )


def stage1_config(config: Config) -> Config | None:
    """The configuration without the sections that stage 1 does not read: equal ones train the same stage 1.

    Returns:
        None where there is no stage 1.
    """
    if not (config.model.semantic_trunk or config.train.semantic_start):
        return None
    model, train = replace(config.model, item=ItemConfig()), replace(config.train, stage2=Stage2Config())
    return replace(config, model=model, train=train)


def train_solid(
    config: Config,
    dataset: Dataset,
    split: Split,
    semantics: np.ndarray,
    validate: Validate | None,
    *,
    features: Tensor | None = None,
    validate_stage1: Validate | None = None,
    epochs: Mapping[str, int] | None = None,
    folder: Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[DynamicRecommender, list[Stage]]:
    """Train both stages.

    Stage 1 minimises Eq. 12 over a complete model of the semantic sequences; the codebook is then its semantic
    embedding table; stage 2 minimises Eq. 13 over the model of the items, which starts from stage 1 as
    `stage2_start` says. A configuration without a semantic trunk has a stage 1 only with `semantic_start`.

    Args:
        semantics: [V + 1] int64 from Module 1.
        features: [V + 1, F] float32, for `item_features`.
        validate: the monitored metric; None trains each stage for so many `epochs` and leaves it at the last one.
        validate_stage1: the metric of stage 1, where it is another.
        epochs: at most so many of each stage, by its name, in place of the configuration's.
        folder: holds a sub-folder a stage; what is there is resumed.

    Source: paper, Algorithm 1.
    """

    def train(name: str, network: Trainable, of: Config, by: Validate | None = validate, *later: str) -> Stage:
        if epochs is not None:
            of = replace(of, train=replace(of.train, epochs=epochs[name]))
        return train_stage(
            name,
            network,
            dataset,
            split,
            replace(config.train, epochs=of.train.epochs),
            by,
            fields=of.flat(),
            folder=None if folder is None else folder / name,
            followed_by=[] if folder is None else [folder / stage for stage in later],
            reporter=reporter,
        )

    model = build_model(config, config.model, dataset.num_items, semantics, features)
    own = stage1_config(config)
    if own is None:
        return model, [train("stage2", model, config)]
    stage1 = build_stage1(config, semantics)
    first = train("stage1", stage1, own, validate_stage1 or validate, "stage2")
    start_from(model, stage1, config.train.stage2.stage2_start)
    return model, [first, train("stage2", model, config)]
