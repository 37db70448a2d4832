"""The configuration as one object: replaced by name, checked, resolved, written and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from solid_ext.config.checks import check_types, check_values
from solid_ext.config.files import read_yaml
from solid_ext.config.names import Section, unknown_field
from solid_ext.config.sections import EvaluateConfig, ModelConfig, SemanticsConfig, TrainConfig

# A step of 1,024 rows over so many takes as long by the kernel as one over 65,536, the limit before there was one, took
# by torch's cross-entropy (docs/kernels/catalogue_cross_entropy.md).
FULL_SOFTMAX_ITEMS = 180_000
FULL_RANKING_PAIRS = 5_000_000_000


@dataclass(frozen=True)
class Config(Section):
    """Everything a run depends on besides its data."""

    semantics: SemanticsConfig = field(default_factory=SemanticsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def checked(self) -> Config:
        """The configuration itself, if every value is in its range.

        Raises:
            ValueError: the first one that is not.
            TypeError: one of another type.
        """
        check_types(self)
        check_values(self)
        return self

    def replace(self, **fields: Any) -> Config:
        """A checked copy with fields set by their name alone: `config.replace(dim=64, epochs=5)`.

        Raises:
            ValueError: an unknown field, or a value out of range.
            TypeError: a value of another type; numbers of numpy are taken as Python's.
        """
        known = self.flat()
        for name in fields:
            if name not in known:
                raise ValueError(f"config: {unknown_field(name, sorted(known))}")
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in fields.items()}
        changed: Config = _with(self, plain)
        return changed.checked()

    def resolved(self, users: int, items: int) -> Config:
        """The same with every "auto" of the training decided for a dataset of so many users and items."""
        train, fields = self.train, dict[str, Any]()
        pairwise = self.model.backbone == "din"  # a state a pair: no whole catalogue
        if train.loss == "auto":
            whole = not (pairwise or train.shared_negatives) and items <= FULL_SOFTMAX_ITEMS
            fields["loss"] = "full_softmax" if whole else "sampled_softmax_log_q"
        if train.validation == "auto":
            whole = not pairwise and users * items <= FULL_RANKING_PAIRS
            fields["validation"] = "full:ndcg@10" if whole else "sampled:ndcg@10"
        return self.replace(**fields)

    def flat(self) -> dict[str, Any]:
        """Every field under its own name."""
        return _flat(self)

    def to_yaml(self) -> str:
        """The resolved configuration, one `name: value` line a field."""
        return yaml.safe_dump(self.flat(), sort_keys=False)

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the defaults, by name."""
        default = Config().flat()
        return {name: value for name, value in self.flat().items() if value != default[name]}

    @staticmethod
    def from_yaml(path: str | Path, base: Config | None = None) -> Config:
        """Read a configuration; fields that the file leaves out are those of `base`, the defaults.

        Raises:
            ValueError, TypeError: see `read_yaml` and `replace`.
        """
        return (base or Config()).replace(**read_yaml(path))


def _with(section: Any, fields: Mapping[str, Any]) -> Any:
    """The section with those of the fields set that it, or a section inside it, has."""
    changes: dict[str, Any] = {}
    for name, value in vars(section).items():
        if dataclasses.is_dataclass(value):
            changes[name] = _with(value, fields)
        elif name in fields:
            changes[name] = fields[name]
    return dataclasses.replace(section, **changes)


def _flat(section: Any) -> dict[str, Any]:
    """Every field of the section and of those inside it under its own name."""
    found: dict[str, Any] = {}
    for name, value in vars(section).items():
        found |= _flat(value) if dataclasses.is_dataclass(value) else {name: value}
    return found
