"""Files by their contents: JSON and Arrow are read, damaged and foreign ones refused before they cost anything."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from solid_ext.data import files, load_dataset, read_interactions
from solid_ext.data.raw import read_raw

EXPECTED = pl.DataFrame({"user_id": [3, 1, 3], "item_id": ["b", "a", "c"], "timestamp": [30, 10, 20]})


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_json_lines_and_lists_are_read_plain_and_gzipped(tmp_path: Path) -> None:
    rows = [json.dumps({**row, "more": {"a": [1]}}) for row in EXPECTED.to_dicts()]
    lines, listed = "\n".join(rows) + "\n\n", "[" + ",".join(rows) + "]"
    assert_frame_equal(read_interactions(write(tmp_path, "16.jsonl", lines.encode("utf-16"))), EXPECTED)
    for number, text in enumerate((lines, listed, " \n" + lines, "\ufeff" + lines)):
        assert_frame_equal(read_interactions(write(tmp_path, f"{number}.jsonl", text)), EXPECTED)
        assert_frame_equal(read_interactions(write(tmp_path, f"{number}.gz", gzip.compress(text.encode()))), EXPECTED)
    large = 1_700_000_000_123_456_789
    path = write(
        tmp_path, "n.jsonl", f'{{"user_id": 1, "item_id": "a", "timestamp": {large}}}\n{{"user_id": 2, "item_id": "b"}}'
    )
    assert read_interactions(path)["timestamp"].to_list() == [large, None]


def test_json_items_join_their_lists(tmp_path: Path) -> None:
    items = write(tmp_path, "i.jsonl", '{"item_id": 1, "title": "A", "categories": ["x", "y"]}\n{"item_id": 2}\n')
    dataset = load_dataset(([1, 1], [1, 2]), items=items)
    assert dataset.item_table.rows() == [(1, "A", "x|y"), (2, None, None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user_id": 1, "item_id": 2}\n{"user_id": 1,\n', "expected a JSON object in every line, got line 2 "),
        ('{"user_id": 1, "item_id": 2}\n3\n', "expected a JSON object in every line, got line 2 '3'"),
        ("[1, 2]", "expected a list of JSON objects, got a list of something else"),
        ('[{"user_id": 1}', "expected a list of JSON objects, got text that is none"),
        ('{"user_id": {"0": 1, "1": 2}, "item_id": {"0": 5, "1": 6}}', "expected a JSON object a row, got one object"),
        ('{"user_id": [1, 2], "item_id": [5, 6]}', "expected a JSON object a row, got one object"),
        ('{"data": [{"user_id": 1, "item_id": 2}]}', "expected a JSON object a row, got one object"),
        ('{"userId": 1, "item_id": 2}', "'userId' looks like user_id"),
    ],
)
def test_json_that_holds_no_rows(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match="interactions in") as caught:
        read_interactions(write(tmp_path, "x.json", text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        ([{"user_id": {str(n): n for n in range(300)}, "item_id": 2}], r"user_id: .*, got an object in row 1$"),
        ([{"user_id": 1, "item_id": 2}, {"user_id": 1, "item_id": [3]}], "item_id: .*"),
        ([{"item_id": 2}, {"user_id": [1] * 300, "item_id": 2}], r"user_id: .*, got a list in row 2$"),
    ],
)
def test_ids_that_hold_others_are_refused_in_a_few_words(
    tmp_path: Path, rows: list[dict[str, object]], got: str
) -> None:
    path = write(tmp_path, "nested.jsonl", "\n".join(json.dumps(row) for row in rows))
    with pytest.raises(TypeError, match=got) as refused:
        load_dataset(path)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "address", ["https://example.org/log.csv", "s3://bucket/log.parquet", "hf://x/y", Path("gs://b/x")]
)
def test_an_address_is_no_path(address: object) -> None:
    with pytest.raises(ValueError, match="load_dataset: expected a local path, got the address"):
        load_dataset(address)
    with pytest.raises(ValueError, match="items: expected a local path, got the address"):
        load_dataset(([1], [2]), items=address)


def test_a_path_that_looks_like_an_address_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    write(tmp_path / "s3:", "log.csv", "user_id,item_id\n1,2\n")
    assert load_dataset("s3:/log.csv").num_interactions == 1


def test_feather_is_read_and_a_damaged_one_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    EXPECTED.write_ipc(stream)
    assert_frame_equal(read_interactions(write(tmp_path, "x.feather", stream.getvalue())), EXPECTED)
    with pytest.raises(ValueError, match="expected a readable Arrow file, got a damaged one"):
        read_interactions(write(tmp_path, "y.feather", stream.getvalue()[:150]))


def test_a_parquet_file_with_any_byte_damaged_is_read_or_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    pl.DataFrame({"user_id": range(300), "item_id": range(300), "timestamp": range(300)}).write_parquet(stream)
    whole = stream.getvalue()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(4, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            read_interactions(write(tmp_path, "x.parquet", bytes(damaged)))
        except ValueError:
            refused += 1
    assert refused > 10
    with pytest.raises(ValueError, match="expected a readable Parquet file, got a damaged one"):
        read_interactions(write(tmp_path, "x.parquet", whole[:-40]))


def test_a_gzip_bomb_is_given_up_and_not_inflated_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ALWAYS_INFLATED", 1 << 20)
    monkeypatch.setattr(files, "BLOCK", 1 << 18)
    bomb = write(tmp_path, "bomb.csv.gz", gzip.compress(b"user_id,item_id\n" + b"1,2\n" * (1 << 24)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="expected a gzip file that inflates to at most"):
        read_interactions(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    with pytest.raises(ValueError, match="expected a gzip file that inflates to at most"):
        read_raw(bomb, "csv", max_malformed=10**9)
    fine = write(tmp_path, "fine.csv.gz", gzip.compress(b"user_id,item_id\n" + b"1,2\n" * 100_000))
    assert read_interactions(fine).height == 100_000


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.csv", "user_id,item_id\n1,2\n")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(), "a ZIP archive or an Excel workbook"),
        (b"\xd0\xcf\x11\xe0rest", "an old Excel workbook"),
        (gzip.compress(gzip.compress(b"user_id,item_id\n1,2\n", mtime=0), mtime=0), "gzipped twice"),
        (b"\x28\xb5\x2f\xfdrest", "a Zstandard file (decompress it: zstd -d)"),
        (b"BZh91AY", "a bzip2 file"),
        (b"\x80\x04\x95rest", "a pickle, which is never read"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"\n  <HTML>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        ("user_id,item_id\n1,2\n".encode("utf-16-le"), "binary data (a zero byte in line 1)"),
        (b"user_id,item_id\n1,\xe9\n", "other bytes in line 2, '1,é' if they are Latin-1 (iconv"),
        (b"u\xe9,item_id\n1,2\n", "other bytes in line 1, 'ué,item_id'"),
        (gzip.compress(b"user_id,item_id\n" + bytes(range(48, 58)) * 99, mtime=0)[:-9], "is cut short; fetch it again"),
    ],
)
def test_foreign_files_are_named_with_a_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match="interactions") as caught:
        read_interactions(write(tmp_path, "x.csv", content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    code = f"from solid_ext import load_dataset; load_dataset({str(tmp_path / 'pipe.csv')!r})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        pytest.fail("the pipe was waited for")
    assert "expected a regular file, got" in done.stderr
    with pytest.raises(ValueError, match="expected a regular file, got '/dev/null', a pipe or a device"):
        load_dataset("/dev/null")


@pytest.mark.parametrize(
    "given", [{"user": "u"}, {"item": "i"}, {"timestamp": None}, {"drop_duplicates": False}, {"max_malformed": 5}]
)
def test_what_is_said_of_columns_beside_a_prepared_folder_is_refused(tmp_path: Path, given: dict[str, object]) -> None:
    load_dataset(([1, 1], [1, 2])).save(tmp_path / "data")
    name, value = next(iter(given.items()))
    with pytest.raises(ValueError, match=f"expected no {name}={value!r} beside the dataset folder"):
        load_dataset(tmp_path / "data", **given)
