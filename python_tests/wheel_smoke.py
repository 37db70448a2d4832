"""What an installed wheel must do, without the checkout: kernels, a training, a saved model. Prints one line.

    python python_tests/wheel_smoke.py

`make wheel` runs it in an environment without a compiler.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from solid_ext import SOLID, build_info, nearest_code
from solid_ext.data import synthetic_dataset


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    x, codes = (torch.randn(count, 32, generator=generator) for count in (500, 64))
    expected = torch.cdist(x.double(), codes.double()).argmin(-1)
    assert (nearest_code(x, codes).index == expected).all(), "a wrong code"
    data, _ = synthetic_dataset(300, 60, 6, seed=0)
    model = SOLID(epochs=2, eval_negatives=20).fit(data)
    with tempfile.TemporaryDirectory() as folder:
        loaded = SOLID.load(model.save(Path(folder) / "model"))
    history = [["item-01", "item-02"]]
    assert loaded.recommend(history, 5) == model.recommend(history, 5), "a loaded model recommends other items"
    info = build_info()
    print(f"solid_ext {info['version']} beside torch {torch.__version__} on {info['isa']}: all is well")


if __name__ == "__main__":
    main()
