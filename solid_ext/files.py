"""Files and folders that are there whole or not at all, and known to be what was written."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from filelock import FileLock, Timeout
from safetensors import SafetensorError

LOCK = ".solid_ext.lock"
MANIFEST = "manifest.json"
ATTEMPTS = 5  # at a folder that is replaced again while it is read
T = TypeVar("T")
_PARTIAL = ".partial"
_CHUNK = 1 << 22
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: a `Path` keeps no two
_EXCHANGE, _FROM_HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of renameat2(2)


def checked_path(path: Any, what: str) -> Path:
    """A path that every library here can open: polars and safetensors take UTF-8 alone.

    Args:
        what: begins the error's sentence.

    Raises:
        TypeError: neither text nor a path.
        ValueError: with a null character, a name that is not UTF-8 on the way from the root, or a longer one than the
            system takes.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{what}: expected a path, got {path!r:.80}")
    expect_local(path, what)
    text = os.path.expanduser(os.fspath(path))  # as polars does when it reads: one name is one place
    if "\0" in text:
        raise ValueError(f"{what}: expected a path without null characters, got {text!r:.80}")
    try:
        os.path.abspath(text).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what}: expected a path of names in UTF-8, got {os.path.abspath(text)!r}") from error
    except OSError as error:
        raise ValueError(f"{what}: expected a path from a folder that exists, got {text} ({_reason(error)})") from error
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # which `Path.exists` and the like would raise as it is
            raise ValueError(f"{what}: expected a path of shorter names, got {text} ({_reason(error)})") from error
    return Path(text)


def expect_local(path: str | os.PathLike[str], what: str) -> None:
    """Refuse the address of something elsewhere.

    Raises:
        ValueError: `https://..`, `s3://..` and the like, unless such a path is there.
    """
    text = os.fspath(path)
    if isinstance(text, str) and _URL.match(text) and not os.path.lexists(text):
        raise ValueError(
            f"{what}: expected a local path, got the address {text!r:.200} (nothing is read from elsewhere)"
        )


@contextmanager
def written(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A path to write to, beside `path`, whose place it takes when the body ends; until then the old file stays.

    The file reaches the disk before its name does. Its mode is the one that the umask gives.

    Args:
        keep: another path in that folder, which the old file gets once the new one is on the disk; None keeps none.

    Raises:
        ValueError: it cannot be written; what was there before is whole, and nothing else is left.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")  # short, however long the file's own name is
    try:
        _make_folder(path.parent)
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode  # safetensors writes a file of its own, for its owner alone
        yield partial
        partial.chmod(mode)
        _to_disk(partial)
        if keep is not None and path.exists():
            _name_too(path, keep)
        os.replace(partial, path)
        _to_disk(path.parent)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"write: expected a file that can be written, got {path} ({_reason(error)})") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, and wait until their names are on the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _to_disk(made.parent)


def _name_too(path: Path, name: Path) -> None:
    """Give a file another name as well; where a file system has no links, that name instead of its own."""
    link = path.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, name)
        return
    try:
        os.replace(link, name)
    finally:
        link.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        ValueError: it cannot be written.
    """
    with written(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all, its `sha256` among its entries.

    Raises:
        ValueError: it cannot be written.
    """
    write_text(path, json.dumps({**value, "sha256": _json_digest(value)}, indent=2) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Args:
        what: begins the error's sentence.

    Raises:
        ValueError: a file that is missing, torn, or not as it was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        digest = value.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{what}: expected a whole {path.name}, got {path} ({_reason(error)})") from error
    if digest != _json_digest(value):
        raise ValueError(f"{what}: expected {path} as it was written, got another content than its sha256")
    return value


@contextmanager
def written_folder(
    folder: Path, what: str, *, overwrite: bool = False, ours: Callable[[Path], str | None] | None = None
) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the body ends.

    Where the system can exchange two folders, a reader or a kill finds the old one or the new one at any time;
    elsewhere an instant between two renames has the old one beside its place, and `elsewhere` names it. What is filled
    lies beside the place too; the next to write there removes it where the process that filled it was killed.

    Args:
        what: begins the errors' sentences.
        overwrite: replace what is there, if it is such a folder; an empty folder too.
        ours: gives None for a folder that may be replaced, else what it holds that nobody asked to delete; None where
            the caller replaces none.

    Raises:
        ValueError: there is something that may not be replaced, or the folder cannot be written. Nothing has changed.
    """
    check_replaceable(folder, what, overwrite=overwrite, ours=ours)
    folder = Path(os.path.abspath(folder))  # `.` and `a/..` have names too
    marker = uuid.uuid4().hex
    fresh = folder.with_name(f".{_short(folder)}.new-{_machine()}-{os.getpid()}-{marker}")
    old = folder.with_name(f".{_short(folder)}.old-{marker}")
    try:
        for left in folder.parent.glob(f".{glob.escape(_short(folder))}.new-{_machine()}-*"):
            if not _is_running(int(left.name.split("-")[-2])):
                shutil.rmtree(left, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        for path in (*fresh.iterdir(), fresh):
            _to_disk(path)
        check_replaceable(folder, what, overwrite=overwrite, ours=ours)  # another may have written there meanwhile
        if folder.exists() and _exchanged(fresh, folder):
            fresh, old = old, fresh
        elif folder.exists():
            folder.rename(old)
        if fresh.exists():
            fresh.rename(folder)
        _to_disk(folder.parent)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{what}: expected a folder that can be written, got {folder} ({_reason(error)})") from error
    finally:
        with suppress(OSError):
            if old.exists() and not os.path.lexists(folder):
                old.rename(folder)
        for rest in (fresh, old):
            shutil.rmtree(rest, ignore_errors=True)


@cache
def _machine() -> str:
    """A name for where the number of a process means that process: the host, and in it the container."""
    place = ""
    with suppress(OSError):
        place = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {place}".encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    """Whether there is a process of this number here; where none can be asked for, there is."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def check_replaceable(
    folder: Path, what: str, *, overwrite: bool = False, ours: Callable[[Path], str | None] | None = None
) -> None:
    """Refuse a place where `written_folder` may not make a folder; nothing is made or changed.

    Raises:
        ValueError: there is something that may not be replaced, or whose name no library here can open.
    """
    checked_path(folder, what)
    try:
        folder = Path(os.path.abspath(folder))
        if not os.path.lexists(folder):
            return
        if not overwrite or ours is None:
            hint = "" if ours is None else " (overwrite=True replaces one of its kind)"
            raise ValueError(f"{what}: expected a folder that does not exist yet, got {folder}{hint}")
        if folder.is_symlink():
            target = os.readlink(folder)
            raise ValueError(
                f"{what}: expected a folder to overwrite, got {folder}, a link to {target} (name that folder)"
            )
        if not folder.is_dir():
            raise ValueError(f"{what}: expected a folder to overwrite, got {folder}, a file")
        if _works_in(folder):
            raise ValueError(f"{what}: expected a folder to overwrite, got {folder}, in which this process works")
        foreign = ours(folder) if any(folder.iterdir()) else None
    except OSError as error:
        raise ValueError(f"{what}: expected a folder that can be written, got {folder} ({_reason(error)})") from error
    if foreign is not None:
        raise ValueError(f"{what}: expected a folder of its own to overwrite, got {folder}, {foreign}")


def check_place(path: Path, what: str, kind: str) -> None:
    """Refuse a place where no file or folder can be made, before the work whose outcome it is for.

    What is made to find out is removed again.

    Args:
        kind: "file" or "folder", for the error's sentence.

    Raises:
        ValueError: a path through a file, a folder that cannot be written, a name that the system does not take.
    """
    place = Path(os.path.abspath(path))
    probe = place.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")
    missing = [folder for folder in place.parents if not os.path.lexists(folder)]
    try:
        probe.mkdir(parents=True)
        with suppress(FileNotFoundError):
            place.lstat()
    except OSError as error:
        raise ValueError(f"{what}: expected a {kind} that can be written, got {path} ({_reason(error)})") from error
    finally:
        for made in (probe, *missing):
            with suppress(OSError):
                made.rmdir()


def check_new_folder(
    folder: Path, what: str, *, overwrite: bool = False, ours: Callable[[Path], str | None] | None = None
) -> None:
    """Refuse a place where `written_folder` could not make a folder, before what it is for has been made.

    Raises:
        ValueError: as `check_replaceable` and `check_place`.
    """
    check_replaceable(folder, what, overwrite=overwrite, ours=ours)
    check_place(folder, what, "folder")


def _works_in(folder: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # this process's folder was deleted
        return False


def _short(folder: Path) -> str:
    """The folder's name, or what stands for it where a longer name would be more than a system takes."""
    return folder.name if len(os.fsencode(folder.name)) <= 100 else hashlib.sha256(folder.name.encode()).hexdigest()


def elsewhere(folder: Path) -> str:
    """`, but ..` that names where a replacement which was cut short left the folder; nothing where there was none."""
    left = sorted(folder.parent.glob(f".{glob.escape(_short(folder))}.old-*")) if folder.parent.is_dir() else []
    return f", but {left[-1]}, which a replacement that was cut short left (rename it back)" if left else ""


def describe_folder(folder: Path, name: str, described: Mapping[str, Any]) -> None:
    """Write the folder's manifest, last of all its files: what it is, and size and sha256 of each of them."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in sorted(folder.iterdir())}
    write_json(folder / name, {**described, "files": files})


def verify_folder(folder: Path, name: str, what: str) -> dict[str, Any]:
    """The manifest of a folder, every file of which is as it was when the manifest was written.

    Raises:
        ValueError: the file that is missing, torn or changed.
    """
    manifest = read_json(folder / name, what)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{what}: expected the files' checksums in {folder / name}, got none")
    for file, facts in files.items():
        path = folder / file
        if Path(file).name != file or not isinstance(facts, dict) or not path.is_file():
            raise ValueError(f"{what}: expected {file} in {folder}, got none")
        size = facts.get("bytes")
        if type(size) is not int:
            raise ValueError(f"{what}: expected the size of {file} in {folder / name}, got {size!r:.80}")
        if path.stat().st_size != size:
            raise ValueError(f"{what}: expected {size:,} bytes in {path}, got {path.stat().st_size:,} (copy it again)")
        if digest(path) != facts.get("sha256"):
            raise ValueError(
                f"{what}: expected {path} as it was written, got another content than {name} says (copy it again)"
            )
    return manifest


def read_whole(what: str, manifest: Callable[[], Path], read: Callable[[], T]) -> tuple[T, str]:
    """What `read` makes of a folder that may be replaced meanwhile, all of it of one and the same.

    The manifest holds the checksum of every file. Where it is another one after reading than before, what was read may
    be of both folders, and is read again.

    Args:
        what: begins the error's sentence.
        manifest: where the folder's manifest is now.
        read: reads the folder, and refuses with ValueError or OSError what cannot be read.

    Returns:
        What `read` gave, and the sha256 of the manifest's bytes.

    Raises:
        ValueError: as `read` of a folder that stays; a folder that is replaced faster than it can be read.
    """
    for _ in range(ATTEMPTS):
        before = _digest_now(manifest())
        try:
            found = read()
        except (ValueError, OSError):
            if before == _digest_now(manifest()):
                raise
            continue
        if before is not None and before == _digest_now(manifest()):
            return found, before
    raise ValueError(
        f"{what}: expected a folder that stays while it is read, got {manifest().parent}, replaced {ATTEMPTS} times"
    )


def foreign_to(folder: Path, name: str, form: str) -> str | None:
    """What keeps a folder from being replaced: it has no manifest of this format, or a file that this does not list."""
    try:
        manifest = json.loads((folder / name).read_text(encoding="utf-8"))
        listed = {name, *manifest.get("files", {})}
        own = manifest["format"] == form
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        own = False
    if not own:
        return f"which has no {name} of a {form}"
    others = sorted(path.name for path in folder.iterdir() if path.name not in listed)
    return f"which holds {others[0]} too" if others else None


@contextmanager
def owned(folder: Path, what: str) -> Iterator[None]:
    """The folder, made if need be, as this thread's alone; the claim ends with the body or with the process.

    A claim inside a claim of the same thread holds at once.

    Raises:
        ValueError: another process or thread works in it, or it cannot be made.
    """
    with _locked(folder, folder, LOCK, what) as first:
        if first:
            for left in folder.rglob(f".*{_PARTIAL}"):  # by a process that was killed: nobody else writes here
                left.unlink(missing_ok=True)
        yield


@contextmanager
def owned_place(folder: Path, what: str) -> Iterator[None]:
    """The place of a folder that is read and then replaced, as this thread's alone, whether there is one or not.

    `owned` claims a folder by a file in it, which would go away with it; this one lies beside it, `.NAME.lock`, and
    stays. It keeps away who claims the place too, and no reader.

    Raises:
        ValueError: another process or thread has it, or nothing can be written beside it.
    """
    folder = checked_path(folder, what)
    place = Path(os.path.abspath(folder))
    with _locked(folder, place.parent, f".{_short(place)}.lock", what):
        yield


@contextmanager
def _locked(folder: Path, beside: Path, name: str, what: str) -> Iterator[bool]:
    """Hold the lock file of that name, which claims `folder`; whether it is this thread's first claim of it."""
    checked_path(folder, what)
    try:
        beside.mkdir(parents=True, exist_ok=True)
        lock = FileLock(beside.resolve() / name, timeout=0, is_singleton=True, mode=0o666)
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{what}: expected a folder that nobody works in, got {folder}, in use by another process or thread"
        ) from error
    except OSError as error:
        raise ValueError(f"{what}: expected a folder that can be written, got {folder} ({_reason(error)})") from error
    try:
        yield lock.lock_counter == 1
    finally:
        lock.release()


def _exchanged(one: Path, other: Path) -> bool:
    """Two folders change places in one step, where the system can."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return call(_FROM_HERE, os.fsencode(one), _FROM_HERE, os.fsencode(other), _EXCHANGE) == 0


def _to_disk(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk; a system that cannot open a folder has no need to."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _digest_now(path: Path) -> str | None:
    """The digest of a file that may go away meanwhile; None where it is not there."""
    try:
        return digest(path)
    except OSError:
        return None


def _json_digest(value: Mapping[str, Any]) -> str:
    # Through JSON once, so that what is read back (lists for tuples, text for keys) has the same digest.
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
