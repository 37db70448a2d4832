"""Features of items read from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from safetensors import SafetensorError, safe_open

from solid_ext.data.dataset import Dataset

KINDS = (".npy", ".safetensors", ".parquet")


def read_features(path: str | Path, dataset: Dataset, *, name: str) -> np.ndarray:
    """Read a feature of every item, by raw item id or in the order of the dataset's items.

    | file | holds |
    |---|---|
    | .npy | `[V, F]` or `[V + 1, F]` (padding first), in item order; an array of objects is a pickle and refused |
    | .safetensors | a tensor `features` like that, or `[N, F]` beside `item_id [N]`, integers |
    | .parquet | a column `item_id` and either one column of lists or columns of numbers |

    Args:
        path: of the file.
        dataset: item order is that of `dataset.item_ids`: sorted, whatever the order in the interactions.
        name: what the file is called in error messages.

    Returns:
        `[V + 1, F] float32`; row 0, and with ids the rows of items that the file leaves out, are zero.

    Raises:
        ValueError: a file that is missing, of another kind, with another number of rows, with ids twice or of no item
            of the dataset, or with NaN or infinite values.

    Source: docs/method.md#module-1-item-to-semantic.
    """
    path = Path(path)
    if path.suffix not in KINDS:
        raise ValueError(f"{name}: expected a file {', '.join(KINDS)}, got {str(path)!r}")
    if not path.is_file():
        raise ValueError(f"{name}: expected an existing file, got {str(path)!r}")
    try:
        rows, ids = {".npy": _npy, ".safetensors": _safetensors, ".parquet": _parquet}[path.suffix](path)
    except (OSError, EOFError, ValueError, SafetensorError, pl.exceptions.PolarsError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: expected features in {str(path)!r}, got a file that has none ({message})") from error
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or rows.shape[1] == 0:
        raise ValueError(
            f"{name}: expected rows of numbers [V, F] in {str(path)!r}, got {rows.dtype} {list(rows.shape)}"
        )
    rows = rows.astype(np.float32, copy=False)
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        raise ValueError(
            f"{name}: expected finite features in {str(path)!r}, got NaN, infinity or more than float32 holds in row "
            f"{int(broken.argmax())}"
        )
    if ids is not None:
        return _by_id(rows, ids, dataset, f"{name} in {str(path)!r}")
    if rows.shape[0] not in (dataset.num_items, dataset.num_items + 1):
        raise ValueError(
            f"{name}: expected {dataset.num_items:,} rows (or one more, for padding) in {str(path)!r}, got "
            f"{rows.shape[0]:,}"
        )
    features = np.zeros((dataset.num_items + 1, rows.shape[1]), dtype=np.float32)
    features[1:] = rows[-dataset.num_items :]
    return features


def _npy(path: Path) -> tuple[np.ndarray, None]:
    return np.load(path, allow_pickle=False), None


def _safetensors(path: Path) -> tuple[np.ndarray, pl.Series | None]:
    with safe_open(path, framework="np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    if "features" not in tensors or not set(tensors) <= {"features", "item_id"}:
        raise ValueError(f"expected tensors features and perhaps item_id, got {', '.join(sorted(tensors)) or 'none'}")
    ids = tensors.get("item_id")
    if ids is not None and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.size != tensors["features"].shape[0]):
        raise ValueError(f"expected item_id [N] of integers, one a row, got {ids.dtype} {list(ids.shape)}")
    return tensors["features"], None if ids is None else pl.Series(ids)


def _parquet(path: Path) -> tuple[np.ndarray, pl.Series]:
    table = pl.read_parquet(path, glob=False)
    if "item_id" not in table.columns or table.width < 2:
        raise ValueError(f"expected a column item_id and columns of features, got {', '.join(table.columns) or 'none'}")
    columns = table.drop("item_id")
    if columns.null_count().sum_horizontal().item():
        raise ValueError("expected a value in every place, got missing ones")
    first = columns.to_series()
    if isinstance(first.dtype, (pl.List, pl.Array)):
        if columns.width > 1:
            raise ValueError(f"expected one column of lists, got {', '.join(columns.columns)}")
        lengths = first.list.len() if isinstance(first.dtype, pl.List) else pl.Series([first.dtype.shape[0]])
        if lengths.n_unique() != 1:
            raise ValueError(f"expected lists of one length, got {lengths.min()!r} to {lengths.max()!r}")
        flat = first.explode().cast(pl.Float32).to_numpy()
        return flat.reshape(table.height, -1), table["item_id"]
    return columns.cast(pl.Float32).to_numpy(), table["item_id"]


def _by_id(rows: np.ndarray, ids: pl.Series, dataset: Dataset, where: str) -> np.ndarray:
    """Put rows where their ids say; ids of items that the dataset does not have are passed over."""
    text = ids.cast(pl.String)
    if text.null_count() or text.n_unique() != text.len():
        twice = text.filter(text.is_duplicated() | text.is_null())[0]
        raise ValueError(f"{where}: expected every item_id once, got {twice} more than once")
    own = dataset.item_ids.cast(pl.String).to_frame("id").with_row_index("place", offset=1)
    found = pl.DataFrame({"id": text}).with_row_index("row").join(own, on="id", how="inner")
    if found.height == 0:
        raise ValueError(
            f"{where}: expected ids of the dataset's items, like {dataset.item_ids[0]!s}, got none, but {text[0]!s}"
        )
    features = np.zeros((dataset.num_items + 1, rows.shape[1]), dtype=np.float32)
    features[found["place"].to_numpy()] = rows[found["row"].to_numpy()]
    return features
