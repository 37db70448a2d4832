"""Checks of what an operation is given, each of which refuses it by one sentence before work starts."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from solid_ext.ops._library import unobserved

Backend = Literal["native", "reference"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def expect_tensor(call: str, name: str, value: Any) -> None:
    """Refuse what is no dense tensor.

    Raises:
        TypeError: no tensor.
        ValueError: a sparse or nested one.
    """
    if not isinstance(value, Tensor):
        hint = "; torch.from_numpy makes one of it" if type(value).__module__ == "numpy" else ""
        raise TypeError(f"{call}: expected {name} a tensor, got {type(value).__name__}{hint}")
    if value.layout is not torch.strided or value.is_nested:
        raise ValueError(f"{call}: expected {name} a dense tensor, got {'nested' if value.is_nested else value.layout}")


def expect_like(call: str, name: str, value: Any, shape: Sequence[Any], like: Tensor, text: str = "") -> None:
    """Refuse what is no dense tensor of this shape, and of the dtype and on the device of `like`.

    Args:
        text: how the sentence spells the shape; the numbers alone where it is empty.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: another shape, layout or device.
    """
    expect_tensor(call, name, value)
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{call}: expected {name} {text or list(shape)}, got {list(value.shape)}")
    if value.dtype != like.dtype:
        raise TypeError(f"{call}: expected {name} of {like.dtype}, got {value.dtype}")
    expect_device(call, name, value, like)


def expect_device(call: str, name: str, value: Tensor, like: Tensor) -> None:
    """Refuse a tensor on another device than `like`.

    Raises:
        ValueError: another device.
    """
    if value.device != like.device:
        raise ValueError(f"{call}: expected {name} on {like.device}, got {value.device}")


def expect_mask(call: str, mask: Any, shape: Sequence[Any], like: Tensor, text: str = "") -> None:
    """Refuse what is no dense bool tensor of this shape on the device of `like`.

    Raises: as `expect_like`.
    """
    expect_tensor(call, "mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{call}: expected mask of torch.bool, got {mask.dtype}")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{call}: expected mask {text or list(shape)}, got {list(mask.shape)}")
    expect_device(call, "mask", mask, like)


def expect_ids(name: str, ids: Any, rows: int, what: str = "ids") -> None:
    """Refuse what is no dense int64 tensor of numbers 0 .. rows - 1.

    The numbers are read only on the CPU, and only where nothing traces: elsewhere reading them would mean waiting for
    the device, and the lookups refuse them themselves.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: a number out of range.
    """
    expect_tensor(name, what, ids)
    if ids.dtype != torch.int64:
        raise TypeError(f"{name}: expected {what} of torch.int64, got {ids.dtype}")
    if ids.numel() == 0 or not unobserved(ids):
        return
    least, largest = (int(bound) for bound in ids.aminmax())
    if least < 0 or largest >= rows:
        raise ValueError(f"{name}: expected {what} in 0 .. {rows - 1}, got {least if least < 0 else largest}")


MOST = 2**63 - 1  # of int64, in which sizes and counts are kept


def size(call: str, name: str, value: Any, least: int = 1) -> int:
    """The value as an int.

    Raises:
        TypeError: no whole number.
        ValueError: one below `least`, or above 2^63 - 1.
    """
    if isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
        raise TypeError(f"{call}: expected {name} a whole number, got {value!r}")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{call}: expected {name} >= {least}, got {number}")
    if number > MOST:
        raise ValueError(f"{call}: expected {name} <= {MOST}, got {number}")
    return number


def expect_backend(call: str, backend: Any) -> None:
    """Refuse what names no backend.

    Raises:
        ValueError: neither "native" nor "reference".
    """
    if backend not in get_args(Backend):
        raise ValueError(f"{call}: expected backend 'native' or 'reference', got {backend!r}")


def expect_tensors(call: str, name: str, values: Any) -> None:
    """Refuse what is no list of dense tensors; `name` is that of one. (`expect_tensor` costs 0.3 us each.)

    Raises:
        TypeError: no list or tuple, or an entry that is no tensor.
        ValueError: an entry that is not dense.
    """
    if type(values) not in (list, tuple) and (isinstance(values, Tensor) or not isinstance(values, Sequence)):
        raise TypeError(f"{call}: expected {name}s a list of tensors, got {type(values).__name__}")
    for value in values:
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
            expect_tensor(call, name, value)


def real(call: str, name: str, value: Any) -> float:
    """The value as a float; a tensor is no number, for its gradient would be lost.

    Raises:
        TypeError: no real number.
        ValueError: one that no float64 holds.
    """
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{call}: expected {name} a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{call}: expected {name} within float64, got one beyond it") from None


class Accepted:
    """The calls whose checks have passed, each by all that the checks read of it: such a call is not checked again.

    A check of twenty tensors takes longer than the kernel of a small call; to look its key up takes a tenth of it.
    """

    MOST = 1024  # keys, a few hundred bytes each; then all are forgotten

    def __init__(self) -> None:
        self._keys: set[Any] = set()

    def knows(self, key: Any) -> bool:
        """Whether the key was added; None never is."""
        return key is not None and key in self._keys

    def add(self, key: Any) -> None:
        """Remember the key, if it is not None."""
        if key is None:
            return
        if len(self._keys) >= self.MOST:
            self._keys.clear()
        self._keys.add(key)
