"""The bytes of a file: inflated within bounds, recognised by how they start, refused where they are no table."""

from __future__ import annotations

import difflib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"
BLOCK = 1 << 24  # bytes read at once
# A gzip file may hold a thousand times its size. Tables shrink to a fifth or a tenth; what grows beyond these bounds is
# a bomb, and is given up before it fills the memory.
MOST_INFLATION = 100
ALWAYS_INFLATED = 1 << 26

# What is no table, by its first bytes, and what to do about it. Pickles are never read: they run code.
FOREIGN = (
    (GZIP_MAGIC, "a file that was gzipped twice (gunzip it once)"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook (unzip it, or save the sheet as CSV)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (save the sheet as CSV)"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file (decompress it: zstd -d)"),
    (b"BZh", "a bzip2 file (decompress it: bunzip2)"),
    (b"\xfd7zXZ", "an xz file (decompress it: unxz)"),
    (b"7z\xbc\xaf", "a 7-Zip archive (unpack it)"),
    (b"Rar!", "a RAR archive (unpack it)"),
    (b"SQLite format 3", "an SQLite database (export the table as CSV)"),
    (b"\x89HDF", "an HDF5 file (write it as Parquet or CSV)"),
    (b"\x93NUMPY", "a numpy array (load it and pass the arrays)"),
    (b"\x80\x04\x95", "a pickle, which is never read because it can run code (write it as Parquet or CSV)"),
    (b"\x80\x05\x95", "a pickle, which is never read because it can run code (write it as Parquet or CSV)"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a Git LFS pointer in the place of the file (git lfs pull fetches it)"),
)
WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<table")


def check_path(path: Path, name: str) -> None:
    """Refuse a path that is no file, and suggest the nearest name beside it.

    Raises:
        ValueError: nothing there, a folder, a pipe or a device.
    """
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir() if entry.is_file())
        raise ValueError(
            f"{name}: expected a file, got the folder {str(path)!r} with {', '.join(files[:8]) or 'no files'}"
        )
    if not path.exists():
        raise ValueError(f"{name}: expected an existing file, got {str(path)!r}{nearest_file(path)}")
    if not path.is_file():
        raise ValueError(f"{name}: expected a regular file, got {str(path)!r}, a pipe or a device (write it to a file)")


def nearest_file(path: Path) -> str:
    """The hint that names the file beside `path` whose name is nearest; empty without one."""
    try:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        names = []
    if not path.parent.is_dir():
        return f" (there is no folder {str(path.parent)!r})"
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f" (did you mean {str(path.parent / near[0])!r}?)" if near else ""


def inflated(path: Path, where: str, size: int) -> Iterator[bytes]:
    """Yield the contents of a plain or gzipped file in pieces of at most `size` bytes, never more than the bounds.

    Raises:
        ValueError: a file that cannot be read, is cut short, or inflates beyond 64 MiB and a hundred times its size.
    """
    limit = max(ALWAYS_INFLATED, MOST_INFLATION * path.stat().st_size)
    try:
        with open(path, "rb") as start:
            zipped = start.read(2) == GZIP_MAGIC
        with gzip.open(path) if zipped else open(path, "rb") as file:
            total = 0
            while data := file.read(size):
                total += len(data)
                if zipped and total > limit:
                    raise ValueError(
                        f"{where}: expected a gzip file that inflates to at most {limit:,} bytes ({MOST_INFLATION} "
                        "times its size), got a larger one (if it is meant so, inflate it first: gunzip)"
                    )
                yield data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{where}: expected a readable file, got {str(path)!r} ({_reason(error, path.stat().st_size)})"
        ) from error


def read_file(path: Path, name: str) -> bytes:
    """The contents of a file of a table, inflated.

    Raises:
        ValueError: what `check_path` and `inflated` refuse, an empty file, or one of a kind that holds no table.
    """
    check_path(path, name)
    contents = io.BytesIO()  # grows in place and gives what it holds, where a join would hold all of it twice
    for piece in inflated(path, name, BLOCK):
        contents.write(piece)
    data = contents.getvalue()
    if not data:
        raise ValueError(f"{name}: expected a header and rows, got the empty file {str(path)!r}")
    for start, kind in FOREIGN:
        if data.startswith(start):
            raise ValueError(f"{name}: expected a table as text, JSON lines or Parquet, got {str(path)!r}, {kind}")
    if data[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB_PAGES):
        raise ValueError(
            f"{name}: expected a table as text, JSON lines or Parquet, got {str(path)!r}, a web page or XML "
            "(perhaps the message of a failed download)"
        )
    return data


def binary_columns(data: bytes, where: str) -> list[str]:
    """The column names of a Parquet or Arrow (Feather) file.

    Raises:
        ValueError: a damaged file.
    """
    reader = pl.read_parquet_schema if data.startswith(PARQUET_MAGIC) else pl.read_ipc_schema
    try:
        return list(reader(io.BytesIO(data)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise ValueError(_damaged(data, where, error)) from error


def read_binary(data: bytes, where: str, columns: list[str]) -> pl.DataFrame:
    """These columns of a Parquet or Arrow file.

    Raises:
        ValueError: a damaged file.
    """
    reader = pl.read_parquet if data.startswith(PARQUET_MAGIC) else pl.read_ipc
    try:
        return reader(io.BytesIO(data), columns=columns)
    # polars panics, outside the tree of Exception, where lengths inside the file contradict each other.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise ValueError(_damaged(data, where, error)) from error


def _damaged(data: bytes, where: str, error: BaseException) -> str:
    kind = "Parquet" if data.startswith(PARQUET_MAGIC) else "Arrow"
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{where}: expected a readable {kind} file, got a damaged one ({said}); write or fetch it again"


def _reason(error: Exception, size: int) -> str:
    if isinstance(error, EOFError):
        return f"the gzip file of {size:,} bytes is cut short; fetch it again"
    return str(error)
