"""A folder of arrays, Parquet tables and a JSON description, which is either there as a whole or not at all.

The arrays are those that grow with the interactions. They lie in a safetensors file as they are in memory, which is
mapped and not read: an array takes memory where it is looked at, and the system may take it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from solid_ext.files import (
    check_new_folder,
    describe_folder,
    elsewhere,
    foreign_to,
    read_whole,
    verify_folder,
    written,
    written_folder,
)

METADATA = "metadata.json"
FORMAT = "solid_ext dataset"
FORMAT_VERSION = 3
ARRAYS = "interactions.safetensors"


def write_folder(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    tables: Mapping[str, pl.DataFrame],
    metadata: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write the arrays, `<name>.parquet` for every table and `metadata.json` with their checksums, all or nothing.

    The folder is written beside its place and renamed. An existing one is refused; with `overwrite` it is
    replaced if it is such a folder itself, and nothing else is ever deleted.

    Raises:
        ValueError: a folder that exists, or cannot be written.
    """
    with written_folder(folder, "Dataset.save", overwrite=overwrite, ours=_foreign) as fresh:
        with written(fresh / ARRAYS) as partial:
            save_file(dict(arrays), partial)
        for name, table in tables.items():
            table.write_parquet(fresh / f"{name}.parquet")
        describe_folder(fresh, METADATA, {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata})


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a place where `write_folder` could not write, before what is to be written has been made.

    Raises:
        ValueError: as `write_folder`.
    """
    check_new_folder(folder, "Dataset.save", overwrite=overwrite, ours=_foreign)


class Folder(NamedTuple):
    """What a dataset folder holds; the arrays are mapped."""

    arrays: dict[str, np.ndarray]
    tables: dict[str, pl.DataFrame]
    metadata: dict[str, Any]


def read_folder(folder: Path, names: tuple[str, ...]) -> Folder:
    """Read the arrays, the tables and the description of a folder that `write_folder` wrote, all of one dataset.

    Raises:
        ValueError: a missing, unreadable or changed file, another format or another format version; a folder that is
            replaced faster than it can be read.
    """
    return read_whole("Dataset.load", lambda: folder / METADATA, lambda: _read(folder, names))[0]


def _read(folder: Path, names: tuple[str, ...]) -> Folder:
    """`read_folder` of a folder that nobody replaces."""
    if not folder.is_dir():
        raise ValueError(
            f"Dataset.load: expected a dataset folder, got {str(folder)!r}, which is not a folder{elsewhere(folder)}"
        )
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Dataset.load: expected a readable {METADATA} in {str(folder)!r}, got {error}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"Dataset.load: expected {METADATA} of a {FORMAT}, got another one in {str(folder)!r}")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"Dataset.load: expected format version {FORMAT_VERSION}, got {version!r} in {str(folder)!r} "
            "(prepare the dataset again from its source)"
        )
    metadata = verify_folder(folder, METADATA, "Dataset.load")
    try:
        tables = {name: pl.read_parquet(folder / f"{name}.parquet", glob=False) for name in names}
        with safe_open(folder / ARRAYS, framework="pt") as file:  # torch's tensors are mapped, numpy's would be copies
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except (OSError, TypeError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"Dataset.load: expected readable tables in {str(folder)!r}, got {error}") from error
    return Folder(arrays, tables, metadata)


def _foreign(folder: Path) -> str | None:
    return foreign_to(folder, METADATA, FORMAT)
