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


@dataclass(frozen=True, eq=False, repr=False)
class Semantics:
    """One semantic per item.

    Attributes:
        table: `[V + 1] int64`; `table[0]` is 0 (padding), the others 1..C.
        count: C. The last semantic, C, is the fallback for items without category or features, and for items
            unseen in use.
        source: where the semantics come from.
        names: `[C]` names of semantics 1..C, or None.
        report: how good they are, see `solid_ext.data.semantics.quality`.
        features: `[V + 1, F] float32`, what was clustered, each row L2-normalised; None for categories, and not saved.

    Raises:
        TypeError: a table of another dtype or number of dimensions.
        ValueError: a table or names that do not fit C.

    Source: docs/method.md#module-1-item-to-semantic.
    """

    table: np.ndarray
    count: int
    source: str
    names: list[str] | None = None
    report: dict[str, Any] = field(default_factory=dict)
    features: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Semantics({self.count:,} from {self.source!r} of {self.table.size - 1:,} items)"

    def __post_init__(self) -> None:
        table = self.table
        if not isinstance(table, np.ndarray) or table.dtype != np.int64 or table.ndim != 1 or table.size < 2:
            raise TypeError(f"Semantics: expected table [V + 1] int64, got {table!r:.80}")
        if table[0] or table[1:].min() < 1 or table[1:].max() > self.count:
            raise ValueError(
                f"Semantics: expected 0 for padding and 1..{self.count} else, got {table[0]} and "
                f"{table[1:].min()}..{table[1:].max()}"
            )
        if self.names is not None and len(self.names) != self.count:
            raise ValueError(f"Semantics: expected {self.count} names, got {len(self.names)}")

    @property
    def fallback(self) -> int:
        """C, the semantic of items about which nothing is known."""
        return self.count

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: `table`, and the rest as JSON in its header."""
        described = {"count": self.count, "source": self.source, "names": self.names, "report": self.report}
        table, text = np.ascontiguousarray(self.table), json.dumps(described)
        with written(Path(path)) as partial:
            save_file({"table": table}, partial, metadata={"semantics": text, "sha256": _checksum(table, text)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Semantics:
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is missing, holds something else, or is not as it was written.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                table = file.get_tensor("table")
            described = json.loads(metadata["semantics"])
            if metadata.get("sha256") != _checksum(table, metadata["semantics"]):
                raise ValueError("another content than its sha256")
            return cls(table, **described)
        except (OSError, SafetensorError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"Semantics: expected a file of semantics, got {str(path)!r} ({error})") from error


def _checksum(table: np.ndarray, described: str) -> str:
    head = f"{described} {table.dtype} {list(table.shape)}"
    return hashlib.sha256(head.encode() + table.tobytes()).hexdigest()
