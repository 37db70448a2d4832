"""A folder of Parquet tables with a JSON description, which is either there as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from solid_ext.files import (
    check_new_folder,
    describe_folder,
    elsewhere,
    foreign_to,
    read_whole,
    verify_folder,
    written_folder,
)

METADATA = "metadata.json"
FORMAT = "solid_ext dataset"
FORMAT_VERSION = 2


def write_folder(
    folder: Path, tables: Mapping[str, pl.DataFrame], metadata: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Write `<name>.parquet` for every table and `metadata.json` with their checksums, all or nothing.

    The folder is written beside its place and renamed. An existing one is refused; with `overwrite` it is
    replaced if it is such a folder itself, and nothing else is ever deleted.

    Raises:
        ValueError: a folder that exists, or cannot be written.
    """
    with written_folder(folder, "Dataset.save", overwrite=overwrite, ours=_foreign) as fresh:
        for name, table in tables.items():
            table.write_parquet(fresh / f"{name}.parquet")
        describe_folder(fresh, METADATA, {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata})


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a place where `write_folder` could not write, before what is to be written has been made.

    Raises:
        ValueError: as `write_folder`.
    """
    check_new_folder(folder, "Dataset.save", overwrite=overwrite, ours=_foreign)


def read_folder(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Read the tables and the description of a folder that `write_folder` wrote, all of them of one dataset.

    Raises:
        ValueError: a missing, unreadable or changed file, another format or another format version; a folder that is
            replaced faster than it can be read.
    """
    return read_whole("Dataset.load", lambda: folder / METADATA, lambda: _read(folder, names))[0]


def _read(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
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
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"Dataset.load: expected readable tables in {str(folder)!r}, got {error}") from error
    return tables, metadata


def _foreign(folder: Path) -> str | None:
    return foreign_to(folder, METADATA, FORMAT)
