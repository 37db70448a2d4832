"""Checkpoints: whole or not at all, and refused with a sentence when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from solid_ext.train.checkpoint import (
    load_checkpoint,
    load_model,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2).T, "b": torch.arange(4)}
    save_checkpoint(tmp_path / "deep" / "c.safetensors", tensors, {"epoch": 3})
    loaded, state = load_checkpoint(tmp_path / "deep" / "c.safetensors")
    assert state["epoch"] == 3
    torch.testing.assert_close(loaded, tensors)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c.safetensors"]


def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    def steps(model: nn.Linear, optimizer: torch.optim.Optimizer, count: int) -> None:
        for step in range(count):
            optimizer.zero_grad()
            model(torch.full((1, 3), float(step + 1))).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    straight = nn.Linear(3, 2)
    first = torch.optim.Adam(straight.parameters(), lr=0.1)
    steps(straight, first, 3)
    save_checkpoint(tmp_path / "c.safetensors", optimizer_tensors(first), {})
    resumed = nn.Linear(3, 2)
    resumed.load_state_dict(straight.state_dict())
    second = torch.optim.Adam(resumed.parameters(), lr=0.1)
    load_optimizer(second, load_checkpoint(tmp_path / "c.safetensors")[0])
    steps(straight, first, 2)
    steps(resumed, second, 2)
    assert torch.equal(straight.weight, resumed.weight)


def test_what_cannot_be_read_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint: expected a file, got .*none"):
        load_checkpoint(tmp_path / "none.safetensors")
    (tmp_path / "garbage.safetensors").write_bytes(b"\x00" * 64)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("garbage", "empty"):
        with pytest.raises(ValueError, match="checkpoint: expected safetensors in"):
            load_checkpoint(tmp_path / f"{name}.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"expected format version 2 in .*, got None"):
        load_checkpoint(tmp_path / "foreign.safetensors")


def test_weights_that_do_not_fit_get_a_sentence(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    good = model.state_dict()
    path = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match="has none: weight"):
        load_model(model, {"bias": good["bias"]}, path)
    with pytest.raises(ValueError, match="has it: extra"):
        load_model(model, {**good, "extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"expected bias \[2\], got \[3\]"):
        load_model(model, {**good, "bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"expected finite weights in .*, got NaN or infinity in bias"):
        load_model(model, {**good, "bias": torch.tensor([0.0, torch.nan])}, path)
