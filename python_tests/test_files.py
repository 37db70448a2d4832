"""Files and folders: whole or not at all, known to be what was written, one owner at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from solid_ext.files import (
    LOCK,
    check_place,
    check_replaceable,
    checked_path,
    describe_folder,
    elsewhere,
    foreign_to,
    owned,
    read_json,
    verify_folder,
    write_json,
    write_text,
    written,
    written_folder,
)


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_file_is_replaced_whole_and_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with written(path) as partial:
            partial.write_text("half of the n")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    with written(path) as partial:
        partial.unlink()  # as safetensors does, which writes a file of its own
        partial.touch(0o600)
        partial.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("where", ["/proc/x/a.txt", "file/a.txt", "folder"])
def test_a_file_that_cannot_be_written_gets_a_sentence(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"write: expected a file that can be written, got .* \(.+\)$"):
        write_text(tmp_path / where, "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "expected a whole a.json"),
        (lambda text: text.replace("7", "8"), "another content than its sha256"),
        (lambda text: "[1, 2]", "expected a whole a.json"),
        (lambda text: '{"a": 7}', "expected a whole a.json"),
        (lambda text: "[" * 100_000, "expected a whole a.json"),
        (lambda text: "\udc80", "expected a whole a.json"),
    ],
)
def test_json_that_is_not_as_it_was_written_is_refused(damage: object, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": 7, "b": (1, 2), "c": float("inf"), "d": {"é": None}}
    write_json(path, value)
    assert read_json(path, "test") == {**value, "b": [1, 2]}
    path.write_text(damage(path.read_text()), encoding="utf-8", errors="surrogateescape")  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"test: .*{sentence}"):
        read_json(path, "test")


def make(folder: Path, text: str, *, overwrite: bool = False) -> None:
    def ours(folder: Path) -> str | None:
        return foreign_to(folder, "m.json", "a form")

    with written_folder(folder, "test", overwrite=overwrite, ours=ours) as fresh:
        (fresh / "a.txt").write_text(text)
        (fresh / "b.txt").write_text(text)
        describe_folder(fresh, "m.json", {"format": "a form"})


HALF = """
import os, sys
from pathlib import Path
from solid_ext.files import written_folder
with written_folder(Path(sys.argv[1]), "test") as fresh:
    (fresh / "a.txt").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_to_write_there_and_what_another_fills_is_not(
    tmp_path: Path,
) -> None:
    for name in ("f", "f-new"):
        subprocess.run([sys.executable, "-c", HALF, str(tmp_path / name)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with written_folder(tmp_path / "f", "test") as one:
        (one / "a.txt").touch()
        make(tmp_path / "f", "other")  # whole before the one around it, which is being filled
        assert one.exists()
        (tmp_path / "f").rename(tmp_path / "g")
    assert sorted(name for name in os.listdir(tmp_path) if not name.startswith(".f-new.new-")) == ["f", "g"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_if_it_is_one_and_holds_nothing_else(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr("solid_ext.files._exchanged", lambda one, other: False)
    folder = tmp_path / "f"
    make(folder, "old")
    with pytest.raises(ValueError, match="test: expected a folder that does not exist yet"):
        make(folder, "new")
    make(folder, "new", overwrite=True)
    assert (folder / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["f"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"got .*, which holds notes\.txt too"):
        make(folder, "again", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "f")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"a folder of its own to overwrite, got .*other, which has no m\.json"):
        make(tmp_path / "other", "x", overwrite=True)
    for name, words in (("file", "a file"), ("link", "a link to .*f .name that folder")):
        with pytest.raises(ValueError, match=f"expected a folder to overwrite, got .*{name}, {words}"):
            make(tmp_path / name, "x", overwrite=True)
    make(tmp_path / "empty", "x", overwrite=True)
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(ValueError, match=r"got .*f, in which this process works"):
            make(Path("."), "x", overwrite=True)
    with pytest.raises(ValueError, match="test: expected a path of shorter names"):
        make(tmp_path / ("x" * 300), "x")
    assert sorted(os.listdir(tmp_path)) == ["empty", "f", "file", "link", "other", "other.partial"]
    assert (folder / "a.txt").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


KILLED = """
import os, sys, threading, time
from pathlib import Path
from typing import Any
sys.path.insert(0, {tests!r})
from test_files import make
threading.Thread(target=lambda: (sys.stdin.read(1), os._exit(9)), daemon=True).start()
print("ready", flush=True)
number = 0
while True:
    number += 1
    make(Path({folder!r}), str(number) * 20_000, overwrite=True)
"""


def test_a_reader_finds_a_whole_folder_at_any_time_and_a_kill_leaves_one(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    make(folder, "0")
    seen = set()
    for delay in (0.05, 0.11, 0.23):
        code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            end = time.monotonic() + delay
            while time.monotonic() < end:
                opened = os.open(folder, os.O_RDONLY)  # a name in one folder, whatever takes its place meanwhile
                try:
                    names = os.listdir(opened)
                finally:
                    os.close(opened)
                seen.add(tuple(sorted(names)))
            process.kill()
        verify_folder(folder, "m.json", "test")
    assert ("a.txt", "b.txt", "m.json") in seen
    assert all({"a.txt", "b.txt", "m.json"} >= set(names) for names in seen), "one may be deleted while it is listed"


def test_where_folders_cannot_be_exchanged_the_old_one_is_named(tmp_path: Path) -> None:
    assert elsewhere(tmp_path / "f") == ""
    make(tmp_path / ".f.old-1", "old")
    assert "f.old-1, which a replacement that was cut short left (rename it back)" in elsewhere(tmp_path / "f")


def test_each_byte_of_a_folder_counts(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    make(folder, "abc")
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for path, content in whole.items():
        for place in range(len(content)):
            flipped = bytearray(content)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(bytes(flipped))
            with pytest.raises(ValueError, match="test: expected"):
                verify_folder(folder, "m.json", "test")
        path.write_bytes(content[:-2])
        with pytest.raises(ValueError, match="test: expected"):
            verify_folder(folder, "m.json", "test")
        path.unlink()
        with pytest.raises(ValueError, match="test: expected"):
            verify_folder(folder, "m.json", "test")
        path.write_bytes(content)
    assert verify_folder(folder, "m.json", "test")["format"] == "a form"
    manifest = json.loads((folder / "m.json").read_text())
    del manifest["sha256"]
    write_json(folder / "m.json", {**manifest, "files": {"../f/a.txt": manifest["files"]["a.txt"]}})
    with pytest.raises(ValueError, match=r"expected \.\./f/a\.txt in"):
        verify_folder(folder, "m.json", "test")
    write_json(folder / "m.json", {**manifest, "files": 3})
    with pytest.raises(ValueError, match="expected the files' checksums"):
        verify_folder(folder, "m.json", "test")


HOLDER = """
import sys
from pathlib import Path
from typing import Any
from solid_ext.files import owned
with owned(Path(sys.argv[1]), "test"):
    print("held", flush=True)
    sys.stdin.read(1)
"""


def test_a_folder_has_one_owner_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "f"
    with owned(folder, "test"), owned(folder, "test"):
        refused: list[str] = []

        def other() -> None:
            try:
                with owned(folder, "test"):
                    pass
            except ValueError as error:
                refused.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert refused == [
            f"test: expected a folder that nobody works in, got {folder}, in use by another process or thread"
        ]
    (folder / ".a.txt.1234.partial").touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use by another process"), owned(folder, "test"):
            pass
        process.kill()
    with owned(folder, "test"):
        assert os.listdir(folder) == [LOCK], "what a killed process had begun is gone"
    with (
        pytest.raises(ValueError, match="test: expected a folder that can be written, got /proc/x"),
        owned(Path("/proc/x"), "test"),
    ):
        pass


@pytest.mark.parametrize("name", ["y" * 255, "ü" * 127])
def test_a_name_as_long_as_a_system_takes_names_a_file_and_a_folder(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    make(tmp_path / "in" / name, "one")
    make(tmp_path / "in" / name, "two", overwrite=True)
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]


def test_a_folder_whose_name_is_a_pattern_is_named_where_it_was_left(tmp_path: Path) -> None:
    (tmp_path / ".[a]*.old-1").mkdir()
    assert ".[a]*.old-1" in elsewhere(tmp_path / "[a]*")


@pytest.mark.parametrize("path", [None, 5, b"bytes", "a\0b"])
def test_what_names_no_folder_gets_a_sentence(path: Any, tmp_path: Path) -> None:
    expected = ValueError if isinstance(path, str) else TypeError
    with pytest.raises(expected, match=r"^load: expected a path( without null characters)?, got "):
        checked_path(path, "load")


@pytest.mark.parametrize("size", ["8", None, 8.0, True, [8]])
def test_a_size_that_is_no_number_is_refused(size: Any, tmp_path: Path) -> None:
    make(tmp_path / "folder", "text")
    manifest = json.loads((tmp_path / "folder" / "m.json").read_text())
    manifest.pop("sha256")
    next(iter(manifest["files"].values()))["bytes"] = size
    write_json(tmp_path / "folder" / "m.json", manifest)
    with pytest.raises(ValueError, match=r"test: expected the size of .* in .*m.json, got"):
        verify_folder(tmp_path / "folder", "m.json", "test")


def test_a_process_whose_folder_was_deleted_writes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for overwrite in (False, True):
        with written_folder(tmp_path / "made", "save", overwrite=overwrite, ours=lambda folder: None) as folder:
            write_text(folder / "file", str(overwrite))
        assert (tmp_path / "made" / "file").read_text() == str(overwrite)
    with (
        pytest.raises(ValueError, match="save: expected a path from a folder that exists, got made"),
        written_folder(Path("made"), "save", overwrite=False, ours=lambda folder: None),
    ):
        pass


def test_what_came_to_a_folders_place_meanwhile_is_not_replaced_without_overwrite(tmp_path: Path) -> None:
    folder = tmp_path / "f"

    def late() -> None:
        with written_folder(folder, "test", overwrite=False, ours=lambda _: None) as fresh:
            (fresh / "mine").touch()
            folder.mkdir()
            (folder / "theirs").touch()

    with pytest.raises(ValueError, match="test: expected a folder that does not exist yet"):
        late()
    assert os.listdir(tmp_path) == ["f"]
    assert os.listdir(folder) == ["theirs"]


def test_a_place_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "er" / "x", "out", "folder")
    (tmp_path / "file").touch()
    for place, reason in (
        ("file/x", "Not a directory"),
        ("x" * 300, "File name too long"),
        ("n/m/" + "x" * 300, "too"),
    ):
        with pytest.raises(ValueError, match=f"^out: expected a file that can be written, got .*{reason}"):
            check_place(tmp_path / place, "out", "file")
    assert os.listdir(tmp_path) == ["file"]


def test_a_hint_at_overwriting_is_for_who_can_overwrite_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(overwrite=True replaces one of its kind\)"):
        check_replaceable(tmp_path, "out", overwrite=False, ours=str)
    with pytest.raises(ValueError, match=r"expected a folder that does not exist yet, got [^()]*$"):
        check_replaceable(tmp_path, "out")
