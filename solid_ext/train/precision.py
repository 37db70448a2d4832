"""In which precision a GPU computes float32 matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32_products(wanted: bool) -> Iterator[None]:
    """float32 products on a GPU may round their factors to TF32 inside, if that is wanted; else all stays as it is."""
    settings: Any = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "tf32") if hasattr(settings, "fp32_precision") else ("allow_tf32", True)
    before = getattr(settings, name)
    if wanted:
        setattr(settings, name, value)
    try:
        yield
    finally:
        if wanted:
            setattr(settings, name, before)
