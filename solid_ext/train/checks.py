"""What is refused before a training starts."""

from __future__ import annotations

import torch

from solid_ext.config import Config
from solid_ext.data import Dataset, check_semantics, make_split
from solid_ext.evaluate.protocols import check_unseen
from solid_ext.models.backbones import check_backbone
from solid_ext.train.algorithm import check_memory


def check_training(config: Config, dataset: Dataset) -> None:
    """Refuse what cannot be trained, before any work and before any folder is touched.

    Raises:
        ValueError: no such device or backbone, a network or a batch larger than the memory, data that cannot be split
            or evaluated as asked, features that are not there.
    """
    check_device(config.train.device)
    check_backbone(config.model.backbone)
    split = make_split(config.evaluate.split, dataset)
    check_memory(config.resolved(dataset.num_users, dataset.num_items), dataset.num_items, len(split.train.positions))
    check_unseen(config.evaluate.split, dataset, split.valid, split.test)
    check_semantics(config.semantics, dataset)


def check_device(device: str) -> None:
    """Refuse a device that torch does not see.

    Raises:
        ValueError: no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise ValueError(f"device: expected cpu or one of the {count} CUDA devices that torch sees, got {device}")
