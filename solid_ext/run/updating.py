"""An update from a run's folder to another: the model that went on, and what it gained on the newest interactions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from solid_ext._native import build_info
from solid_ext.data import Catalogue, Dataset
from solid_ext.evaluate import Scorer, hr, ndcg, ranks_of_known
from solid_ext.files import check_new_folder, write_json, write_text, written_folder
from solid_ext.run.folder import MODEL
from solid_ext.run.training import Run
from solid_ext.solid import SOLID, Training
from solid_ext.train import Reporter
from solid_ext.train.update import EPOCHS


def update_run(
    run: Path, dataset: Dataset, out: Path, *, epochs: int = EPOCHS, reporter: Reporter | None = None
) -> Run:
    """Update the model of a run, or one that was saved, and write a new folder, whole or not at all.

    The folder holds `model/`, for use and trained on everything, `config.yaml`, `semantics.safetensors`, `update.json`,
    and `metrics.json` with the metrics, on the newest interactions, of the model as it was and of the one that went on
    and had not been trained on them. What a model does not know yet counts as missed.

    Raises:
        ValueError: an `out` that exists or cannot be made, said before any work; whatever `SOLID.load` and
            `SOLID.update` refuse.
    """
    check_new_folder(out, "out")
    before, start = SOLID.load(run), time.perf_counter()
    after = before.update(dataset, epochs=epochs, reporter=reporter)
    seconds = time.perf_counter() - start
    training = after.training
    assert before.catalogue is not None
    assert after.catalogue is not None
    assert training.measured is not None
    older = int(training.split.report["older_not_trained_on"])
    but = f" but {older:,} that are no later than what the old model was trained on" if older else ""
    models = {
        "before": _metrics(before.scorer, before.catalogue, training),
        "update": _metrics(training.measured, after.catalogue, training),
    }
    semantics, new = training.semantics, after.catalogue.num_items - before.catalogue.num_items
    metrics: dict[str, Any] = {
        "dataset": {
            "name": dataset.name,
            "users": dataset.num_users,
            "items": dataset.num_items,
            "interactions": dataset.num_interactions,
        },
        "split": {"name": training.split.name, **training.split.report},
        "items": {"known": before.catalogue.num_items, "new": new},
        "semantics": {
            "source": semantics.source,
            "count": semantics.count,
            **semantics.report,
        },
        "models": models,
        "epochs": training.stages[0].best.epoch,
        "seconds": {"update": seconds},
        "folders": {MODEL: f"trained on all that is new{but}, for use: these metrics are not its own"},
    }
    described = {"run": str(run), "dataset": dataset.name, "fingerprint": dataset.fingerprint, "build": build_info()}
    with written_folder(out, "out") as fresh:
        after.save(fresh / MODEL)
        semantics.save(fresh / "semantics.safetensors")
        write_text(fresh / "config.yaml", after.config.to_yaml())
        write_json(fresh / "update.json", described)
        write_json(fresh / "metrics.json", metrics)
    return Run(out, after, after, metrics)


def _metrics(scorer: Scorer, catalogue: Catalogue, training: Training) -> dict[str, dict[str, float]]:
    """Of the newest interactions, by full ranking."""
    ranks = ranks_of_known(scorer, catalogue, training.dataset, training.split.valid)
    return {"full": {"ndcg@10": float(ndcg(ranks, 10)), "hr@10": float(hr(ranks, 10))}}
