"""Cells of any kind: read without loss of a digit, or refused by a sentence that names column, row and cell."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from solid_ext import load_dataset
from solid_ext.data import Dataset

# Three moments of one microsecond, in the order last, first, second.
FINE = pd.to_datetime([f"2020-01-01T00:00:00.{nano:09d}" for nano in (3, 1, 2)])
NANO = 1_577_836_800_000_000_000
ORDER = [3, 1, 2]
HUGE = 10**39


def at(times: Any) -> Dataset:
    return load_dataset(([1] * 3, ORDER, times))


def described(**columns: Any) -> list[Any]:
    """The first column after the ids of a table of items 5 and 7."""
    table = load_dataset(([1, 1], [5, 7]), items={"item_id": [5, 7], **columns}).item_table
    return table[next(iter(columns))].to_list()


@pytest.mark.parametrize(
    "times",
    [
        FINE,
        pd.Series(FINE),
        pd.Series(FINE.tz_localize("UTC")),
        FINE.tz_localize("UTC").tz_convert("Asia/Tokyo"),
        FINE.tz_localize("UTC").array,
        pd.Series(FINE, dtype=object),
        pd.Series(FINE.tz_localize("UTC"), dtype=object),
        list(FINE),
        list(FINE.tz_localize("UTC").tz_convert("Asia/Tokyo")),
        [FINE[0], FINE[1].to_datetime64(), FINE[2]],
        list(FINE.to_numpy()),
        np.array(list(FINE.to_numpy()), dtype=object),
    ],
)
def test_nanoseconds_are_kept_however_a_column_holds_its_times(times: Any) -> None:
    data = at(times)
    assert data.items.tolist() == [1, 2, 3]
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [NANO + 1, NANO + 2, NANO + 3]
    assert data.report["timestamp_unit"] == "nanoseconds"


def test_nanoseconds_of_an_arrow_column_of_pandas_are_kept() -> None:
    pytest.importorskip("pyarrow")
    data = at(pd.Series(FINE).astype("timestamp[ns][pyarrow]"))
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [NANO + 1, NANO + 2, NANO + 3]


@pytest.mark.parametrize("unit", ["D", "s", "ms", "us", "ns"])
def test_a_list_of_numpys_times_is_read_in_its_unit(unit: str) -> None:
    data = at(list(np.array(["2020-01-03", "2020-01-01", "2020-01-02"], dtype=f"M8[{unit}]")))
    assert data.timestamps is not None
    assert (data.timestamps - NANO // 10**9).tolist() == [0, 86_400, 172_800]
    assert data.report["timestamp_unit"] == "seconds"
    assert at([np.datetime64("2020-01-01", unit), None, np.datetime64("NaT")]).report["missing_timestamps"] == 2


def test_times_that_no_unit_holds_are_refused_with_their_row() -> None:
    for odd in (datetime.datetime(3000, 1, 1), np.datetime64("3000-01-01")):
        with pytest.raises(ValueError, match=r"times in whole nanoseconds that fit in 64 bits, got 3000-01-01.* row 2"):
            at([FINE[0], odd, FINE[1]])
    with pytest.raises(TypeError, match=r"got np.datetime64\('2020-01-01'\) in row 2 beside 5 in row 1"):
        at([5, np.datetime64("2020-01-01"), 6])


def test_microseconds_with_a_fraction_are_refused_by_column_row_and_remedy() -> None:
    message = (
        r"column timestamp: expected whole numbers, or numbers below 9,223,372,036,854 beside fractions, got "
        r"1600000000000000.0 in row 2 and the fraction 1600000000000000.5 in row 3 \(round them, or divide"
    )
    for times in ([None, 1.6e15, 1.6e15 + 0.5], ["", "1600000000000000", "1600000000000000.5"]):
        with pytest.raises(ValueError, match=message):
            at(times)
    assert at([1.5, 1.6e12, 3.0]).report["timestamp_unit"] == "millionths of the source's unit"


def test_integers_of_any_size_are_ids_and_no_times() -> None:
    for ids in ([HUGE, 7], [-HUGE, 7], [2**127, 7], [HUGE, 7.0], [HUGE, Decimal(7)], pd.Series([HUGE, 7])):
        data = load_dataset(([1, 1], ids))
        assert set(data.item_ids.to_list()) == {str(ids[0]), "7"}
        assert data.report["rows_without_ids"] == 0
    with pytest.raises(ValueError, match=r"column timestamp: expected .* fit in 64 bits, got '10{39}' in row 1"):
        at([HUGE, 7, 8])
    with pytest.raises(
        ValueError, match="column item_id: expected integers of at most 4,300 digits, got an integer of"
    ):
        load_dataset(([1, 1], [10**5000, 7]))


@pytest.mark.parametrize("odd", [["a", "b"], {"a": 5}, {5}, b"c", object(), datetime.timedelta(1), np.array([1])])
def test_what_is_no_id_is_refused_beside_ids(odd: Any) -> None:
    for ids, odd_row, row in (([odd, "c"], 1, 2), (["c", odd], 2, 1)):
        with pytest.raises(TypeError, match=rf"column item_id: .* got .* in row {odd_row} beside 'c' in row {row}"):
            load_dataset(([1, 1], ids))


def test_no_cell_vanishes_inside_lists_either() -> None:
    assert described(categories=[["a", HUGE], [True]]) == [f"a|{HUGE}", "true"]
    for odd in (b"c", {"a": 1}, object()):
        with pytest.raises(TypeError, match=r"column categories: expected numbers, text or times, got .* in row 2 bes"):
            described(categories=[["a"], ["b", odd]])


def test_text_beside_lists_is_a_list_of_one() -> None:
    assert described(categories=[["A", "B"], "C"]) == ["A|B", "C"]
    assert described(categories=["C", ["A", "B"]]) == ["C", "A|B"]
    assert described(categories=[[["A", "B"], ["C"]], "x"]) == ["A|B|C", "x"]
    assert described(categories=[[["A"], "B"], None]) == ["A|B", None]
    assert described(title=[["a"], "b"]) == ["a", "b"]
    assert described(tags=[["a", "b"], 5]) == ["a|b", "5"]


def test_arrays_in_cells_are_lists(tmp_path: Path) -> None:
    lists = [np.array(["a", "b"], dtype=object), np.array(["c"], dtype=object)]
    for cells in (lists, [lists[0], "c"], [("a", "b"), ["c"]], [pl.Series(["a", "b"]), ["c"]]):
        assert described(categories=cells) == ["a|b", "c"]
    assert described(categories=[lists[0], None]) == ["a|b", None]
    assert described(categories=pd.Series(lists)) == ["a|b", "c"]
    pytest.importorskip("pyarrow")
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": [5, 7], "categories": [["a", "b"], None]}).write_parquet(path)
    table = load_dataset(([1, 1], [5, 7]), items=pd.read_parquet(path)).item_table
    assert table["categories"].to_list() == ["a|b", None]


def test_durations_are_no_titles_and_stay_what_they_are_elsewhere() -> None:
    day = datetime.timedelta(1)
    for column in ("title", "categories"):
        for cells in ([day, None], [[day], []]):
            with pytest.raises(
                TypeError, match=f"items: column {column}: expected text, numbers or lists of them, got D"
            ):
                described(**{column: cells})
    assert described(length=[day, None]) == [day, None]
    assert described(lengths=[[day], None]) == [[day], None]


@pytest.mark.parametrize("name", ["key", "row", "item", "id", "solid_ext", "item_id_right"])
def test_a_column_of_the_items_may_have_any_name(name: str) -> None:
    assert described(**{name: ["a", "b"], "title": ["x", "y"]}) == ["a", "b"]
    table = load_dataset(([1, 1], [5, 7]), items={"item_id": ["7"], name: ["b"]}).item_table
    assert table.rows() == [(5, None), (7, "b")]


def test_a_column_of_times_without_a_time_is_said() -> None:
    rows = {"user_id": [1, 1, 2], "item_id": [5, 7, 9]}
    for times in ([None] * 3, [""] * 3, [float("nan")] * 3):
        notes = load_dataset({**rows, "when": times}, timestamp="when").notes
        assert any("The column 'when' holds no time in any row with ids: each user's rows" in note for note in notes)
    ids = {"user_id": [1, 1, None], "item_id": [5, 7, 9], "timestamp": [None, None, 5]}
    assert any("holds no time" in note for note in load_dataset(ids).notes)
    assert not any("holds no time" in note for note in at([None, 5, 6]).notes)


def test_tensors_without_values_are_refused() -> None:
    for column in (torch.ones(2, device="meta"), [torch.ones((), device="meta"), 2]):
        with pytest.raises(TypeError, match=r"column item_id: expected .* got .*meta"):
            load_dataset(([1, 1], column))
    assert load_dataset(([1, 1], [torch.tensor(3), 4])).item_ids.to_list() == [3, 4]


def test_numpys_text_of_any_length_is_text() -> None:
    gaps = np.dtypes.StringDType(na_object=np.nan)
    assert load_dataset(([1, 1], np.array(["a", "b"], dtype=np.dtypes.StringDType()))).item_ids.to_list() == ["a", "b"]
    assert described(title=np.array(["a", np.nan], dtype=gaps)) == ["a", None]


def test_the_catalogue_reads_ids_as_the_columns_do() -> None:
    data = load_dataset(([1] * 4, [7, "x", "1.50", str(HUGE)]))
    asked = [Decimal("7.0"), torch.tensor(7), np.array(7), np.float32(7), HUGE, Decimal("1.50"), np.str_("x")]
    found = data.item_index(asked)
    assert data.item_ids.gather(found - 1).to_list() == ["7", "7", "7", "7", str(HUGE), "1.50", "x"]
    missing = [None, pd.NA, pd.NaT, float("nan"), Decimal("NaN"), Decimal("sNaN"), np.datetime64("NaT")]
    assert data.item_index([*missing, 10**5000, Decimal("1e5000"), float("inf"), Decimal("-inf")]).sum() == 0
    for wrong in ([7], {7}, b"7", True):
        with pytest.raises(TypeError, match="item_index: expected item ids as numbers, text or times, got"):
            data.item_index([wrong])
