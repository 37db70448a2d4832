"""Encoders that are extras: asked for by name, kept quiet."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def require(module: str, wanted_by: str, extra: str) -> Any:
    """Import a package of an extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.replace("_", "-")
        raise ValueError(
            f"{wanted_by}: expected the package {package} (pip install 'solid_ext[{extra}]'), found none ({error})"
        ) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the screen inside."""
    logging = require("transformers.utils.logging", "encoder", "text")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
