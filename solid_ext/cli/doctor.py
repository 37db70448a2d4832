"""solid-ext doctor and --version: what is installed here, and what it runs on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version

from rich.table import Table

from solid_ext.cli.terminal import console


@dataclass(frozen=True)
class Doctor:
    """Versions, how the kernels were built, what they run on."""

    def run(self) -> None:
        import torch

        from solid_ext import build_info
        from solid_ext.threads import usable_processors, use_threads

        info = build_info()
        table = Table(show_header=False)
        table.add_row("solid_ext", info["version"])
        table.add_row("python", platform.python_version())
        for package in ("torch", "numpy", "polars", "scikit-learn", "safetensors"):
            table.add_row(package, version(package))
        table.add_row("compiler", info["compiler"])
        table.add_row("instruction sets", ", ".join(info["isa_built"]) + " built")
        table.add_row("in use", f"{info['isa']} (SOLID_EXT_ISA forces another)")
        table.add_row("threads", f"{use_threads(0)}; {usable_processors()} of {os.cpu_count()} processors may be used")
        built = (
            f" for {', '.join(info['cuda']['architectures'])}, CUDA {info['cuda']['version']}" if info["cuda"] else ""
        )
        change = "pip install . with SOLID_EXT_CUDA=ON, AUTO or OFF builds for all architectures, the GPUs here, none"
        table.add_row("CUDA kernels", f"{info['cuda_build']}{built} ({change})")
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        table.add_row("GPU", gpu)
        console.print(table)


@dataclass(frozen=True)
class Version:
    """What `solid-ext --version` prints: of the compiled module alone, which is there in a second less than torch."""

    def run(self) -> None:
        import _solid_ext

        console.print(f"solid_ext {_solid_ext.build_info()['version']} (solid-ext doctor says what it runs on)")
