"""What an installed wheel must do, without the checkout: kernels, a training, a saved model, a device. Prints one line.

    python python_tests/wheel_smoke.py

`make wheel` runs it in an environment without a compiler, `make wheel-aarch64` on an emulated processor.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch

from solid_ext import SOLID, DynamicMLP, build_info, nearest_code
from solid_ext.data import synthetic_dataset
from solid_ext.device import DeviceModel
from solid_ext.ops import gru_last_state


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x, codes = (torch.randn(count, 32, generator=generator) for count in (500, 64))
    expected = torch.cdist(x.double(), codes.double()).argmin(-1)
    assert (nearest_code(x, codes).index == expected).all(), "a wrong code"
    layers, x = DynamicMLP(code_dim=32), x[:100]
    exact = copy.deepcopy(layers).double()
    exact.backend = "reference"
    difference = layers(x, x, x).double() - exact(x.double(), x.double(), x.double())
    assert difference.abs().max() < 1e-5, "wrong generated layers"
    gru, sequences = torch.nn.GRU(32, 32, batch_first=True), x.reshape(10, 10, 32)
    state = gru_last_state(sequences, torch.ones(10, 10, dtype=torch.bool), *gru.parameters())
    difference = state.double() - copy.deepcopy(gru).double()(sequences.double())[1][0]
    assert difference.abs().max() < 1e-5, "a wrong state of a GRU"
    data, _ = synthetic_dataset(300, 60, 6, seed=0)
    model = SOLID(epochs=2, eval_negatives=20).fit(data)
    with tempfile.TemporaryDirectory() as folder:
        loaded = SOLID.load(model.save(Path(folder) / "model"))
        model.export_device(Path(folder) / "device")
        device = DeviceModel(Path(folder) / "device")
    history = ["item-01", "item-02"]
    expected = model.recommend([history], 5)
    assert loaded.recommend([history], 5) == expected, "a loaded model recommends other items"
    on_device = device.load(model.personalize(history)).recommend(5)
    assert [entry.item for entry in on_device] == [entry.item for entry in expected[0]], (
        "a device recommends other items"
    )
    info = build_info()
    print(f"solid_ext {info['version']} beside torch {torch.__version__} on {info['isa']}: all is well")


if __name__ == "__main__":
    main()
