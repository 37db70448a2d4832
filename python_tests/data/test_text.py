"""Delimited text as programs really write it: read, or refused by a sentence with line and remedy."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from solid_ext.data import load_dataset, read_interactions
from solid_ext.data.reading import Reading

EXPECTED = pl.DataFrame({"user_id": [3, 1, 3], "item_id": ["b", "a", "c"], "timestamp": [30, 10, 20]})
CSV = "user_id,item_id,timestamp\n3,b,30\n1,a,10\n3,c,20\n"


def write(folder: Path, content: str | bytes, name: str = "x.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        CSV.encode("utf-16"),
        CSV.encode("utf-32"),
        CSV.replace("\n", "\r"),
        CSV.replace("\n", "\r\n"),
        CSV.replace("user_id,item_id,timestamp\n", "user_id,item_id,timestamp\r"),
        CSV[:32] + CSV[32:].replace("\n", "\r"),
        "\n".join("\t".join(f'"{cell}"' for cell in line.split(",")) for line in CSV.split()),
        CSV.replace(",", ", "),
        CSV.replace(",", " ; "),
        CSV.replace(",", "\t "),
        CSV.replace(",", ";"),
        "sep=;\n" + CSV.replace(",", ";"),
        CSV.replace("\n", ",\n"),
        CSV + CSV,
        CSV.replace("user_id,item_id,timestamp", '"user_id","item_id","timestamp"'),
        "\ufeff" + CSV.replace("user_id,item_id,timestamp", '"user_id", "item_id", "timestamp"'),
        CSV.replace("3,", '"3",'),
        CSV + "\n",
        "\n\r\n" + CSV,
    ],
)
def test_the_same_rows_in_many_spellings(tmp_path: Path, content: str | bytes) -> None:
    found = read_interactions(write(tmp_path, content))
    assert_frame_equal(found[:3], EXPECTED)
    assert found.height in (3, 6)


def test_spaces_after_separators_and_quoted_fields_behind_them(tmp_path: Path) -> None:
    path = write(tmp_path, 'user_id, item_id, timestamp\n3, "b, or ""c""", 30\n1, a , 10\n')
    assert read_interactions(path)["item_id"].to_list() == ['b, or "c"', "a"]


def test_quotes_inside_fields_that_are_not_quoted_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path, 'user_id,item_id,timestamp\n1,12" ruler,3\n2,"a, ""b""",4\n3,5" x 7",5\n')
    assert read_interactions(path)["item_id"].to_list() == ['12" ruler', 'a, "b"', '5" x 7"']
    for text, line in (('1,"open,3\n2,b,4\n', "line 2 '1,\"open,3'"), ('1,a,3\n2,"b" c,4\n', "line 3 '2,\"b\" c,4'")):
        with pytest.raises(ValueError, match="expected every quote to be closed") as caught:
            read_interactions(write(tmp_path, "user_id,item_id,timestamp\n" + text))
        assert line in str(caught.value)


def test_lines_of_other_lengths_are_named_on_the_careful_way_too(tmp_path: Path) -> None:
    path = write(tmp_path, 'user_id, item_id, timestamp\n1, "a", 3\n\n2, b\n3, c, 5\n')
    with pytest.raises(ValueError, match="expected 3 fields in every line, got line 4 '2,b'"):
        read_interactions(path)
    reading = Reading(5)
    assert read_interactions(path, reading=reading)["user_id"].to_list() == [1, 3]
    assert reading.count == 1


def test_movielens_files_without_a_header_are_read_and_said(tmp_path: Path) -> None:
    ratings = write(tmp_path, "1::1193::5::978300760\n1::661::3::978302109\n2::661::4::978298413\n", "ratings.dat")
    movies = write(tmp_path, "661::James, and the Peach (1996)::Animation|Musical\n1193::Cuckoo::Drama\n", "movies.dat")
    dataset = load_dataset(ratings, items=movies)
    assert dataset.titles(dataset.items) == ["Cuckoo", "James, and the Peach (1996)", "James, and the Peach (1996)"]
    assert dataset.item_table["categories"].to_list() == ["Animation|Musical", "Drama"]
    assert "The file has no header: its columns are taken as user_id, item_id, rating, timestamp." in dataset.notes
    assert load_dataset(ratings, min_rating=4).num_interactions == 2
    with pytest.raises(ValueError, match="expected 4 fields in every line, got line 2 "):
        load_dataset(write(tmp_path, "1::1193::5::978300760\n1::2::3\n", "y.dat"))


@pytest.mark.parametrize("line", ["196\t242\t3\t881250949", "A1,B1,5.0,10", "1;2;3"])
def test_a_first_line_of_data_is_no_header(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="expected a header with columns user_id, item_id, got data in the first line"):
        read_interactions(write(tmp_path, line + "\n" + line + "\n"))


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("userId,movieId,rating", "'userId' looks like user_id, 'movieId' looks like item_id; user=, item="),
        ("UserID;ProductID;time", "'UserID' looks like user_id, 'ProductID' looks like item_id"),
        ("User ID,Item ID", "'User ID' looks like user_id, 'Item ID' looks like item_id"),
        ("user_idd,itm_id", "'user_idd' looks like user_id, 'itm_id' looks like item_id"),
    ],
)
def test_columns_of_other_names_are_suggested(tmp_path: Path, header: str, hint: str) -> None:
    with pytest.raises(ValueError, match="expected columns user_id, item_id, got") as caught:
        read_interactions(write(tmp_path, header + "\n1,2,3\n"))
    assert hint in str(caught.value)


def test_repeated_headers_inside_are_counted(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, CSV + CSV.replace("30", "31") + CSV))
    assert dataset.report["repeated_headers"] == 2
    assert dataset.report["exact_duplicates"] == 5
    assert "2 lines repeat the header inside the file; they are left out." in dataset.notes


def test_a_file_of_malformed_lines_only_is_refused_by_naming_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected lines of 3 fields as in the header .*got none: line 2 '3,b,30,'"):
        load_dataset(write(tmp_path, CSV.replace("\n", ",\n").replace("stamp,", "stamp")), max_malformed=100)


def test_missing_ids_in_any_spelling_are_missing_and_said(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id,item_id,timestamp\n1,5,1\nnan,6,2\n2,NULL,3\n3,7,4\n")
    dataset = load_dataset(path)
    assert dataset.user_ids.to_list() == [1, 3]
    assert dataset.report["rows_without_ids"] == 2
    assert dataset.notes[:2] == [
        "1 cells of 'user_id' hold 'nan', which counts as a missing id.",
        "1 cells of 'item_id' hold 'NULL', which counts as a missing id.",
    ]
    assert load_dataset((["a", "nan", "b"], [1, 2, 3])).user_ids.to_list() == ["a", "b"]


def test_one_id_that_is_no_number_among_numbers_is_said(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n},{n}\n" for n in range(1, 40))
    dataset = load_dataset(write(tmp_path, "user_id,item_id,timestamp\n" + rows + "40,1e3,50\n"))
    assert dataset.item_index(["1e3", 5]).tolist() != [0, 0]
    assert any(
        "1 ids of 'item_id' look like numbers written with an exponent ('1e3' in row 40)" in n for n in dataset.notes
    )
    assert "The ids of 'item_id' are read as text, because 1 of 40 are no whole numbers ('1e3' in row 40)." in (
        dataset.notes
    )
