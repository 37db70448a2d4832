"""solid-ext export: a run's network for another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from solid_ext.cli.sources import load_run
from solid_ext.cli.terminal import complain, console


@dataclass(frozen=True)
class Export:
    """Write a run's network for another runtime: a folder with a program each for `encode` and `score`.

    Example: solid-ext export --run runs/first --for onnx --out first-onnx
    Example: solid-ext export --run runs/first --for torch --out first-torch
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    runtime: Annotated[Literal["torch", "onnx"], tyro.conf.arg(name="for")]
    """Who reads it: "torch" is programs of torch.export, whose operations are the package's own; "onnx" is ONNX of the
    reference operations, which needs no solid_ext."""
    out: Path
    """The folder to write."""
    overwrite: bool = False
    """Replace the folder if it exists."""

    def run(self) -> None:
        from solid_ext.serve.export import write_programs

        solid = load_run(self.run_folder)
        assert solid.model is not None
        assert solid.catalogue is not None
        files = write_programs(solid.model, solid.catalogue, self.out, self.runtime, overwrite=self.overwrite)
        if solid.neighbours is not None:
            complain("note: left out the neighbours, which are added to the network's logits")
        console.print(f"{', '.join(files)} in {self.out}")
