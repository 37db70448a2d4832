"""The backbones by name. A backbone of one's own is another line in the table."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from solid_ext.config import ModelConfig, nearest
from solid_ext.models.backbones.bert4rec import BERT4Rec
from solid_ext.models.backbones.din import DIN
from solid_ext.models.backbones.gru4rec import GRU4Rec
from solid_ext.models.backbones.sasrec import SASRec

BACKBONES: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "din": DIN,
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "bert4rec": BERT4Rec,
}
"""For each name, what makes a module of a configuration: (embedded [B, L, d], mask [B, L]) -> [B, d]. A module with a
true attribute `reads_candidates` is also given the candidates' embeddings [B, T, d], and returns [B, T, d]."""


def check_backbone(name: str) -> None:
    """Refuse a backbone that is not in the table.

    Raises:
        ValueError: no such backbone.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}{nearest(name, BACKBONES)}")


def make_backbone(config: ModelConfig) -> nn.Module:
    """The backbone that the configuration names.

    Raises:
        ValueError: no such backbone.
    """
    check_backbone(config.backbone)
    return BACKBONES[config.backbone](config)
