"""A folder of Parquet tables with a JSON description, which is either there as a whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

METADATA = "metadata.json"
FORMAT = "solid_ext dataset"
FORMAT_VERSION = 1


def write_folder(
    folder: Path, tables: Mapping[str, pl.DataFrame], metadata: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Write `<name>.parquet` for every table and `metadata.json`, all or nothing.

    The folder is written beside its place and renamed. An existing one is refused; with `overwrite` it is
    replaced if it is such a folder itself, and nothing else is ever deleted.

    Raises:
        ValueError: a folder that exists, or cannot be written.
    """
    if folder.exists() and not overwrite:
        raise ValueError(
            f"Dataset.save: expected a new folder, got the existing {str(folder)!r} (overwrite=True replaces it)"
        )
    if folder.exists() and not is_dataset_folder(folder):
        raise ValueError(
            f"Dataset.save: expected a dataset folder to overwrite, got {str(folder)!r} with other contents"
        )
    marker = uuid.uuid4().hex
    fresh, old = (folder.with_name(f".{folder.name}.{kind}-{marker}") for kind in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        for name, table in tables.items():
            table.write_parquet(fresh / f"{name}.parquet")
        described = {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}
        (fresh / METADATA).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(
            f"Dataset.save: expected a folder that can be written, got {str(folder)!r} ({error})"
        ) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read_folder(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Read the tables and the description of a folder that `write_folder` wrote.

    Raises:
        ValueError: a missing or unreadable file, another format or another format version.
    """
    if not folder.is_dir():
        raise ValueError(f"Dataset.load: expected a dataset folder, got {str(folder)!r}, which is not a folder")
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Dataset.load: expected a readable {METADATA} in {str(folder)!r}, got {error}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"Dataset.load: expected {METADATA} of a {FORMAT}, got another one in {str(folder)!r}")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"Dataset.load: expected format version {FORMAT_VERSION}, got {version!r} in {str(folder)!r}")
    try:
        tables = {name: pl.read_parquet(folder / f"{name}.parquet", glob=False) for name in names}
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"Dataset.load: expected readable tables in {str(folder)!r}, got {error}") from error
    return tables, metadata


def is_dataset_folder(folder: Path) -> bool:
    """Whether the folder claims to be one that `write_folder` wrote, of whatever version."""
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT
