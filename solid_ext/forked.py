"""A forked process: its parent's threads stay behind in the parent, and whoever waits for them waits for ever.

Polars' pool and OpenMP's both go on counting threads that a forked child has not. Polars is refused there; torch and
the kernels compute with one thread, with which they open no parallel region (torch's data workers do the same).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

POOL = re.compile(r"polars-\d+\s*\Z")
_TASKS = Path("/proc/self/task")
_state = {"pool": False, "polars": False, "torch": False}


def is_forked_child() -> bool:
    """Whether this process was forked from one that had loaded torch, so that it has to compute with 1 thread."""
    return _state["torch"]


def check_not_forked(what: str) -> None:
    """Refuse work that needs polars in a process forked from one in which polars had run.

    Args:
        what: begins the error's sentence.

    Raises:
        ValueError: this is such a process.
    """
    if _state["polars"]:
        raise ValueError(
            f"{what}: expected a process that was not forked after data had been read, got a forked one, in which "
            "polars has lost its threads and would wait for ever (start processes by 'spawn' or 'forkserver', or read "
            "and write the data in the parent; recommend() works here)"
        )


def _has_pool() -> bool:
    """Whether the threads of polars' pool are there; they are taken to be where a system does not list threads."""
    try:
        return any(POOL.match((task / "comm").read_text()) for task in _TASKS.iterdir())
    except OSError:
        return not _TASKS.exists()


def _before() -> None:
    _state["pool"] = _has_pool()


def _in_child() -> None:
    _state["polars"] = _state["polars"] or _state["pool"]
    if "torch" in sys.modules:
        _state["torch"] = True
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
