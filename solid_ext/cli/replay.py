"""solid-ext replay: a training step that was not finite, computed again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from solid_ext.cli.terminal import console, write_json


@dataclass(frozen=True)
class Replay:
    """Compute a step again whose loss or gradient was not finite, and say where that began.

    Example: solid-ext replay --run runs/first
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of the run that the step has ended."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        from solid_ext.train.fault import fault_of, replay

        found = replay(fault_of(self.run_folder))
        if self.json:
            write_json(asdict(found))
            return
        console.print(f"{found.stage}, epoch {found.epoch}, step {found.step}: the training expected {found.said}")
        here = "the step is finite here" if found.error is None else f"again: expected {found.error}"
        console.print(f"  {here}")
        if found.first is not None:
            console.print(f"  the first output that is not finite: that of {found.first}")
        for name, value in found.largest.items():
            console.print(f"  a large weight before the step: {value:.3g} in {name}")
        longest = sorted(
            found.gradients.items(), key=lambda entry: -entry[1] if entry[1] == entry[1] else -float("inf")
        )
        for name, value in longest[:-6:-1]:
            console.print(f"  gradient of {name}: length {value:.3g}")
