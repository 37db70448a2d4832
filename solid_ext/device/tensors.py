"""Reading what a device is sent: arrays of the safetensors format, widened to what is computed with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}
SCALE = ".scale"  # of an array of int8: what each column is multiplied by


def read_tensors(content: bytes, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file, as they lie there, and its metadata.

    The format is a length of 8 bytes, so much JSON that names dtype, shape and place of each array, and their bytes. It
    is read here, and not by its own library, because a device has numpy alone.

    Args:
        what: begins the error's sentence.

    Raises:
        ValueError: bytes of another format, or cut off.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        metadata: dict[str, str] = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise TypeError(f"metadata of the kind {type(metadata).__name__}")
        data, arrays = memoryview(content)[8 + size :], dict[str, np.ndarray]()
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            array = np.frombuffer(data[first:end], DTYPES[entry["dtype"]])
            if end > len(data):
                raise ValueError("fewer bytes than its header says")
            arrays[name] = array.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{what}: expected safetensors, got {len(content):,} bytes that are none ({error})") from error
    return arrays, metadata


def digest_of(content: bytes, version: str) -> str:
    """The sha256 of a version and the arrays of a safetensors file, whatever its header says of them."""
    digest = hashlib.sha256(version.encode())
    digest.update(memoryview(content)[8 + int.from_bytes(content[:8], "little") :])
    return digest.hexdigest()


def widened(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arrays with a fraction, or with a scale that they are multiplied by, in float32; others as they are."""
    found = {}
    for name, array in arrays.items():
        if name.endswith(SCALE):
            continue
        if name + SCALE in arrays:
            array = array * arrays[name + SCALE]
        found[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    return found
