"""solid-ext export: a run's network for another runtime, or for devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from solid_ext.cli.sources import Dataset, load_run, open_dataset
from solid_ext.cli.terminal import complain, console

if TYPE_CHECKING:
    from solid_ext import SOLID


@dataclass(frozen=True)
class Export:
    """Write a run's network for another runtime: a folder with a program each for `encode` and `score`; or the static
    part of it that devices hold, for `solid_ext.device.DeviceModel`.

    Example: solid-ext export --run runs/first --for onnx --out first-onnx

    Example: solid-ext export --run runs/first --for torch --out first-torch

    Example: solid-ext export --run runs/first --for device --out first-device --dtype int8 --dataset data/ratings
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """The folder of a run, or of a model that was saved."""
    runtime: Annotated[Literal["torch", "onnx", "device"], tyro.conf.arg(name="for")]
    """Who reads it: "torch" is programs of torch.export, whose operations are the package's own; "onnx" is ONNX of the
    reference operations, which needs no solid_ext; "device" is the static part for numpy or a browser."""
    out: Path
    """The folder to write."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """Of a device's static part."""
    dataset: Dataset | None = None
    """The dataset that the run was trained on: a device's accuracy is measured on its test rows."""

    def run(self) -> None:
        for_devices = {"--dtype": self.dtype != "float32", "--dataset": self.dataset is not None}
        if self.runtime != "device" and any(for_devices.values()):
            given = " and ".join(flag for flag, there in for_devices.items() if there)
            raise ValueError(f"export: expected no {given} with --for {self.runtime}, got what is --for device")
        solid = load_run(self.run_folder)
        if self.runtime == "device":
            self._for_devices(solid)
            return
        from solid_ext.serve.export import write_programs

        assert solid.model is not None
        assert solid.catalogue is not None
        files = write_programs(solid.model, solid.catalogue, self.out, self.runtime, overwrite=self.overwrite)
        if solid.neighbours is not None:
            complain("note: left out the neighbours, which are added to the network's logits")
        console.print(f"{', '.join(files)} in {self.out}")

    def _for_devices(self, solid: SOLID) -> None:
        from solid_ext.files import check_new_folder
        from solid_ext.serve.on_device import foreign_device

        check_new_folder(self.out, "export", overwrite=self.overwrite, ours=foreign_device)
        data = None if self.dataset is None else open_dataset(self.dataset)
        before = None if data is None else solid.evaluate(data)["full"]["ndcg@10"]
        said = solid.export_device(self.out, dtype=self.dtype, overwrite=self.overwrite)
        console.print(f"static part {said['version'][:12]} in {self.out}: {said['bytes']:,} bytes of {self.dtype}")
        console.print(f"a person's blob, which SOLID.personalize makes: {said['bytes_a_person']:,} bytes")
        if self.dtype != "float32":
            console.print(
                f"rounding moves a score by {said['loss']['score']:.2g} at most and keeps {said['loss']['top10']:.1%} "
                "of the ten best items, over histories of one popular item each"
            )
        if data is not None:
            after = solid.evaluate_scorer(solid.on_device().rounded(self.dtype), data)["full"]["ndcg@10"]
            console.print(f"full ndcg@10 {after:.4f} on the device, {before:.4f} on the server")
