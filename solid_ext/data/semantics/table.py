"""The result of Module 1: one semantic per item, and what is known about how good the semantics are."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from solid_ext.files import written


@dataclass(frozen=True, eq=False)
class Semantics:
    """One semantic per item.

    Attributes:
        table: `[V + 1] int64`; `table[0]` is 0 (padding), the others 1..C.
        count: C. The last semantic, C, is the fallback for items without category or features, and for items
            unseen in use.
        source: where the semantics come from.
        names: `[C]` names of semantics 1..C, or None.
        report: how good they are, see `solid_ext.data.semantics.quality`.
        residual: `[V + 1, S - 1] int64`, codes of what the levels before left over (residual k-means), again 1..C
            with 0 for padding and C for items without features; None for one level.
        features: `[V + 1, F] float32`, what was clustered, each row L2-normalised; None for categories, and not saved.

    Raises:
        TypeError: a table of another dtype or number of dimensions.
        ValueError: a table, residual codes or names that do not fit C or each other.

    Source: docs/method.md#module-1-item-to-semantic.
    """

    table: np.ndarray
    count: int
    source: str
    names: list[str] | None = None
    report: dict[str, Any] = field(default_factory=dict)
    residual: np.ndarray | None = None
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        table = self.table
        if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 1 or table.size < 2:
            raise TypeError(f"Semantics: expected table [V + 1] int64, got {table!r:.80}")
        residual = self.residual
        if residual is not None and (
            residual.dtype != np.int64 or residual.ndim != 2 or residual.shape[0] != table.size
        ):
            raise ValueError(
                f"Semantics: expected residual [{table.size}, S - 1] int64, got {residual.dtype} {list(residual.shape)}"
            )
        levels = self.levels
        if levels[0].any() or levels[1:].min() < 1 or levels[1:].max() > self.count:
            raise ValueError(
                f"Semantics: expected 0 for padding and 1..{self.count} else, got {levels[0].max()} and "
                f"{levels[1:].min()}..{levels[1:].max()}"
            )
        if self.names is not None and len(self.names) != self.count:
            raise ValueError(f"Semantics: expected {self.count} names, got {len(self.names)}")

    @property
    def levels(self) -> np.ndarray:
        """`[V + 1, S] int64`: the table, then the residual codes."""
        first = self.table[:, None]
        return first if self.residual is None else np.concatenate([first, self.residual], axis=1)

    @property
    def fallback(self) -> int:
        """C, the semantic of items about which nothing is known."""
        return self.count

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: `levels`, and the rest as JSON in its header."""
        described = {"count": self.count, "source": self.source, "names": self.names, "report": self.report}
        levels, text = np.ascontiguousarray(self.levels), json.dumps(described)
        with written(Path(path)) as partial:
            save_file({"levels": levels}, partial, metadata={"semantics": text, "sha256": _checksum(levels, text)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Semantics:
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing, holds something else, or is not as it was written.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                levels = file.get_tensor("levels")
            described = json.loads(metadata["semantics"])
            if metadata.get("sha256") != _checksum(levels, metadata["semantics"]):
                raise ValueError("another content than its sha256")
            return cls(levels[:, 0].copy(), residual=levels[:, 1:] if levels.shape[1] > 1 else None, **described)
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"Semantics: expected a file of semantics, got {str(path)!r} ({error})") from error


def _checksum(levels: np.ndarray, described: str) -> str:
    head = f"{described} {levels.dtype} {list(levels.shape)}"
    return hashlib.sha256(head.encode() + levels.tobytes()).hexdigest()
