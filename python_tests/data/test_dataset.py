"""The canonical dataset: rules for rows, ids both ways, metadata, and the folder on disk."""

from __future__ import annotations

import datetime
import gzip
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.numpy import load_file, save_file

from solid_ext.data import Catalogue, Dataset, Semantics, global_time, leave_one_out, load_dataset
from solid_ext.files import describe_folder, read_json, write_json

# Statistics of the shared data as its own description gives them: users, items, interactions, repeated pairs.
SHARED = {
    "amazon_scientific": (8_442, 4_385, 59_427, 291),
    "amazon_office": (87_346, 25_986, 680_476, 5_033),
    "amazon_pantry_dates": (12_608, 4_926, 109_007, 116),
    "movielens_100k": (943, 1_682, 100_000, 0),
}


def histories(dataset: Dataset) -> dict[object, list[object]]:
    raw = dataset.item_ids.to_list()
    bounds = dataset.offsets.tolist()
    return {
        user: [raw[item - 1] for item in dataset.items[bounds[row] : bounds[row + 1]]]
        for row, user in enumerate(dataset.user_ids.to_list())
    }


def check_invariants(dataset: Dataset) -> None:
    assert dataset.offsets.dtype == np.int64
    assert dataset.items.dtype == np.int32
    assert set(np.unique(dataset.items)) == set(range(1, dataset.num_items + 1))
    assert dataset.user_ids.is_sorted()
    assert dataset.item_ids.is_sorted()


def test_rows_are_grouped_by_user_and_sorted_by_time() -> None:
    dataset = load_dataset((["v", "u", "v", "u", "v"], [9, 7, 9, 30, 7], [5, 2, 1, 1, 5]))
    check_invariants(dataset)
    assert histories(dataset) == {"u": [30, 7], "v": [9, 9, 7]}
    assert dataset.timestamps is not None
    assert dataset.timestamps.tolist() == [1, 2, 1, 5, 5]
    assert (dataset.num_users, dataset.num_items, dataset.num_interactions) == (2, 3, 5)
    assert dataset.report["repeated_pairs"] == 1
    assert dataset.name == "interactions"


def test_equal_times_keep_the_order_of_the_source() -> None:
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 20, 3000), rng.permutation(3000), rng.integers(0, 5, 3000)
    dataset = load_dataset((users, items, times))
    expected = {
        user: [int(items[row]) for row in sorted(np.flatnonzero(users == user), key=lambda row: (times[row], row))]
        for user in range(20)
    }
    assert histories(dataset) == expected


def test_exact_duplicates_go_and_repeats_at_other_times_stay() -> None:
    dataset = load_dataset(([1, 1, 1, 1, 2], ["a", "b", "a", "a", "a"], [3, 3, 3, 4, 3]))
    assert histories(dataset) == {1: ["a", "b", "a"], 2: ["a"]}
    assert dataset.report["exact_duplicates"] == 1
    assert dataset.report["repeated_pairs"] == 1


def test_rows_without_ids_go() -> None:
    dataset = load_dataset((["u", None, "", "u"], ["a", "b", "c", None]))
    assert histories(dataset) == {"u": ["a"]}
    assert dataset.report["rows_read"] == 4
    assert dataset.report["rows_without_ids"] == 3
    with pytest.raises(ValueError, match="expected rows with a user and an item, got 1 rows without"):
        load_dataset(([None], [1]))


def test_without_times_the_order_of_the_source_counts_and_repeats_stay() -> None:
    for source in (([2, 1, 2, 2], [5, 6, 4, 5]), ([2, 1, 2, 2], [5, 6, 4, 5], [None, np.nan, np.inf, None])):
        dataset = load_dataset(source)
        assert histories(dataset) == {1: [6], 2: [5, 4, 5]}
        assert dataset.timestamps is None
        assert dataset.report["missing_timestamps"] == 4
        assert dataset.report["exact_duplicates"] == 0


def test_a_row_without_a_time_stays_behind_the_row_before_it() -> None:
    users = [1, 1, 1, 1, 1, 2, 2, 3, 1]
    items = ["x", "c", "y", "y", "a", "p", "q", "r", "b"]
    times = [None, 30, None, None, 10, None, 7, None, 20]
    dataset = load_dataset((users, items, times))
    # x takes the 30 of the row after it, both y the 30 of c, p the 7 of q; user 3 the earliest time of all.
    assert histories(dataset) == {1: ["a", "b", "x", "c", "y", "y"], 2: ["p", "q"], 3: ["r"]}
    assert dataset.timestamps is not None
    assert dataset.timestamps.tolist() == [10, 20, 30, 30, 30, 30, 7, 7, 7]
    assert dataset.report["missing_timestamps"] == 5
    assert dataset.report["users_without_timestamps"] == 1
    assert dataset.report["exact_duplicates"] == 0


def test_units_of_timestamps() -> None:
    def stored(times: object) -> tuple[list[int], str]:
        dataset = load_dataset(([1, 1], [1, 2], times))
        assert dataset.timestamps is not None
        return dataset.timestamps.tolist(), str(dataset.report["timestamp_unit"])

    day = datetime.date(1970, 1, 2)
    moment = datetime.datetime(1970, 1, 1, 0, 0, 5)
    assert stored([-3, 2]) == ([-3, 2], "as in the source")
    assert stored([1e9, 2e9]) == ([10**9, 2 * 10**9], "as in the source")
    assert stored([0.25, 1.0]) == ([250_000, 1_000_000], "millionths of the source's unit")
    assert stored([day, day]) == ([86_400, 86_400], "seconds")
    assert stored([moment, moment]) == ([5, 5], "seconds")
    fine = moment + datetime.timedelta(microseconds=7)
    assert stored([moment, fine]) == ([5_000_000, 5_000_007], "microseconds")
    nanoseconds = pl.Series([10**18 + 1, 10**18]).cast(pl.Datetime("ns"))
    assert stored(nanoseconds) == ([10**18, 10**18 + 1], "nanoseconds")
    assert stored(["1970-01-01", "1970-01-02"]) == ([0, 86_400], "seconds")
    with pytest.raises(ValueError, match="numbers below 9,223,372,036,854 beside fractions"):
        stored([0.5, 1e15])


def test_numbers_follow_sorted_ids_and_not_appearance() -> None:
    order = np.random.default_rng(1).permutation(200)
    for ids in (order, order.astype(str), np.array([f"B{n:03d}" for n in order])):
        dataset = load_dataset((np.zeros(200, dtype=int), ids))
        check_invariants(dataset)
        assert histories(dataset)[0] == ids.tolist()


def test_ids_are_found_in_either_type() -> None:
    numbers = load_dataset(([1, 1, 1], [42, 7, -5]))
    assert numbers.item_index([7, -5, 42, 8]).tolist() == [2, 1, 3, 0]
    assert numbers.item_index(["42", "x", None, "07"]).tolist() == [3, 0, 0, 0]
    assert numbers.item_index([42.0]).tolist() == [3]
    assert numbers.item_index(np.array(["7"])).tolist() == [2]
    text = load_dataset(([1, 1], ["42", "a"]))
    assert text.item_index([42, "a"]).tolist() == [1, 2]
    assert text.item_index(pl.Series([42, 1])).tolist() == [1, 0]
    assert text.item_index([]).tolist() == []
    assert text.item_index([]).dtype == np.int64


def test_metadata_comes_into_item_order() -> None:
    items = pl.DataFrame(
        {
            "item_id": [3, 99, 1, None, 3],
            "title": ["three", "never", "", "no id", "again"],
            "categories": [["a", "b"], [], ["c"], [], []],
            "price": [3.0, 1.0, 2.0, 0.0, 0.0],
        }
    )
    dataset = load_dataset(([1, 1, 1], [3, 1, 2]), items=items)
    assert dataset.item_table.to_dict(as_series=False) == {
        "item_id": [1, 2, 3],
        "title": [None, None, "three"],
        "categories": ["c", None, "a|b"],
        "price": [2.0, None, 3.0],
    }
    assert dataset.titles([3, 1]) == ["three", "1"]
    assert dataset.titles([]) == []
    names = (
        "items_without_metadata",
        "metadata_never_interacted",
        "metadata_duplicates",
        "metadata_without_ids",
    )
    assert [dataset.report[name] for name in names] == [1, 1, 1, 1]
    for wrong in ([0], [4]):
        with pytest.raises(ValueError, match=r"titles: expected items in 1\.\.3"):
            dataset.titles(wrong)


def test_metadata_ids_may_be_of_another_type() -> None:
    text, numbers = {"item_id": ["2", "x"], "title": ["two", "x"]}, {"item_id": [2], "title": ["two"]}
    assert load_dataset(([1, 1], [1, 2]), items=text).titles([1, 2]) == ["1", "two"]
    assert load_dataset(([1, 1], ["2", "x"]), items=numbers).titles([1, 2]) == ["two", "x"]


def test_metadata_with_its_own_names_and_defects(tmp_path: Path) -> None:
    frame = {"userId": [1, 1], "movieId": [8, 9]}
    movies = tmp_path / "movies.csv"
    movies.write_text('movieId,title\n9,"Postman, The (1997)"\n', encoding="utf-8")
    dataset = load_dataset(frame, items=movies, user="userId", item="movieId")
    assert dataset.titles([1, 2]) == ["8", "Postman, The (1997)"]
    with pytest.raises(ValueError, match="items: expected columns item_id, got title"):
        load_dataset(([1], [1]), items={"title": ["a"]})
    with pytest.raises(ValueError, match="items: expected one id column, got both movieId and item_id"):
        load_dataset(frame, items={"movieId": [8], "item_id": [1]}, user="userId", item="movieId")


def test_folders_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"expected metadata\.json or interactions\.tsv\.gz in .*shop.*, got nothing"):
        load_dataset(folder)
    (folder / "interactions.tsv.gz").write_bytes(gzip.compress(b"user_id\titem_id\n1\t5\n"))
    (folder / "items.tsv.gz").write_bytes(gzip.compress(b'item_id\ttitle\n5\tA "quoted" title\n'))
    dataset = load_dataset(folder)
    assert dataset.name == "shop"
    assert dataset.titles([1]) == ['A "quoted" title']
    assert load_dataset(folder, items={"item_id": [5], "title": ["mine"]}, name="other").titles([1]) == ["mine"]
    assert load_dataset(folder / "interactions.tsv.gz").name == "interactions"
    with pytest.raises(ValueError, match=r"load_dataset: expected an existing file or folder, got .*nowhere"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="expected a path, a polars or pandas frame or arrays by name, got NoneType"):
        load_dataset(None)


@pytest.fixture
def dataset() -> Dataset:
    items = {"item_id": ["b", "a"], "title": ["B", None], "categories": ["x|y", "x"]}
    return load_dataset(([2, 1, 2], ["a", "b", "b"], [4, 5, 6]), items=items, name="tiny")


def test_saved_and_loaded_is_the_same(dataset: Dataset, tmp_path: Path) -> None:
    for original in (dataset, load_dataset((["é", "u"], [1, 2]))):
        folder = original.save(tmp_path / "deep" / original.name)
        loaded = Dataset.load(folder)
        assert sorted(os.listdir(folder)) == [
            "interactions.safetensors",
            "items.parquet",
            "metadata.json",
            "users.parquet",
        ]
        assert not [name for name in os.listdir(folder.parent) if name.startswith(".")]
        for name in ("name", "report", "fingerprint", "num_users", "num_items", "num_interactions"):
            assert getattr(loaded, name) == getattr(original, name)
        for name in ("offsets", "items", "timestamps"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(original, name))
        assert_frame_equal(loaded.item_table, original.item_table)
        assert loaded.user_ids.equals(original.user_ids)
        assert load_dataset(folder).fingerprint == original.fingerprint
        assert load_dataset(folder, name="renamed").name == "renamed"
        with pytest.raises(ValueError, match="expected no items beside the dataset folder"):
            load_dataset(folder, items={"item_id": [1]})


def test_the_arrays_of_a_folder_are_mapped_and_not_read(dataset: Dataset, tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is mapped")
    folder = dataset.save(tmp_path / "data")
    loaded = Dataset.load(folder)
    starts = {
        int(line.split("-")[0], 16): int(line.split()[0].split("-")[1], 16)
        for line in maps.read_text().splitlines()
        if line.endswith(str(folder / "interactions.safetensors"))
    }
    for array in (loaded.offsets, loaded.items, loaded.timestamps):
        assert array is not None
        assert any(start <= array.ctypes.data < end for start, end in starts.items())
    dataset.save(folder, overwrite=True)  # who has it open keeps what it has
    assert loaded.items.tolist() == dataset.items.tolist()


def test_a_folder_is_read_and_split_without_a_copy_of_its_arrays(tmp_path: Path) -> None:
    count, ids = 1 << 22, pl.Series("item_id", range(100))
    items, offsets = np.tile(np.arange(1, 101, dtype=np.int32), count // 100 + 1)[:count], np.arange(9) * (count // 8)
    whole = Dataset("x", offsets, items, np.arange(count), pl.Series("user_id", range(8)), ids, ids.to_frame())
    folder = whole.save(tmp_path / "data")
    Dataset.load(folder)
    tracemalloc.start()
    try:
        loaded = Dataset.load(folder)
        assert loaded.fingerprint == whole.fingerprint
        assert tracemalloc.get_traced_memory()[1] < items.nbytes  # the smaller one of the two
        tracemalloc.reset_peak()
        split = leave_one_out(loaded)
        assert tracemalloc.get_traced_memory()[1] < 24 * count  # of which the rows themselves are 16
    finally:
        tracemalloc.stop()
    assert len(split.train) == count - 3 * 8


def test_fingerprint_tells_data_apart(dataset: Dataset) -> None:
    others = [
        load_dataset(([2, 1, 2], ["a", "b", "c"])),
        load_dataset(([2, 1, 1], ["a", "b", "b"])),
        load_dataset(([2, 1, 2], ["b", "a", "a"])),
        load_dataset(([2, 1, 2], ["a", "bc", "bc"])),
        load_dataset(([2, 1, 2], ["ab", "c", "c"])),
    ]
    base = load_dataset(([2, 1, 2], ["a", "b", "b"]))
    assert len({base.fingerprint} | {other.fingerprint for other in others}) == 6
    assert load_dataset(pl.DataFrame({"item_id": ["a", "b", "b"], "user_id": ["2", "1", "2"]})).fingerprint == (
        base.fingerprint
    )


def test_the_fingerprint_covers_times_titles_categories_and_users() -> None:
    columns = {"user": [2, 1, 2], "item": ["a", "b", "b"], "time": [4, 5, 6]}
    items: dict[str, list[object]] = {"item_id": ["a", "b"], "title": ["A", None], "categories": ["x|y", "x"]}

    def fingerprint(price: int = 0, **changes: list[object]) -> str:
        who, what, when = ({**columns, **changes}[name] for name in columns)
        table = {name: changes.get(name, values) for name, values in items.items()} | {"price": [price, 1]}
        return load_dataset((who, what, when), items=table, name=f"any{price}").fingerprint

    changed = [
        fingerprint(),
        fingerprint(time=[4, 5, 7]),
        fingerprint(user=[3, 1, 3]),
        fingerprint(title=["A", "B"]),
        fingerprint(title=[None, "A"]),
        fingerprint(title=["A ", None]),
        fingerprint(categories=["x", "x"]),
        fingerprint(categories=["x", "x|y"]),
        load_dataset(tuple(columns.values())).fingerprint,
        load_dataset(tuple(columns.values())[:2]).fingerprint,
    ]
    assert len(set(changed)) == len(changed)
    assert fingerprint(price=7) == fingerprint()


def test_a_changed_time_or_title_in_a_folder_is_noticed(dataset: Dataset, tmp_path: Path) -> None:
    folder = dataset.save(tmp_path / "titles")
    table = pl.read_parquet(folder / "items.parquet")
    table.with_columns(pl.Series("title", ["A", "B"])).write_parquet(folder / "items.parquet")
    with pytest.raises(ValueError, match=r"Dataset\.load: expected .*items\.parquet"):
        Dataset.load(folder)
    folder = dataset.save(tmp_path / "times")
    path = folder / "interactions.safetensors"
    save_file(load_file(path) | {"timestamps": np.array([5, 4, 8])}, path)
    with pytest.raises(ValueError, match=r"Dataset\.load: expected .*interactions\.safetensors as it was written"):
        Dataset.load(folder)


def test_printed_it_is_one_line(dataset: Dataset) -> None:
    assert repr(dataset) == (
        "Dataset('tiny': 2 users, 2 items, 3 interactions, times 4..6, metadata title, categories)"
    )
    large = load_dataset((np.arange(3000) // 5, np.arange(3000) % 7, np.arange(3000)))
    split = leave_one_out(large)
    for value in (large, split, split.train):
        assert len(repr(value)) < 200
        assert "\n" not in repr(value)


def test_times_may_span_all_of_int64() -> None:
    times = [-(2**63), 2**63 - 1, 0]
    dataset = load_dataset(([1, 1, 1], [1, 2, 3], times))
    assert histories(dataset) == {1: [1, 3, 2]}
    assert dataset.timestamps is not None
    assert dataset.timestamps.tolist() == sorted(times)


def notes(source: object, **arguments: object) -> str:
    return "\n".join(load_dataset(source, **arguments).notes)  # type: ignore[arg-type]


def test_users_whose_held_out_items_hang_on_equal_times_are_counted() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 6)
    items, times = np.tile(np.arange(6), 60), rng.integers(0, 12, 360)
    dataset = load_dataset((users, items, times))
    tied = {
        user
        for user, end in enumerate(dataset.offsets[1:])
        if dataset.timestamps is not None and len(set(dataset.timestamps[end - 3 : end].tolist())) < 3
    }
    assert 10 < len(tied) < 50
    assert dataset.report["users_with_tied_ends"] == len(tied)
    assert str(dataset.report["note_ties"]).startswith(
        f"{len(tied)} of 60 users (such as {min(tied)}) have equal times"
    )
    ends = {user: held[-2:] for user, held in histories(dataset).items()}
    moved = set()
    for _ in range(40):
        order = rng.permutation(360)
        again = load_dataset((users[order], items[order], times[order]))
        assert again.report["users_with_tied_ends"] == len(tied)
        moved |= {user for user, held in histories(again).items() if held[-2:] != ends[user]}
    assert moved == tied
    assert "note_ties" not in load_dataset((users, items, np.arange(360))).report


def test_what_is_guessed_about_the_columns_is_said() -> None:
    columns = {"user_id": [1, 1, 2], "item_id": [1, 2, 1], "stars": [5, 1, 4]}
    assert "no column 'timestamp': each user's rows are taken to stand in the order" in notes(columns)
    assert "The column 'unixReviewTime' may hold the times" in notes(columns | {"unixReviewTime": [1, 2, 3]})
    assert "The column 'stars' is not used: every row counts" in notes(columns)
    assert "No times are read" in notes(columns, timestamp=None)
    complete = {"user_id": [1, 1, 2], "item_id": [1, 2, 1], "timestamp": [1, 2, 3]}
    assert list(load_dataset(complete).report).count("note_times") == 0
    assert "note_ratings" not in load_dataset(complete).report
    assert "1 rows have no time" in notes(complete | {"timestamp": [1, None, 3]})


def test_ratings_below_the_least_are_left_out_and_counted() -> None:
    columns = {"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 3], "rating": ["4.0", "1", "", "5"]}
    dataset = load_dataset(columns, min_rating=4)
    assert histories(dataset) == {1: [1], 2: [3]}
    assert dataset.report["rows_below_min_rating"] == 2
    assert not any("rating" in note for note in dataset.notes)
    renamed = {"stars" if name == "rating" else name: values for name, values in columns.items()}
    assert load_dataset(renamed, rating="stars", min_rating=4.0).fingerprint == dataset.fingerprint
    with pytest.raises(ValueError, match=r"expected a rating column rating, got none .*did you mean 'stars'"):
        load_dataset(renamed, min_rating=4)
    with pytest.raises(ValueError, match="expected ratings as numbers, got 'good' in row 2"):
        load_dataset(columns | {"rating": ["4", "good", "1", "2"]}, min_rating=4)
    with pytest.raises(ValueError, match="expected rows with a rating of 9 or more, got none"):
        load_dataset(columns, min_rating=9)
    for wrong in ("3", float("nan")):
        with pytest.raises(TypeError, match="expected min_rating as a finite number, got"):
            load_dataset(columns, min_rating=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected min_rating beside rating='stars', got none"):
        load_dataset(renamed, rating="stars")


def test_titles_and_categories_of_other_names_are_read_when_asked_and_otherwise_named() -> None:
    source = ([1, 1], [1, 2])
    items = {"item_id": [1, 2], "name": ["A", "B"], "genres": ["x|y", "x"]}
    silent = load_dataset(source, items=items)
    assert silent.titles([1]) == ["1"]
    said = "\n".join(silent.notes)
    assert "no column 'title', and 'name' is not read as such: title='name' (--title name) reads it" in said
    assert "categories='genres' (--categories genres) reads it" in said
    dataset = load_dataset(source, items=items, title="name", categories="genres")
    assert dataset.titles([1]) == ["A"]
    assert dataset.item_table["categories"].to_list() == ["x|y", "x"]
    assert not any("is not read" in note for note in dataset.notes)
    with pytest.raises(ValueError, match="expected a column kind of categories, got item_id, name, genres"):
        load_dataset(source, items=items, categories="kind")
    with pytest.raises(ValueError, match="expected items beside title= and categories="):
        load_dataset(source, title="name")
    commas = items | {"categories": ["x, y", "x, z"]}
    assert "separated by '|', which never occurs; ',' occurs in 100%" in notes(source, items=commas)


def test_items_that_match_nothing_are_said(tmp_path: Path) -> None:
    text = notes(([1, 1], [1, 2]), items={"item_id": ["i1", "i2"], "title": ["A", "B"]})
    assert "Only 0 of 2 items are described (ids such as 1, 2 in the interactions, 'i1', 'i2' in the table" in text
    # What pandas writes of an integer column with gaps.
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\n1,1.0,5\n1,2.0,6\n")
    dataset = load_dataset(tmp_path / "x.csv", items={"item_id": [1, 2], "title": ["A", "B"]})
    assert dataset.titles([1, 2]) == ["A", "B"]
    assert dataset.notes[0] == (
        "2 ids of 'item_id' are written as floats (such as '1.0'); they are read as whole numbers."
    )


def test_users_without_enough_unseen_items_are_named_by_their_raw_ids() -> None:
    users = ["all"] * 120 + ["most"] * 119 + ["few"] * 3
    items = [*range(120), *range(119), 1, 2, 3]
    dataset = load_dataset((users, items, np.arange(242)))
    assert dataset.report["users_with_few_unseen_items"] == 2
    assert dataset.report["users_with_all_items"] == 1
    assert any(
        note.startswith("2 of 3 users (such as 'all', 'most') have fewer than 99 items, of 120, that they never had")
        for note in dataset.notes
    )


def test_arguments_that_a_prepared_folder_cannot_follow_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    folder = dataset.save(tmp_path / "data")
    with pytest.raises(ValueError, match="expected no min_rating=4 beside the dataset folder"):
        load_dataset(folder, min_rating=4)


def test_a_wrong_path_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(ValueError, match=r"got .*rating\.csv' \(did you mean .*ratings\.csv'\?\)"):
        load_dataset(tmp_path / "rating.csv")
    with pytest.raises(ValueError, match="there is no folder"):
        load_dataset(tmp_path / "nowhere" / "ratings.csv")
    with pytest.raises(ValueError, match=r"got ratings\.csv; if one of the files is meant, name it"):
        load_dataset(tmp_path)


def test_an_existing_folder_is_only_replaced_when_asked_and_a_dataset(dataset: Dataset, tmp_path: Path) -> None:
    folder = dataset.save(tmp_path / "data")
    other = load_dataset(([1], [1]))
    with pytest.raises(ValueError, match=r"expected a folder that does not exist yet, got .*overwrite=True"):
        other.save(folder)
    assert Dataset.load(folder).fingerprint == dataset.fingerprint
    other.save(folder, overwrite=True)
    assert Dataset.load(folder).fingerprint == other.fingerprint
    assert os.listdir(tmp_path) == ["data"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"expected a folder of its own to overwrite, got .*precious"):
        dataset.save(precious, overwrite=True)
    assert (precious / "thesis.txt").exists()


def test_a_failing_save_leaves_nothing_and_keeps_the_old(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset.save(tmp_path / "data")

    def full(self: pl.DataFrame, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match=r"expected a folder that can be written, got .*no space left"):
            dataset.save(target, overwrite=True)
    assert os.listdir(tmp_path) == ["data"]
    assert Dataset.load(folder).fingerprint == dataset.fingerprint
    with pytest.raises(ValueError, match="expected a folder that can be written"):
        dataset.save(folder / "metadata.json" / "below")


def test_an_overwrite_that_fails_at_the_last_step_gives_the_old_folder_back(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset.save(tmp_path / "data")
    rename = Path.rename

    def fail_into_place(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError("device gone")
        return rename(self, target)

    monkeypatch.setattr("solid_ext.files._exchanged", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(ValueError, match="device gone"):
        load_dataset(([1], [1])).save(folder, overwrite=True)
    assert os.listdir(tmp_path) == ["data"]
    assert Dataset.load(folder).fingerprint == dataset.fingerprint


def test_a_folder_replaced_between_two_tables_is_read_as_one_dataset(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_dataset(([2, 2, 1], ["b", "a", "a"], [7, 8, 9]), name="other")
    folder, read, paths = dataset.save(tmp_path / "data"), pl.read_parquet, []

    def replaced_meanwhile(path: Path, **options: bool) -> pl.DataFrame:
        paths.append(path)
        if len(paths) == 1:
            other.save(folder, overwrite=True)
        return read(path, **options)

    monkeypatch.setattr(pl, "read_parquet", replaced_meanwhile)
    loaded = Dataset.load(folder)
    assert (loaded.name, loaded.fingerprint) == ("other", other.fingerprint)
    assert len(paths) == 4


def test_damaged_folders(dataset: Dataset, tmp_path: Path) -> None:
    def damaged(name: str, **changes: object) -> Path:
        folder = dataset.save(tmp_path / name)
        metadata = read_json(folder / "metadata.json", "test")
        write_json(folder / "metadata.json", metadata | changes)
        return folder

    with pytest.raises(ValueError, match=r"expected format version 3, got 99 .*prepare the dataset again"):
        load_dataset(damaged("version", format_version=99))
    with pytest.raises(ValueError, match=r"expected metadata\.json of a solid_ext dataset"):
        load_dataset(damaged("format", format="something else"))
    with pytest.raises(ValueError, match="expected fingerprint 0 in"):
        load_dataset(damaged("fingerprint", fingerprint="0"))
    folder = damaged("json")
    (folder / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match=r"expected a readable metadata\.json"):
        load_dataset(folder)
    folder = damaged("missing")
    (folder / "users.parquet").unlink()
    with pytest.raises(ValueError, match=r"expected users\.parquet in .*, got none"):
        load_dataset(folder)
    folder = damaged("columns")
    save_file({"items": np.ones(1, np.int32)}, folder / "interactions.safetensors")
    with pytest.raises(ValueError, match=r"expected [\d,]+ bytes in .*interactions\.safetensors"):
        load_dataset(folder)
    metadata = read_json(folder / "metadata.json", "test")
    (folder / "metadata.json").unlink()
    describe_folder(folder, "metadata.json", metadata)
    with pytest.raises(ValueError, match="expected a consistent dataset"):
        load_dataset(folder)
    with pytest.raises(ValueError, match=r"expected a dataset folder, got .*nowhere"):
        Dataset.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"items": np.array([1, 2, 2])},
            TypeError,
            "expected items as a one-dimensional int32 array, got int64",
        ),
        ({"items": [1, 2, 2]}, TypeError, "expected items as a one-dimensional int32 array, got list"),
        ({"items": np.array([0, 2, 2], np.int32)}, ValueError, r"expected items in 1\.\.2, got 0\.\.2"),
        ({"items": np.array([1, 2, 3], np.int32)}, ValueError, r"expected items in 1\.\.2, got 1\.\.3"),
        ({"offsets": np.array([0, 2, 1])}, ValueError, "expected offsets"),
        ({"offsets": np.array([0, 1, 2])}, ValueError, "expected offsets that end at 3, got 2"),
        ({"timestamps": np.array([5, 6, 4])}, ValueError, "expected timestamps that never decrease"),
        ({"timestamps": np.array([5, 6])}, ValueError, r"expected timestamps \[3\], got \[2\]"),
        ({"timestamps": np.array([5.0, 6.0, 7.0])}, TypeError, "expected timestamps .* got float64"),
        ({"user_ids": pl.Series([1])}, ValueError, r"expected user_ids \[2\], got \[1\]"),
        ({"user_ids": pl.Series([1, 1])}, ValueError, "expected user_ids that are all there and different"),
        (
            {"item_ids": pl.Series(["a", "c"])},
            ValueError,
            "expected an item_table whose column item_id equals",
        ),
    ],
)
def test_parts_that_do_not_fit(
    dataset: Dataset, change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(dataset, **change)


def test_catalogue_serves_without_the_interactions(dataset: Dataset, tmp_path: Path) -> None:
    dataset.catalogue.save(tmp_path / "items.parquet")
    catalogue = Catalogue.load(tmp_path / "items.parquet")
    assert catalogue.num_items == 2
    assert catalogue.raw_items([2, 1]) == ["b", "a"]
    assert catalogue.titles([2, 1]) == ["B", "a"]
    assert catalogue.item_index(["b", "z"]).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"raw_items: expected items in 1\.\.2, got 0\.\.0"):
        catalogue.raw_items([0])
    with pytest.raises(ValueError, match="expected a Parquet file of items"):
        Catalogue.load(tmp_path / "nowhere.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="expected a column item_id"):
        Catalogue.load(tmp_path / "other.parquet")


@pytest.mark.parametrize("name", sorted(SHARED))
def test_shared_data_has_its_published_statistics(shared_data: Path, name: str) -> None:
    dataset = load_dataset(shared_data / name)
    check_invariants(dataset)
    found = (dataset.num_users, dataset.num_items, dataset.num_interactions, dataset.report["repeated_pairs"])
    assert found == SHARED[name]
    assert dataset.report["exact_duplicates"] == 0
    # The files are sorted by user and time already, with ids from 1.
    raw = pl.read_csv(shared_data / name / "interactions.tsv.gz", separator="\t")
    np.testing.assert_array_equal(dataset.items, raw["item_id"].to_numpy())
    np.testing.assert_array_equal(dataset.timestamps, raw["timestamp"].to_numpy())


def described_by(tmp_path: Path, lines: str, **named: str) -> Dataset:
    path = tmp_path / "items.jsonl"
    path.write_text(lines, encoding="utf-8")
    return load_dataset(([1, 1], [1, 2]), items=path, **named)


def test_categories_that_are_lists_of_lists_are_flattened(tmp_path: Path) -> None:
    lines = '{"item_id": 1, "categories": [["A", "B"], ["C|D", null]]}\n{"item_id": 2, "categories": [[" N/A "]]}\n'
    dataset = described_by(tmp_path, lines)
    assert dataset.item_table["categories"].to_list() == ["A|B|C/D", None]
    assert dataset.report["missing_categories"] == 1
    assert len(dataset.fingerprint) == 64
    for column in ("title", "categories"):
        with pytest.raises(TypeError, match=f"items: column {column}: expected text, numbers or lists of them, got S"):
            described_by(tmp_path, f'{{"item_id": 1, "{column}": {{"a": 1}}}}')


def test_words_that_mean_missing_are_neither_titles_nor_categories(tmp_path: Path) -> None:
    lines = '{"item_id": 1, "title": "nan", "categories": "N/A"}\n{"item_id": 2, "title": "  ", "categories": "null"}\n'
    dataset = described_by(tmp_path, lines)
    assert dataset.item_table.rows() == [(1, None, None), (2, None, None)]
    assert dataset.titles([1, 2]) == ["1", "2"]
    assert (dataset.report["missing_title"], dataset.report["missing_categories"]) == (1, 2)
    table = pl.DataFrame({"item_id": [1, 2], "categories": [float("nan"), 3.0]})
    assert load_dataset(([1, 1], [1, 2]), items=table).item_table["categories"].to_list() == [None, "3"]


def test_one_column_may_be_title_and_categories_and_the_id_may_be_the_title(tmp_path: Path) -> None:
    lines = '{"item_id": 1, "title": "a", "categories": "x"}\n{"item_id": 2, "title": "b", "categories": "y"}\n'

    def rows(**named: str) -> list[tuple[str, str]]:
        return described_by(tmp_path, lines, **named).item_table.select("title", "categories").rows()

    assert rows(title="title", categories="title") == [("a", "a"), ("b", "b")]
    assert rows(title="categories", categories="title") == [("x", "a"), ("y", "b")]
    assert rows(title="item_id") == [("1", "x"), ("2", "y")]


def test_items_may_call_their_id_item_id_where_the_interactions_call_it_otherwise() -> None:
    rows = pl.DataFrame({"user_id": [1, 1], "movieId": [1, 2]})
    items = pl.DataFrame({"item_id": [2, 1], "title": ["b", "a"]})
    assert load_dataset(rows, item="movieId", items=items).titles([1, 2]) == ["a", "b"]


def test_columns_that_pandas_numbers_are_named_by_their_numbers() -> None:
    frame = pd.DataFrame([[1, 7, 3], [1, 8, 2]])
    data = load_dataset(frame, user=0, item=1, timestamp=2)
    assert data.item_ids.gather(data.items - 1).to_list() == [8, 7]
    for wrong in ({"user": None}, {"item": True}, {"timestamp": 1.5}):
        with pytest.raises(TypeError, match="as the name of a column, got"):
            load_dataset(frame, **{"user": 0, "item": 1, **wrong})


def test_a_least_rating_is_a_number_of_any_kind_and_no_truth_value() -> None:
    rows = {"user_id": [1, 1], "item_id": [1, 2], "rating": [1, 3]}
    for least in (2, np.int64(2), np.float32(2.0)):
        assert load_dataset(rows, min_rating=least).num_interactions == 1
    with pytest.raises(TypeError, match="expected min_rating as a finite number, got True"):
        load_dataset(rows, min_rating=True)


def test_small_mistakes_get_one_sentence(tmp_path: Path) -> None:
    data = load_dataset(([1, 1, 1], [1, 2, 3], [1, 2, 3]))
    for malformed in ("x", -1, True):
        with pytest.raises(ValueError, match="expected max_malformed as a whole number of 0 or more, got"):
            load_dataset(([1], [1]), max_malformed=malformed)
    with pytest.raises(ValueError, match="load_dataset: expected an existing file or folder, got 'aaa"):
        load_dataset("a" * 5000)
    for name in ("interactions.tsv", "interactions.csv"):
        (tmp_path / name).write_text("user_id\titem_id\n1\t2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected one file interactions\.\* in .*, got interactions.tsv, inter"):
        load_dataset(tmp_path)
    for wrong in ([1.7], ["a"]):
        with pytest.raises(TypeError, match=r"titles: expected items as whole numbers in 1\.\.3, got"):
            data.titles(wrong)
    with pytest.raises(TypeError, match=r"leave_one_out: expected a Dataset .*, got str"):
        leave_one_out("g.csv")
    with pytest.raises(TypeError, match="global_time: expected valid as a share"):
        global_time(data, valid="a")
    with pytest.raises(TypeError, match="Dataset: expected user_ids as a polars Series, got list"):
        replace(data, user_ids=[1])
    with pytest.raises(TypeError, match="Dataset: expected item_table as a polars DataFrame, got NoneType"):
        replace(data, item_table=None)
    empty = replace(data, items=data.items[:0], timestamps=data.timestamps[:0], offsets=data.offsets * 0)
    assert "0 interactions, without times" in repr(empty)
    with pytest.raises(ValueError, match="global_time: expected interactions, got a dataset without any"):
        global_time(empty)
    assert repr(data.catalogue) == "Catalogue(3 items, metadata none)"


def test_unusual_columns_are_read_or_refused_by_one_sentence() -> None:
    users = torch.tensor([1.0, 1.0], requires_grad=True)
    for column in (users, users.bfloat16(), users.detach().long()):
        assert load_dataset((column, [1, 2])).user_ids.to_list() == [1]
    with pytest.raises(ValueError, match=r"expected text of whole characters, got half of one in .* in row 2"):
        load_dataset(([1, 1], ["a", "\ud800"]))
    lazy = pl.LazyFrame({"user_id": [1]}).select("nothing")
    with pytest.raises(ValueError, match="expected a LazyFrame that can be collected, got one that fails"):
        load_dataset(lazy)
    semantics = Semantics(np.array([0, 1, 2]), 2, "id")
    assert repr(semantics) == "Semantics(2 from 'id' of 2 items)"


def test_a_path_below_the_home_folder_is_one_place(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    dataset.save("~/kept")
    assert (tmp_path / "kept" / "metadata.json").is_file()
    assert load_dataset("~/kept").fingerprint == dataset.fingerprint
