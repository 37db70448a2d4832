"""Reading interactions: every form gives the same rows, every defect one sentence."""

from __future__ import annotations

import datetime
import gzip
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from solid_ext.data import load_dataset, read_interactions
from solid_ext.data import text as text_files
from solid_ext.data.reading import Reading
from solid_ext.data.tables import read_table

USERS, ITEMS, TIMES = [3, 1, 3, 2], ["b", "a", "c", "a"], [30, 10, 20, 5]
EXPECTED = pl.DataFrame({"user_id": USERS, "item_id": ITEMS, "timestamp": TIMES})
TSV = "user_id\titem_id\ttimestamp\n3\tb\t30\n1\ta\t10\n3\tc\t20\n2\ta\t5\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", " "])
@pytest.mark.parametrize("suffix", [".txt", ".csv.gz"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_with_any_separator(tmp_path: Path, separator: str, suffix: str, ending: str) -> None:
    text = TSV.replace("\t", separator).replace("\n", ending)
    assert_frame_equal(read_interactions(write(tmp_path, "x" + suffix, text)), EXPECTED)
    assert_frame_equal(read_interactions(str(write(tmp_path, "y" + suffix, text.rstrip()))), EXPECTED)


def test_parquet_frames_and_arrays_agree(tmp_path: Path) -> None:
    EXPECTED.write_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.parquet.gz").write_bytes(gzip.compress((tmp_path / "x.parquet").read_bytes()))
    columns = {"user_id": USERS, "item_id": ITEMS, "timestamp": TIMES}
    sources = [
        tmp_path / "x.parquet",
        tmp_path / "x.parquet.gz",
        EXPECTED,
        EXPECTED.lazy(),
        pd.DataFrame(columns),
        pd.DataFrame(columns).astype({"user_id": "Int64", "item_id": "category", "timestamp": "float64"}),
        columns,
        {name: np.array(values) for name, values in columns.items()},
        {name: np.array(values, dtype=object) for name, values in columns.items()},
        (np.array(USERS), np.array(ITEMS), np.array(TIMES)),
        (np.array(USERS, dtype=np.uint8), np.array([item.encode() for item in ITEMS]), TIMES),
        (pd.Series(USERS), pl.Series(ITEMS), np.array(TIMES, dtype=np.float32)),
    ]
    for source in sources:
        assert_frame_equal(read_interactions(source), EXPECTED)


def test_other_column_names_and_no_timestamps() -> None:
    frame = EXPECTED.rename({"user_id": "who", "item_id": "what", "timestamp": "when"}).with_columns(rating=1.0)
    assert_frame_equal(read_interactions(frame, user="who", item="what", timestamp="when"), EXPECTED)
    without = EXPECTED.drop("timestamp")
    assert_frame_equal(read_interactions(frame, user="who", item="what"), without)
    assert_frame_equal(read_interactions(frame, user="who", item="what", timestamp=None), without)
    assert_frame_equal(read_interactions((USERS, ITEMS)), without)


def test_tab_separated_text_has_no_quoting_and_comma_separated_text_has(tmp_path: Path) -> None:
    tsv = write(tmp_path, "a.tsv", 'user_id\titem_id\n1\t"Screw 3/4"\n2\t12" ruler, flat\n')
    assert read_interactions(tsv)["item_id"].to_list() == ['"Screw 3/4"', '12" ruler, flat']
    csv = write(tmp_path, "a.csv", 'user_id,item_id\n1,"Screw, ""3/4""\nlong"\n2,plain\n')
    assert read_interactions(csv)["item_id"].to_list() == ['Screw, "3/4"\nlong', "plain"]


def test_ids_in_text_are_integers_only_if_that_loses_nothing(tmp_path: Path) -> None:
    def items(*ids: str) -> list[object]:
        text = "user_id,item_id\n" + "".join(f"1,{item}\n" for item in ids)
        return read_interactions(write(tmp_path, "x.csv", text))["item_id"].to_list()

    assert items("12", "-3", "") == [12, -3, None]
    for ids in (["007", "7"], ["1", "x"], ["1.5", "2"], ["1e3", "2"], ["+5", "5"], ["9223372036854775808", "1"]):
        assert items(*ids) == ids


def test_mixed_and_unusual_ids_become_text() -> None:
    def ids(values: object) -> list[object]:
        return read_interactions({"user_id": values, "item_id": [1, 2, 3]})["user_id"].to_list()

    assert ids([1, "a", None]) == ["1", "a", None]
    assert ids(np.array([1, "a", float("nan")], dtype=object)) == ["1", "a", None]
    assert ids(pd.Series(["a", None, "b"])) == ["a", None, "b"]
    assert ids(pd.Series(["a", 1, None], dtype=object)) == ["a", "1", None]
    assert ids(["", "a", "b"]) == [None, "a", "b"]
    assert ids([1.0, float("nan"), 3.0]) == [1, None, 3]
    assert ids(np.array([1.0, np.nan, 3.0])) == [1, None, 3]
    assert ids([1.5, 2.0, 3.0]) == ["1.5", "2", "3"]
    assert ids(np.array([2**63, 1, 2], dtype=np.uint64)) == ["9223372036854775808", "1", "2"]
    assert ids([None, None, None]) == [None, None, None]
    assert ids([True, 1, 0]) == ["true", "1", "0"]
    assert ids([1.0, "a", 2]) == ["1", "a", "2"]
    assert ids(np.ma.masked_array([1, 2, 3], mask=[False, True, False])) == [1, None, 3]
    assert ids([Decimal("5.00"), Decimal("1.5"), None]) == ["5", "1.5", None]
    for large in (np.array([2.0**53, 1.0, 2.0]), np.array([2.0**24, 1, 2], np.float32), [2**60, 2.0**60, 1]):
        with pytest.raises(ValueError, match="expected whole numbers with all of their digits, got the float"):
            ids(large)
    assert ids([datetime.date(2020, 1, 2), None, None])[0] == "2020-01-02"


def times(values: object) -> pl.Series:
    return read_interactions({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": values})["timestamp"]


def test_timestamps_keep_their_kind_and_missing_ones_are_null() -> None:
    assert times([3.0, float("nan"), float("inf")]).to_list() == [3, None, None]
    assert times([0.5, float("-inf"), 2.0]).to_list() == [0.5, None, 2.0]
    assert times([None, None, None]).null_count() == 3
    assert times(pl.Series([1, 2, 3], dtype=pl.Decimal(10, 2))).to_list() == [1, 2, 3]
    assert times(["10", " 9", ""]).to_list() == [10, 9, None]
    assert times(["1.5", "nan", "1e3"]).to_list() == [1.5, None, 1000.0]
    moment = datetime.datetime(2020, 1, 1, 12)
    assert times([moment, None, moment]).to_list() == [moment, None, moment]
    assert times(np.array(["2020-01-01T12", "NaT", "2020-01-01T12"], dtype="M8[h]")).to_list()[:2] == [
        moment,
        None,
    ]
    assert times(["2020-01-01T12:00:00", None, "2020-01-01T12:00:00"])[0] == moment
    assert times(["2020-01-01T14:00:00+02:00"] * 3)[0] == moment
    zoned = pl.Series([moment] * 3).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    assert times(zoned)[0] == moment
    assert times(pd.Series(pd.to_datetime(["2020-01-01T14:00:00+02:00"] * 3)))[0] == moment


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    for text in (TSV + "\n\n", TSV.replace("1\ta", "\n1\ta"), "\ufeff" + TSV.replace("\n", "\r\n") + "\r\n"):
        assert_frame_equal(read_interactions(write(tmp_path, "x.tsv", text)), EXPECTED)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
def test_fields_are_counted_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(text_files, "BLOCK", block)
    text = "user_id,item_id,timestamp\n" + '1,"a,\n""b""",2\n\n3,c,4\n' * 3
    path = write(tmp_path, "x.csv", text)
    assert read_interactions(path)["item_id"].to_list() == ['a,\n"b"', "c"] * 3
    with pytest.raises(ValueError, match="expected 3 fields in every line, got line 14 '"):
        read_interactions(write(tmp_path, "y.csv", text + "1,2"))


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_lines_of_other_lengths_are_skipped_up_to_the_limit(tmp_path: Path, separator: str) -> None:
    quoted = "" if separator == "\t" else '4,"a\n""b""",9\n'
    text = "user_id,item_id,timestamp\n1\n1,a,10\n\n1,a,10,11,12\n" + quoted + "2,b,5\n3,c\n"
    path = write(tmp_path, "x.txt", text.replace(",", separator))
    malformed = Reading(3)
    found = read_interactions(path, reading=malformed)
    expected = [("1", "a", 10)] + ([(4, 'a\n"b"', 9)] if quoted else []) + [("2", "b", 5)]
    assert [(int(u), i, t) for u, i, t in found.rows()] == [(int(u), i, t) for u, i, t in expected]
    last = 9 if quoted else 7
    examples = f"line 2 '1'; line 5 {'1,a,10,11,12'.replace(',', separator)!r}; line {last} {f'3{separator}c'!r}"
    assert malformed.report("bad") == {"bad": 3, "bad_examples": examples}
    assert load_dataset(path, max_malformed=3).report["malformed_lines"] == 3
    with pytest.raises(ValueError, match="expected 3 fields in all lines but 2, got 3 malformed ones by line"):
        load_dataset(path, max_malformed=2)


HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "expected a header and rows, got the empty file"),
        ("x.csv.gz", "", "expected a header and rows, got the empty file"),
        ("x.csv", HEADER, "expected at least one row, got none below the header"),
        ("x.csv", "a,b,c\n1,2,3\n", "expected columns user_id, item_id, got a, b, c"),
        ("x.csv", "\n\n", "expected columns user_id, item_id, got none"),
        (
            "x.tsv",
            "user_id\tuser_id\titem_id\n1\t2\t3\n",
            "expected every column once, got user_id more than once",
        ),
        ("x.csv", HEADER + "1,2,3\n1,2\n", "expected 3 fields in every line, got line 3 '1,2'"),
        ("x.csv", HEADER + "1,2,3,4\n1,2\n", "expected 3 fields in every line, got line 2 '1,2,3,4'"),
        ("x.csv", HEADER + '1,"2,3\n', "expected every quote to be closed"),
        ("x.csv", HEADER + "1,2,03/04/2020\n", "expected numbers or ISO dates, got '03/04/2020' in row 1"),
        ("x.csv", HEADER + "1,2,yesterday\n", "expected numbers or ISO dates, got 'yesterday' in row 1"),
        (
            "x.csv",
            HEADER + "1,2,2020-01-01\n1,2,soon\n",
            "expected numbers or ISO dates, got 'soon' in row 2",
        ),
        ("x.csv", HEADER.encode() + b"1,\xff\xfe,3\n", "expected UTF-8 text, got other bytes in line 2, '1,ÿþ,3'"),
        ("x.csv", b"\xff\xfeu\xe9,b\n", "expected UTF-16 text, as its mark says, got bytes that are not"),
        ("x.csv", b"us\xe9r,b\n", "expected UTF-8 text, got other bytes in line 1, 'usér,b'"),
        ("x.csv", b"\x7fELF\0\1\2\3\n\0", "expected UTF-8 text, got binary data"),
        ("x.csv", gzip.compress(HEADER.encode() * 99, mtime=0)[:-12], "expected a readable file, got"),
        ("x.csv", b"\x1f\x8b\x08garbage", "expected a readable file, got"),
        ("x.parquet", b"PAR1 and then nothing of the kind", "expected a readable Parquet file, got"),
        ("x.parquet", HEADER, "expected a Parquet file, got"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=r"^interactions") as caught:
        read_interactions(write(tmp_path, name, content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_path_folder_and_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an existing file, got .*nowhere.tsv"):
        read_interactions(tmp_path / "nowhere.tsv")
    with pytest.raises(ValueError, match="expected a file, got the folder"):
        read_interactions(tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "x.parquet")
    for source in (tmp_path / "x.parquet", pl.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}), {"a": [1]}):
        with pytest.raises(ValueError, match="expected columns user_id, item_id, got a"):
            read_interactions(source)
    with pytest.raises(ValueError, match="expected a timestamp column when, got none of that name"):
        read_interactions(EXPECTED, timestamp="when")
    with pytest.raises(ValueError, match=r"got user_id in the index of the frame \(reset_index\(\) makes columns"):
        read_interactions(pd.DataFrame({"item_id": [1]}, index=pd.Index([5], name="user_id")))
    with pytest.raises(ValueError, match="expected different columns for user, item and timestamp"):
        read_interactions(EXPECTED, user="item_id")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (42, TypeError, "expected a path, a polars or pandas frame or arrays by name, got int"),
        (([1],), ValueError, r"expected a tuple \(users, items\[, timestamps\]\), got 1 entries"),
        (([1, 2], [1]), ValueError, "expected arrays of one length, got user_id 2, item_id 1"),
        (([], []), ValueError, "expected at least one row"),
        (
            (np.ones((2, 2)), [1, 2]),
            ValueError,
            r"column user_id: expected a one-dimensional array, got shape \[2, 2\]",
        ),
        (
            (np.ones(2) * 1j, [1, 2]),
            TypeError,
            "column user_id: expected numbers, text or times, got dtype complex",
        ),
        (([[1], [2]], [1, 2]), TypeError, "column user_id: expected numbers, text or times"),
        (([{}, object()], [1, 2]), TypeError, "column user_id: expected numbers, text or times"),
        (
            ([1, 2], [1, 2], [True, False]),
            TypeError,
            "column timestamp: expected timestamps as numbers, dates or ISO",
        ),
        (
            ([1], [1], np.array([2**63], dtype=np.uint64)),
            ValueError,
            "expected timestamps that fit in 64 bits",
        ),
    ],
)
def test_wrong_sources(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_interactions(source)


def test_read_table_keeps_all_columns_unless_told_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, "items.tsv", "item_id\ttitle\tprice\n1\tA\t2\n2\t\t\n")
    table = read_table(path, name="items", required=("item_id",))
    assert table.to_dict(as_series=False) == {"item_id": [1, 2], "title": ["A", None], "price": ["2", None]}
    assert read_table(path, name="items", required=("item_id",), optional=("title",)).columns == [
        "item_id",
        "title",
    ]


@pytest.mark.parametrize("odd", ["guest", "2.5"])
def test_an_id_with_and_without_a_fraction_is_one_id_also_where_the_column_stays_text(tmp_path: Path, odd: str) -> None:
    users, ids = ["1.0", "1", odd, "-3.00"], ["1", "1", odd, "-3"]
    columns = {"user_id": users, "item_id": users}
    text = "user_id,item_id\n" + "".join(f"{user},{user}\n" for user in users)
    rows = "\n".join(f'{{"user_id": "{user}", "item_id": "{user}"}}' for user in users)
    sources = (
        *(write(tmp_path, "x.csv", text), write(tmp_path, "x.jsonl", rows)),
        *(pl.DataFrame(columns), pd.DataFrame(columns), pd.DataFrame(columns).astype("category"), columns),
    )
    for source in sources:
        reading = Reading()
        frame = read_interactions(source, reading=reading)
        assert frame["user_id"].to_list() == frame["item_id"].to_list() == ids
        assert "2 ids are written as floats (such as '1.0')" in str(reading.notes)
    items = pl.DataFrame({"item_id": ["1.0", odd, "-3"], "title": ["one", "odd", "three"]})
    dataset = load_dataset(pl.DataFrame(columns), items=items)
    assert sorted(dataset.item_table["title"].to_list()) == ["odd", "one", "three"]
    assert dataset.item_index(["1.0", "1", 1.0, 1]).tolist() == [dataset.item_index(["1"])[0]] * 4
    assert sum("written as floats" in note for note in dataset.notes) == 3


@pytest.mark.parametrize("made", ["values", "string", "categorical"])
def test_arrays_of_pandas_own_are_read_like_series(made: str) -> None:
    users = pd.Series(["u1", "u2", "u1"])
    given = {
        "values": users.values,
        "string": pd.array(list(users), dtype="string"),
        "categorical": pd.Categorical(users),
    }[made]
    frame = read_interactions({"user_id": given, "item_id": pd.array([1, None, 3], dtype="Int64")})
    assert frame["user_id"].to_list() == ["u1", "u2", "u1"]
    assert frame["item_id"].to_list() == [1, None, 3]
