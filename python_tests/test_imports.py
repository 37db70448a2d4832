"""What an import loads: the layers and operations stand on torch and numpy alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import _solid_ext
import pytest

import solid_ext

ROOT = Path(__file__).parents[1]
HEAVY = ("polars", "scipy", "sklearn", "matplotlib", "tyro", "rich", "yaml", "safetensors", "PIL", "pandas", "pyarrow")

BLOCKED = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # what makes `import name` fail
"""


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(Path(_solid_ext.__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


def test_layers_and_operations_work_where_torch_and_numpy_are_all_there_is(tmp_path: Path) -> None:
    done = python(
        BLOCKED
        + """
import torch
from solid_ext import Codebook, DynamicMLP, build_info, dynamic_mlp, nearest_code
from solid_ext.nn import DynamicLinear
from solid_ext.ops import dynamic_linear

x, z = torch.randn(8, 16), torch.randn(8, 16)
assert nearest_code(x, torch.randn(5, 16)).index.shape == (8,)
quantized, *_ = Codebook(5, 16)(x)
y = DynamicMLP(sizes=(16, 16, 16), code_dim=16, delta=0.01)(quantized, z, z)
y.sum().backward()
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_the_package_itself_loads_nothing_before_a_name_is_asked_for(tmp_path: Path) -> None:
    done = python(
        "import sys, solid_ext; print([n for n in ('torch', 'polars', '_solid_ext') if n in sys.modules])", tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("name", solid_ext.__all__)
def test_every_public_name_is_found(name: str) -> None:
    assert getattr(solid_ext, name).__name__ == name
    assert name in dir(solid_ext)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'solid_ext' has no attribute 'Solid'"):
        solid_ext.Solid  # noqa: B018


@pytest.mark.parametrize(
    "asked",
    [
        "--help",
        "--version",
        *(f"{command} --help" for command in ("prepare", "train", "recommend", "serve", "compare", "tune")),
    ],
)
def test_the_command_line_tells_of_itself_without_torch(asked: str, tmp_path: Path) -> None:
    done = python(
        f"""
import sys
from solid_ext.cli import main
try:
    main({asked.split()!r})
except SystemExit as stop:
    assert stop.code == 0
heavy = ("torch", "polars", "scipy", "sklearn", "safetensors", "matplotlib", "fastapi", "uvicorn")
print([name for name in heavy if name in sys.modules], file=sys.stderr)
""",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "solid" in done.stdout


def test_a_device_needs_numpy_alone(tmp_path: Path) -> None:
    from python_tests.untrained import untrained

    solid = untrained(50, low_rank=False)
    solid.export_device(tmp_path / "device")
    (tmp_path / "blob").write_bytes(solid.personalize([30, 40]))
    done = python(
        BLOCKED
        + """
for name in ("torch", "_solid_ext"):
    sys.modules[name] = None
from solid_ext.device import DeviceModel
device = DeviceModel("device").load("blob")
print([entry.item for entry in device.observe(70).recommend(20)])
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    from solid_ext.device import DeviceModel

    here = DeviceModel(tmp_path / "device").load(tmp_path / "blob").observe(70).recommend(20)
    assert done.stdout == f"{[entry.item for entry in here]}\n"
