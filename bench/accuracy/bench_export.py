"""How far ONNX Runtime's scores of exported networks lie from the networks', over batches of 1 to 257 sequences.

    OMP_NUM_THREADS=1 python -m bench.accuracy.bench_export [--json]

Networks of the default configuration on each backbone, with 1,000 items, 40 semantics, drawn parameters and an open
gate. Needs the extra `export`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import torch

from bench.harness import RESULTS, machine
from solid_ext.config import Config
from solid_ext.data import Catalogue
from solid_ext.models import DynamicRecommender
from solid_ext.models.backbones import BACKBONES
from solid_ext.serve.export import write_programs

ITEMS, SEMANTICS, BATCHES = 1000, 40, (1, 2, 7, 64, 257)


def network(**fields: Any) -> DynamicRecommender:
    """A network whose every part has a say in its scores."""
    torch.manual_seed(0)
    semantics = np.concatenate([[0], np.arange(ITEMS) % SEMANTICS + 1])
    model = DynamicRecommender(Config().replace(**fields).model, ITEMS, semantics, torch.randn(ITEMS + 1, 16)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "gate":
                parameter.fill_(0.3)
            elif "feature_map" in name:
                parameter.normal_(std=0.02)
    return model


def measured(model: DynamicRecommender, folder: Path) -> dict[str, float]:
    """Bytes of the programs, and the largest difference of a score over all batches, beside the largest score."""
    catalogue = Catalogue(pl.DataFrame({"item_id": np.arange(1, ITEMS + 1)}))
    files = write_programs(model, catalogue, folder, "onnx")
    sessions = {Path(file).stem: onnxruntime.InferenceSession(folder / file) for file in files}
    worst = largest = 0.0
    for rows in BATCHES:
        generator = torch.Generator().manual_seed(rows)
        lengths = torch.randint(1, model.length + 1, (rows, 1), generator=generator)
        sequences = torch.randint(1, ITEMS + 1, (rows, model.length), generator=generator)
        sequences[torch.arange(model.length) >= lengths] = 0
        candidates = torch.randint(1, ITEMS + 1, (rows, 50), generator=generator)
        given = {"sequences": sequences.numpy()}
        if "encode" in sessions:
            given = {"state": sessions["encode"].run(None, given)[0]}
        (found,) = sessions["score"].run(None, {**given, "candidates": candidates.numpy()})
        with torch.no_grad():
            expected = model.score(model.encode(sequences), candidates).numpy()
        worst = max(worst, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return {
        "largest difference": worst,
        "largest score": largest,
        "bytes": sum((folder / f).stat().st_size for f in files),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="write bench/results/export.json")
    options = arguments.parse_args()
    content: dict[str, Any] = {"machine": machine(), "onnxruntime": version("onnxruntime"), "rows": []}
    for backbone in BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(network(backbone=backbone), Path(folder) / "out")
        content["rows"].append({"preset": "default", "backbone": backbone, **row})
        sys.stdout.write(json.dumps(content["rows"][-1]) + "\n")
        sys.stdout.flush()
        if options.json:
            (RESULTS / "export.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
