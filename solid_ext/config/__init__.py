"""The configuration: frozen dataclasses, one flat name a field, saved beside every run."""

from solid_ext.config.config import FULL_RANKING_PAIRS, FULL_SOFTMAX_ITEMS, Config
from solid_ext.config.files import read_yaml
from solid_ext.config.names import OLD_NAMES, nearest, unknown_field
from solid_ext.config.presets import DEVICE, PAPER, PRESETS
from solid_ext.config.sections import (
    CodebookConfig,
    EvaluateConfig,
    ItemConfig,
    ModelConfig,
    SemanticsConfig,
    Stage2Config,
    TrainConfig,
)

__all__ = [
    "DEVICE",
    "FULL_RANKING_PAIRS",
    "FULL_SOFTMAX_ITEMS",
    "OLD_NAMES",
    "PAPER",
    "PRESETS",
    "CodebookConfig",
    "Config",
    "EvaluateConfig",
    "ItemConfig",
    "ModelConfig",
    "SemanticsConfig",
    "Stage2Config",
    "TrainConfig",
    "nearest",
    "read_yaml",
    "unknown_field",
]
