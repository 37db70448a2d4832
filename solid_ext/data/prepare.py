"""From rows with raw ids to flat arrays with numbered items: every rule that drops, orders or fills a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from solid_ext.data.histories import blocks_of_users
from solid_ext.data.tables import MISSING, without_markers

MAX_ITEMS = np.iinfo(np.int32).max
SECONDS_PER_DAY = 86_400
NEGATIVES = 99  # of the sampled protocol
MILLION = 1_000_000
NO_TIMES = "none: order of the source"
AS_THEY_ARE, MILLIONTHS = "as in the source", "millionths of the source's unit"  # units of times that were numbers
PIECE = 1 << 18  # rows whose text is compared at a time
# What a report says only where it is so: of the whole, whatever it said of a part.
OF_THE_WHOLE = ("users_with_few_unseen_items", "users_with_all_items", "note_unseen", "note_ties", "note_missing_times")
SPARSE = 8  # whole ids that leave more than this many places a row empty are numbered by hashing


@dataclass(frozen=True)
class Indexed:
    """Interactions sorted by user and time, as the arrays of a `Dataset`, and what happened to the rows."""

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series
    report: dict[str, int | str]


def index_interactions(frame: pl.DataFrame, *, drop_duplicates: bool = True) -> Indexed:
    """Number users and items and sort the rows; each rule is counted in the report.

    * A row without user or item is dropped (`rows_without_ids`).
    * A row equal to an earlier one in user, item and timestamp is dropped (`exact_duplicates`), unless
      `drop_duplicates` is off. The same user and item at another time is kept (`repeated_pairs`), and so is a row
      without a time: nothing says that it is the same.
    * Users and items are numbered by their sorted raw ids, never by first appearance, which would tell their
      order.
    * Rows are sorted by user and time; equal times keep the order of the source, which may know more than the times
      do (dates without hours). Rows that share their time with the one before (`tied_timestamps`) and users of whom
      the order of the source thereby chooses one of the last two items (`users_with_tied_ends`) are counted.
    * Without any time the order of the source is the order of the interactions, and there are no timestamps.
      Where only some are missing (`missing_timestamps`), a row takes the time of the row before it of the
      same user in the source, the first ones that of the row after. A user without any time
      (`users_without_timestamps`) takes the earliest time of all, so that a split by time never puts what is
      unknown into the future.
    * Timestamps become int64 (`timestamp_unit`): whole numbers as they are, dates in seconds since 1970
      (UTC); finer fractions in millionths of that.

    Args:
        frame: columns `user_id`, `item_id`, optionally `timestamp`, as `read_interactions` returns them. They are taken
            out of it, so that the memory of raw ids is free once these are numbered.
        drop_duplicates: off where the source is known to list an interaction once.

    Raises:
        ValueError: no row is left, or fractional times too large for 64 bits.
    """
    read = frame.height
    known = frame["user_id"].is_not_null() & frame["item_id"].is_not_null()
    rows = int(known.sum())
    if rows == 0:
        raise ValueError(f"interactions: expected rows with a user and an item, got {read:,} rows without")

    def taken(name: str) -> pl.Series:
        column = frame.drop_in_place(name)
        return column if rows == read else column.filter(known)

    users, user_ids = _number(taken("user_id"))
    items, item_ids = _number(taken("item_id"))
    if item_ids.len() > MAX_ITEMS:
        raise ValueError(f"interactions: expected at most {MAX_ITEMS:,} items, got {item_ids.len():,}")
    times = taken("timestamp") if "timestamp" in frame.columns else None
    missing = rows if times is None else times.null_count()
    unit = NO_TIMES
    if times is not None:
        times, unit = (None, NO_TIMES) if missing == rows else (times, unit_of(times))
    found = _sorted_by_user(users, items, times, unit, user_ids.len(), item_ids.len(), drop_duplicates)
    report: dict[str, int | str] = {
        "rows_read": read,
        "rows_without_ids": read - rows,
        "exact_duplicates": rows - found.items.size,
        "missing_timestamps": missing,
        "users_without_timestamps": found.untimed,
    }
    if times is not None:
        if missing:
            report["note_missing_times"] = missing_times_note(missing)
        report |= _ties(found, user_ids)
    report |= {"repeated_pairs": found.items.size - int(found.own.sum()), "timestamp_unit": unit}
    report |= _few_unseen(found.own, user_ids, item_ids.len())
    return Indexed(
        offsets=_offsets(found.counts),
        items=found.items,
        timestamps=found.timestamps,
        user_ids=user_ids.alias("user_id"),
        item_ids=item_ids.alias("item_id"),
        report=report,
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


class _Sorted(NamedTuple):
    """The rows that stay, by user and time, and what each user has of them.

    Attributes:
        items: `[N] int32`, from 1.
        timestamps: `[N] int64` or None.
        counts: `[U] int64` rows.
        own: `[U] int64` different items.
        tied: rows that share their time with the one before.
        open_ended: `[U] bool`, whether equal times leave open which item is the last or the one before.
        untimed: users without any time.
    """

    items: np.ndarray
    timestamps: np.ndarray | None
    counts: np.ndarray
    own: np.ndarray
    tied: int
    open_ended: np.ndarray
    untimed: int


def _sorted_by_user(
    users: np.ndarray,
    items: np.ndarray,
    times: pl.Series | None,
    unit: str,
    num_users: int,
    num_items: int,
    drop_duplicates: bool,
) -> _Sorted:
    """Sort rows of numbered users and items, a block of users after the other: all at once would be several times more.

    Without times all rows stay, in the order of the source.
    """
    counts, own = np.zeros(num_users, dtype=np.int64), np.zeros(num_users, dtype=np.int64)
    kept = np.empty(users.size, dtype=np.int32)
    timestamps = None if times is None else np.empty(users.size, dtype=np.int64)
    earliest = None if times is None else times.min()
    open_ended = np.zeros(num_users, dtype=bool)
    filled, tied, untimed = 0, 0, num_users if times is None else 0
    for block in blocks_of_users(_offsets(np.bincount(users, minlength=num_users))):
        rows = np.flatnonzero((users >= block.start) & (users < block.stop))
        user, item, size = users[rows] - np.int32(block.start), items[rows], block.stop - block.start
        if times is None:
            order = sorted_rows(user)
        else:
            order, time, without = _in_time_order(user, item, times.gather(rows), earliest, drop_duplicates)
            untimed += without
        user, item = user[order], item[order]
        part = slice(filled, filled + order.size)
        filled = part.stop
        kept[part] = item + np.int32(1)
        counts[block] = np.bincount(user, minlength=size)
        own[block] = _items_of_users(user, item, size, num_items)
        if timestamps is not None:
            timestamps[part] = in_unit(time, unit)
            ties, open_ended[block] = _ties_of(user, timestamps[part])
            tied += ties
    timestamps = None if timestamps is None else timestamps[:filled]
    return _Sorted(kept[:filled], timestamps, counts, own, tied, open_ended, untimed)


def sorted_rows(key: np.ndarray) -> np.ndarray:
    """The rows in the order of their keys `[N]`, equal keys in the order of the rows: `[N] int64`.

    Key and row are sorted as one integer wherever both fit in 64 bits, several times faster than an argsort.
    """
    bits = max(key.size - 1, 1).bit_length()
    if key.size and key.dtype.kind in "iu" and int(key.max()) - (low := int(key.min())) < 1 << (63 - bits):
        packed = (key.astype(np.int64) - low) << bits
        packed |= np.arange(key.size)
        return _sorted(packed) & ((1 << bits) - 1)
    return np.argsort(key, kind="stable")


def align_items(table: pl.DataFrame, item_ids: pl.Series) -> tuple[pl.DataFrame, dict[str, int | str]]:
    """Bring item metadata into item order, one row per item.

    Items that the table lacks get nulls (`items_without_metadata`), ids that never occur in the interactions
    are dropped (`metadata_never_interacted`), of several rows with one id the first counts
    (`metadata_duplicates`), and rows without an id are dropped (`metadata_without_ids`). Empty text is null;
    lists are joined by "|". Ids are compared as text where one side holds integers and the other text.

    Args:
        table: column `item_id` and any metadata.
        item_ids: `[V]`.

    Returns:
        The table of `[V]` rows, and the counts.
    """
    known = table.drop_nulls("item_id")
    single = known.unique("item_id", keep="first", maintain_order=True)
    key = item_ids.dtype if item_ids.dtype == single["item_id"].dtype else pl.String
    # Only ids and rows are joined: a column of the table may have any name.
    rows = single.select(pl.col("item_id").cast(key)).with_row_index("row")
    row = (
        item_ids.cast(key)
        .alias("item_id")
        .to_frame()
        .join(rows, on="item_id", how="left", maintain_order="left")["row"]
    )
    matched = row.count()
    aligned = pl.DataFrame([item_ids.alias("item_id"), *(single[name].gather(row) for name in single.columns[1:])])
    said: dict[str, int | str] = {}
    if matched * 2 < item_ids.len():
        said["note_items"] = (
            f"Only {matched:,} of {item_ids.len():,} items are described (ids such as {_sample(item_ids)} in the "
            f"interactions, {_sample(single['item_id'])} in the table of items)."
        )
    return aligned.with_columns(_metadata(aligned[name]) for name in aligned.columns[1:]), said | {
        "items_without_metadata": item_ids.len() - matched,
        "metadata_never_interacted": single.height - matched,
        "metadata_duplicates": known.height - single.height,
        "metadata_without_ids": table.height - known.height,
    }


def _number(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return the index `[N] int32` of every id among the sorted different ids, and these."""
    if ids.dtype == pl.Int64:
        codes = ids.to_numpy()
        low, high = int(codes.min()), int(codes.max())
        if high - low < SPARSE * codes.size:
            codes = codes - low
            seen = np.zeros(high - low + 1, dtype=bool)
            seen[codes] = True
            return (np.cumsum(seen, dtype=np.int32) - np.int32(1))[codes], pl.Series(np.flatnonzero(seen) + low)
    if ids.dtype == pl.String:
        hashed = ids.hash()  # integers are told apart and joined in a fraction of the time
        different = ids.gather(hashed.arg_unique()).sort()
        numbers = _places(hashed, different.hash())
        # A piece at a time: the text of all rows once more would be what takes the most memory.
        pieces = range(0, ids.len(), PIECE)
        if all((different.gather(numbers[at : at + PIECE]) == ids.slice(at, PIECE)).all() for at in pieces):
            return numbers, different  # no two of these ids share a hash
    different = ids.unique().sort()
    return _places(ids, different), different


def _places(keys: pl.Series, of: pl.Series) -> np.ndarray:
    """Where each key stands among the different ones in `of`: `[N] int32`."""
    places = of.alias("key").to_frame().with_row_index("place")
    found = keys.alias("key").to_frame().join(places, on="key", how="left", maintain_order="left")["place"]
    return found.to_numpy().astype(np.int32)


def _sorted(keys: np.ndarray) -> np.ndarray:
    # polars sorts random integers on one thread in a third of numpy's time.
    return pl.Series(keys).sort(multithreaded=False).to_numpy()


def _items_of_users(users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> np.ndarray:
    """How many different items each user has, `[U] int64`."""
    pairs = _sorted(users.astype(np.int64) * num_items + items)
    different = pairs[np.diff(pairs, prepend=-1) != 0]
    return np.bincount(different // num_items, minlength=num_users)


def _in_time_order(
    users: np.ndarray, items: np.ndarray, times: pl.Series, earliest: Any, drop_duplicates: bool
) -> tuple[np.ndarray, pl.Series, int]:
    """The rows that stay, sorted by user and time, ties in the order of the source, their times, and users without any.

    Exact duplicates are left out, and missing times are filled.
    """
    if times.null_count():
        rows = np.arange(users.size)
        if drop_duplicates:
            # A row without a time is its own only duplicate.
            known = np.flatnonzero(times.is_not_null().to_numpy())
            order, repeats = _by_user_and_time(users[known], items[known], times.gather(known), drop_duplicates)
            rows = np.delete(rows, known[order[repeats]])
        filled = pl.DataFrame({"user": users[rows], "time": times.gather(rows)})
        filled = filled.with_columns(pl.col("time").forward_fill().over("user"))
        filled = filled.with_columns(pl.col("time").backward_fill().over("user"))
        without = filled.filter(pl.col("time").is_null())["user"].n_unique()
        found = filled["time"].fill_null(pl.lit(earliest, dtype=times.dtype))
        order, _ = _by_user_and_time(users[rows], items[rows], found, False)
        return rows[order], found.gather(order), without
    order, repeats = _by_user_and_time(users, items, times, drop_duplicates)
    order = order[~repeats] if repeats.any() else order
    return order, times.gather(order), 0


def missing_times_note(missing: int) -> str:
    """What a report says of that many rows without a time."""
    return f"{missing:,} rows have no time; each takes that of the row before it of the same user."


def _by_user_and_time(
    users: np.ndarray, items: np.ndarray, times: pl.Series, find_repeats: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows by user and time, and which of them, in it, repeat an earlier one with the same item."""
    time = times.to_physical().to_numpy()
    order = sorted_rows(time)
    order = order[sorted_rows(users[order])]
    repeats = np.zeros(order.size, dtype=bool)
    if find_repeats:
        by_user, by_time = users[order], time[order]
        tied = (by_user[1:] == by_user[:-1]) & (by_time[1:] == by_time[:-1])
        # Only among rows that share user and time can there be repeats; each run of them has a number.
        run = np.cumsum(np.append(True, ~tied))
        among = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
        runs, found = run[among], items[order[among]]
        by_item = sorted_rows(found)
        by_item = by_item[sorted_rows(runs[by_item])]
        again = (runs[by_item][1:] == runs[by_item][:-1]) & (found[by_item][1:] == found[by_item][:-1])
        repeats[among[by_item[1:][again]]] = True
    return order, repeats


def _ties_of(users: np.ndarray, times: np.ndarray) -> tuple[int, np.ndarray]:
    """How many rows share their time with the one before, and for which users, all of whom have rows, that leaves open
    what is tested."""
    tied = np.zeros(users.size, dtype=bool)
    tied[1:] = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    ends = np.flatnonzero(np.append(users[1:] != users[:-1], True))
    before = np.maximum(ends - 1, 0)
    return int(tied.sum()), tied[ends] | (tied[before] & (users[before] == users[ends]))


def _ties(found: _Sorted, user_ids: pl.Series) -> dict[str, int | str]:
    """Report equal times, and of how many users they leave open what is tested."""
    count = int(found.open_ended.sum())
    report: dict[str, int | str] = {"tied_timestamps": found.tied, "users_with_tied_ends": count}
    if count:
        report["note_ties"] = (
            f"{count:,} of {user_ids.len():,} users (such as {user_ids[int(found.open_ended.argmax())]!r}) "
            "have equal times among their last three rows: there the order of the rows in the source decides which "
            "item is tested or validated on."
        )
    return report


def _few_unseen(own: np.ndarray, user_ids: pl.Series, num_items: int) -> dict[str, int | str]:
    """Count the users who leave the sampled protocol fewer than 99 negatives; `own` are their different items."""
    short = np.flatnonzero(num_items - own < NEGATIVES)
    if short.size == 0:
        return {}
    all_of_them = int((own == num_items).sum())
    named = ", ".join(repr(user_ids[int(user)]) for user in short[:3])
    report: dict[str, int | str] = {"users_with_few_unseen_items": short.size, "users_with_all_items": all_of_them}
    left_out = f"; the {all_of_them:,} of them who had every item are left out of it" if all_of_them else ""
    report["note_unseen"] = (
        f"{short.size:,} of {user_ids.len():,} users (such as {named}) have fewer than {NEGATIVES} items, of "
        f"{num_items:,}, that they never had: the sampled protocol ranks theirs among fewer{left_out}."
    )
    return report


def _sample(ids: pl.Series) -> str:
    return ", ".join(repr(value) for value in ids.head(2).to_list()) or "none"


def unit_of(times: pl.Series) -> str:
    """What one unit of the times is as int64.

    Raises:
        ValueError: fractional times too large for 64 bits.
    """
    known = times.drop_nulls() if times.null_count() else times
    if times.dtype == pl.Date:
        return "seconds"
    if isinstance(times.dtype, pl.Datetime):
        if times.dtype.time_unit == "ns" and np.any(known.to_physical().to_numpy() % 1000):
            return "nanoseconds"
        return "microseconds" if np.any(known.dt.timestamp("us").to_numpy() % MILLION) else "seconds"
    if times.dtype.is_float():
        largest = np.abs(np.round(known.to_numpy() * MILLION)).max()
        if largest >= 2.0**63:
            raise ValueError(f"interactions: expected timestamps below 2^63 millionths, got {largest:g}")
        return MILLIONTHS
    return AS_THEY_ARE


def in_unit(times: pl.Series, unit: str) -> np.ndarray:
    """Return times, none of them missing, as int64 in the unit that `unit_of` gave for them and others."""
    if times.dtype == pl.Date:
        return times.cast(pl.Int64).to_numpy() * SECONDS_PER_DAY
    if isinstance(times.dtype, pl.Datetime):
        if unit == "nanoseconds":
            return times.to_physical().to_numpy()
        micro = times.dt.timestamp("us").to_numpy()
        return micro // MILLION if unit == "seconds" else micro
    if times.dtype.is_float():
        return np.round(times.to_numpy() * MILLION).astype(np.int64)
    return times.to_numpy()


def description_text(name: str, column: pl.Series) -> tuple[pl.Series, int]:
    """Titles or categories as text, null where there is none, and how many cells spell that something is missing.

    Lists, of lists too, are flattened and joined by "|"; a "|" inside an entry of a list becomes "/".

    Args:
        name: named in errors.
        column: numbers, text, or lists of these.

    Raises:
        TypeError: another type.
    """
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    inner: Any = column.dtype
    while isinstance(inner, pl.List):
        inner = inner.inner
    if inner.is_nested() or inner in (pl.Object, pl.Binary, pl.Duration):
        raise TypeError(f"{name}: expected text, numbers or lists of them, got {inner}")
    if not isinstance(column.dtype, pl.List):
        if column.dtype.is_float():
            return column.fill_nan(None).cast(pl.String).str.replace(r"\.0+$", ""), 0
        text = column.cast(pl.String)
        return text.set(without_markers(text).is_null(), None), int(text.str.strip_chars().is_in(MISSING).sum())
    cells = pl.DataFrame({"row": range(column.len()), "entry": column})
    while isinstance(cells["entry"].dtype, pl.List):
        # An empty list would lose its row.
        cells = cells.with_columns(pl.when(pl.col("entry").list.len() > 0).then("entry")).explode("entry")
    entries = cells["entry"].cast(pl.String)
    known = without_markers(entries).str.replace_all("|", "/", literal=True)
    joined = cells.with_columns(entry=known).group_by("row", maintain_order=True).agg(pl.col("entry").drop_nulls())
    return joined["entry"].list.join("|").replace("", None), int(entries.str.strip_chars().is_in(MISSING).sum())


def _metadata(column: pl.Series) -> pl.Series:
    inner = column.dtype.inner if isinstance(column.dtype, pl.List) else pl.Object
    if not inner.is_nested() and inner not in (pl.Object, pl.Binary, pl.Duration):
        column = column.cast(pl.List(pl.String)).list.join("|")
    return column.replace("", None) if column.dtype == pl.String else column
