"""The backbones by name; one's own is a line more in the table."""

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
"""name -> what makes, from a configuration, a module (embedded [B, L, d], mask [B, L]) -> [B, d]; one with an
attribute `reads_candidates` is given the candidates' embeddings [B, T, d] too and returns [B, T, d]."""


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
