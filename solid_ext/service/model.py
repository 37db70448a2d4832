"""The model that answers, and the watch over its folder: a new run takes its place when it is loaded, whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from solid_ext.model_folder import manifest_of
from solid_ext.service.served import Served
from solid_ext.solid import SOLID

PATIENCE = 30  # polls between two attempts at a folder that cannot be loaded and does not change

log = logging.getLogger("solid_ext.service")


class _Seen(NamedTuple):
    """What tells one model's folder from the next one's without reading it."""

    inode: int
    modified: int
    size: int


def _seen(folder: Path) -> _Seen | None:
    try:
        found = manifest_of(folder).stat()
    except OSError:
        return None
    return _Seen(found.st_ino, found.st_mtime_ns, found.st_size)


def _load(folder: Path) -> Served:
    """The model of a folder, named by its version."""
    solid = SOLID.load(folder)
    assert solid.version is not None  # a model that was loaded has one
    return Served(solid, solid.version[:12])


class Follower:
    """The model of a folder, which follows when the folder is replaced.

    A new model is loaded beside the one that answers, asked once so that its tables are made, and then takes its place
    in one step; requests that have begun end with the model they began with. A folder that cannot be loaded (torn,
    gone, of another version) changes nothing: the old model answers on, `failed` says so, and the folder is tried again
    when it changes, and every half minute.

    Args:
        folder: of a run, or of a model.

    Raises:
        ValueError: a folder that cannot be loaded at the start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen = _seen(folder)
        self.current = _load(folder)
        self.current.prepare()
        self.failed: str | None = None
        self._polls = 0

    async def follow(self, seconds: float, executor: Executor, on_load: Callable[[str], None]) -> None:
        """Look at the folder every so many seconds, until cancelled; `on_load` hears "loaded" or "failed"."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(seconds)
            seen = _seen(self.folder)
            self._polls += 1
            if seen == self._seen and (self.failed is None or self._polls < PATIENCE):
                continue
            self._seen, self._polls = seen, 0
            try:
                served = await loop.run_in_executor(executor, self._load)
            except (ValueError, TypeError, OSError, MemoryError, RuntimeError) as error:
                self.failed = str(error)
                log.warning("the model of %s answers on: %s", self.current.name, error)
                on_load("failed")
                continue
            self.failed = None
            if served.name != self.current.name:
                log.info("model %s takes the place of %s", served.name, self.current.name)
                self.current = served
                on_load("loaded")

    def _load(self) -> Served:
        served = _load(self.folder)
        if served.name != self.current.name:
            served.prepare()
        return served
