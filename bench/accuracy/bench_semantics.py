"""Module 1 measured: text semantics by both encoders on real items, and the seven mixes beside generated images.

OMP_NUM_THREADS=1 python -m bench.accuracy.bench_semantics --data FOLDER --json

Purity and NMI stand beside the values for the same clusters dealt out at random. "title" encodes titles alone, so that
the categories which judge the clusters were not read by the encoder; "title + categories" is what training uses.
Encodings and the static model's embedding are kept in --cache, with the seconds that they took.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.numpy import save_file

from bench.accuracy.bench_scientific import finish
from bench.harness import machine
from solid_ext import SOLID, Config, Dataset, load_dataset
from solid_ext.config import PAPER, SemanticsConfig
from solid_ext.data import make_semantics, text_features
from solid_ext.data.semantics.category import item_categories
from solid_ext.data.semantics.quality import agreement
from solid_ext.methods import method_config

DATASETS = ("amazon_scientific", "amazon_office_2014", "movielens_100k")
ENCODERS = ("tfidf", "minilm")
SOURCES = ("id", "text", "image", "id+text", "id+image", "text+image", "id+text+image")
IMAGE_COLUMNS, IMAGE_NOISE, WITHOUT_IMAGE = 4096, 2.0, 0.02


class Cache:
    """Arrays that take minutes, each a safetensors file with the processor's seconds in its header."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Callable[[], np.ndarray]) -> tuple[Path, float]:
        """The file of an array, made if it is not there yet, and how long that took."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            start = time.process_time()
            features = make()
            seconds = {"seconds": str(time.process_time() - start)}
            save_file({"features": np.ascontiguousarray(features)}, path, metadata=seconds)
        with safe_open(path, framework="np") as file:
            return path, float(file.metadata()["seconds"])


def cluster(config: SemanticsConfig, dataset: Dataset) -> dict[str, Any]:
    """Semantics from files of features: seconds of the processor, sizes, agreement with whole and last categories."""
    start = time.process_time()
    made = make_semantics(config, dataset, seed=0, train_end=dataset.offsets[1:])  # features come from files
    seconds = time.process_time() - start
    against = {
        level: agreement(made.table, made.count, item_categories(dataset, level=level), 0) for level in ("all", "last")
    }
    unused = ("silhouettes", "categories", "purity", "purity_by_chance", "nmi", "nmi_by_chance")
    report = {name: value for name, value in made.report.items() if name not in unused}
    return {"seconds": seconds, **report, "against": against}


def text_semantics(dataset: Dataset, cache: Cache) -> list[dict[str, Any]]:
    """Both encoders, on titles alone and with categories; the count by rule and searched."""
    rows = []
    titles = replace(dataset, item_table=dataset.item_table.select("item_id", "title"))
    for encoder in ENCODERS:
        for words, items in (("title", titles), ("title + categories", dataset)):
            name = f"{dataset.fingerprint[:12]}-{encoder}-{words.replace(' + ', '-')}"
            path, seconds = cache.get(name, lambda i=items, e=encoder: text_features(i, encoder=e, seed=0))
            for count in (0, -1):
                config = SemanticsConfig(semantics="text", text_features=str(path), num_semantics=count)
                what = {"encoder": encoder, "text": words, "count": "searched" if count else "a tenth"}
                rows.append({**what, "encode_seconds": seconds, **cluster(config, dataset)})
    return rows


def static_embedding(dataset: Dataset) -> np.ndarray:
    """The item embeddings of a static model, trained to convergence at Table 2's settings."""
    model = SOLID(method_config(Config().replace(**PAPER), "static")).fit(dataset).model
    assert model is not None
    return model.item_embedding.weight.detach().numpy()


def generated_images(dataset: Dataset) -> np.ndarray:
    """`[V + 1, 4096] float32`, as a convolutional network gives: a direction a category, noise, nothing below zero.

    They say nothing about real images: only that arrays of this size go through, and that a part of a mix counts.
    """
    rng = np.random.default_rng(0)
    category = item_categories(dataset).fill_null("").rank("dense").to_numpy().astype(np.int64) - 1
    centres = rng.normal(size=(category.max() + 1, IMAGE_COLUMNS)).astype(np.float32)
    noise = rng.normal(scale=IMAGE_NOISE, size=(dataset.num_items, IMAGE_COLUMNS)).astype(np.float32)
    rows = np.maximum(centres[category] + noise, 0)
    rows[rng.random(dataset.num_items) < WITHOUT_IMAGE] = 0
    return np.vstack([np.zeros((1, IMAGE_COLUMNS), dtype=np.float32), rows])


def mixes(dataset: Dataset, cache: Cache) -> list[dict[str, Any]]:
    """All seven sources: the static model's ids, sentence vectors of titles and categories, generated images."""
    mark = dataset.fingerprint[:12]
    files = {
        "id_features": cache.get(f"{mark}-static", lambda: static_embedding(dataset)),
        "text_features": cache.get(
            f"{mark}-minilm-title-categories", lambda: text_features(dataset, encoder="minilm", seed=0)
        ),
        "image_features": cache.get(f"{mark}-images", lambda: generated_images(dataset)),
    }
    paths = {name: str(path) for name, (path, _) in files.items()}
    return [{"source": source, **cluster(SemanticsConfig(semantics=source, **paths), dataset)} for source in SOURCES]


def show(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print the rows: what they are, seconds, sizes, and agreement with whole category lists."""
    headers = (name.replace("_", " ") for name in columns)
    table = Table(*headers, "s", "clusters", "empty", "sizes", "largest", "explained", "purity", "NMI", title=title)
    for row in rows:
        found = row["against"]["all"]
        table.add_row(
            *(f"{row[name]:.1f}" if isinstance(row[name], float) else str(row[name]) for name in columns),
            f"{row['seconds']:.1f}",
            str(row["clusters"]),
            str(row["empty"]),
            f"{row['smallest']}..{row['median']:g}..{row['largest']}",
            f"{row['largest_share']:.1%}",
            f"{row['explained']:.2f}",
            f"{found['purity']:.3f} ({found['purity_by_chance']:.3f})",
            f"{found['nmi']:.3f} ({found['nmi_by_chance']:.3f})",
        )
    Console(width=140).print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help=f"folder with {', '.join(DATASETS)}")
    arguments.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "solid_ext_semantics")
    arguments.add_argument("--json", action="store_true", help="write bench/results/semantics.json")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    cache = Cache(options.cache)
    results: dict[str, Any] = {"machine": machine(), "seconds": "of the processor", "text": {}}
    for name in DATASETS:
        results["text"][name] = text_semantics(load_dataset(options.data / name), cache)
        show(name, results["text"][name], ("encoder", "text", "count", "encode_seconds"))
    results["mixes"] = {
        "dataset": DATASETS[0],
        "images": f"generated, {IMAGE_COLUMNS} columns, {WITHOUT_IMAGE:.0%} of items without",
        "id": "static model, Table 2's settings, to convergence",
        "rows": mixes(load_dataset(options.data / DATASETS[0]), cache),
    }
    show("seven sources", results["mixes"]["rows"], ("source",))
    finish("semantics", results, options.json)


if __name__ == "__main__":
    main()
