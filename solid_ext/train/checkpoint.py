"""Checkpoints: tensors and a JSON state in one safetensors file, replaced whole or not at all, with their checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from solid_ext.files import written

VERSION = 2


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: Path | None = None
) -> None:
    """Write tensors and their JSON state; a reader sees the old file or the new one, never a part.

    Args:
        keep: where the old file goes; None keeps none.

    Raises:
        ValueError: it cannot be written; what was there before is whole.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"version": VERSION, **state})
    metadata = {"state": text, "sha256": _checksum(contiguous, text)}
    with written(path, keep=keep) as partial:
        save_file(contiguous, partial, metadata=metadata)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_checkpoint` wrote: tensors by name, and the state.

    Raises:
        ValueError: a file that is missing, torn, of another format, or not as it was written.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint: expected a file, got {path}, which is none")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata.get("state", "null")
            state = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, ValueError, RecursionError, RuntimeError) as error:
        raise ValueError(f"checkpoint: expected safetensors in {path}, got {error}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        found = state.get("version") if isinstance(state, dict) else None
        raise ValueError(
            f"checkpoint: expected format version {VERSION} in {path}, got {found} (what another version of solid_ext "
            "wrote is trained again)"
        )
    if metadata.get("sha256") != _checksum(tensors, text):
        raise ValueError(f"checkpoint: expected {path} as it was written, got another content than its sha256")
    return tensors, state


def _checksum(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype, in the order of its indices."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that do not fit name by name and shape by shape, or hold NaN; `expected` may be on no device."""
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            where = "has none" if name not in tensors else "has it"
            raise ValueError(
                f"checkpoint: expected the tensors of this configuration, got {path}, which {where}: {name}"
            )
        if tensors[name].shape != expected[name].shape:
            raise ValueError(
                f"checkpoint: expected {name} {list(expected[name].shape)}, got {list(tensors[name].shape)} in {path}"
            )
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise ValueError(f"checkpoint: expected finite weights in {path}, got NaN or infinity in {name}")


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a model from tensors that must fit it name by name and shape by shape, and hold no NaN."""
    check_fit(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter number: `optimizer.3.exp_avg`."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        ValueError: tensors that are no state of this optimizer.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Refuse moments that are none of the parameters', or not finite; an optimizer that has stepped has some.

    Raises:
        ValueError: what is wrong with them.
    """
    states = [(parameter, optimizer.state.get(parameter, {})) for parameter in optimizer.param_groups[0]["params"]]
    if not any(state for _, state in states):
        raise ValueError("no moments of Adam")
    for parameter, state in states:
        for name, value in state.items():
            if name != "step" and value.shape != parameter.shape:
                raise ValueError(f"{name} {list(value.shape)} of a parameter {list(parameter.shape)}")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} with NaN or infinity")
