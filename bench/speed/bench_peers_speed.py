"""Training of SASRec by RecBole, by RecTools and here, beside static and SOLID: rows a second, and time to an NDCG@10.

    python -m bench.speed.bench_peers_speed --data FOLDER [--recbole-python P] [--rectools-python P] [--json] [--quick]

d = 64, a softmax over all items, one thread, the training and validation rows of leave-one-out without the test items.
A row is a pair of history and next item. Seconds are the processor's and of training alone; those of SOLID contain its
semantics and its stage 1. Peers bring versions of their own and run in environments of their own, with torch==2.13.0
and recbole==1.2.1 numpy==1.26.4 pandas==2.2.3 scipy==1.11.4, or rectools[torch]. RecTools trains a session at all its
positions in one pass; its batches have as many rows as the others'. All validation rows are ranked among all items,
and one function makes the NDCG of all ranks. Ours stop where training here does, `patience` epochs after the best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.harness import RESULTS, machine
from solid_ext import SOLID, Config, load_dataset
from solid_ext.compare.peers import PEERS, PeerTask, peer_config
from solid_ext.data import Dataset, Split, gather_sequences, make_split
from solid_ext.evaluate.protocols import full_metrics
from solid_ext.methods import method_config
from solid_ext.train import Epoch, Silent

SCRIPT = Path(__file__).with_name("peer_sequences.py")
LENGTH = 10


@dataclass
class Curve:
    """Of each epoch the training's processor seconds and the validation's NDCG@10; `before` it whatever came first."""

    rows: int = 0
    before: float = 0.0
    seconds: list[float] = field(default_factory=list)
    ndcg: list[float] = field(default_factory=list)

    def rate(self) -> float:
        """Rows a second of the median epoch."""
        return self.rows / float(np.median(self.seconds))

    def until(self, aim: float) -> float | None:
        """Seconds of training until the validation has reached the aim; None where it never does."""
        reached = [epoch for epoch, value in enumerate(self.ndcg) if value >= aim]
        return self.before + sum(self.seconds[: reached[0] + 1]) if reached else None


class Clock(Silent):
    """Fills a curve with the last stage's epochs; what comes before its first step counts as before."""

    def __init__(self, curve: Curve) -> None:
        self.curve, self.mark, self.spent, self.last = curve, time.process_time(), 0.0, False

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        self.last = stage in ("sasrec", "stage2")
        self._lap()

    def step(self) -> None:
        self._lap()

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        if self.last:
            self.curve.seconds.append(self.spent)
            self.curve.ndcg.append(epoch.valid)
        else:
            self.curve.before += self.spent
        self.spent, self.mark = 0.0, time.process_time()

    def _lap(self) -> None:
        now = time.process_time()
        self.spent, self.mark = self.spent + now - self.mark, now


def ours(name: str, dataset: Dataset, split: Split, epochs: int) -> Curve:
    """Trained here."""
    config = Config().replace(epochs=epochs, threads=1, neighbours=False, validation="full:ndcg@10")
    curve = Curve(len(split.train.positions))
    with tempfile.TemporaryDirectory() as folder:
        if name in PEERS:
            PEERS[name](PeerTask(peer_config(config), dataset, split, Path(folder), Clock(curve)))
        else:
            SOLID(method_config(config, name)).fit(dataset, reporter=Clock(curve))
    return curve


def theirs(name: str, python: Path, dataset: Dataset, split: Split, epochs: int) -> Curve:
    """Trained by a peer in its own environment."""
    curve = Curve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "rec").mkdir()
        lines = ["user_id:token\titem_id:token\ttimestamp:float"]
        for user in range(dataset.num_users):
            start, end = dataset.offsets[user], dataset.offsets[user + 1] - 1
            lines += [f"{user}\t{dataset.items[at]}\t{at - start}" for at in range(start, end)]
        (folder / "rec" / "rec.inter").write_text("\n".join(lines) + "\n")
        targets = dataset.items[split.valid.positions].astype(np.int64)
        np.savez(folder / "valid.npz", sequences=gather_sequences(dataset, split.valid, LENGTH), targets=targets)
        done = subprocess.run(
            [str(python), str(SCRIPT), name, str(folder), str(epochs)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
        )
        for line in filter(lambda line: line.startswith("{"), done.stdout.splitlines()):
            epoch = json.loads(line)
            ranks = np.load(folder / f"ranks{epoch['epoch']}.npy")
            curve.rows = epoch["rows"]
            curve.seconds.append(epoch["seconds"])
            curve.ndcg.append(full_metrics(ranks, split.valid)["ndcg@10"])
    return curve


def aims(curves: dict[str, Curve], aim: float) -> list[dict[str, object]]:
    """What each of ours is worth beside each peer, in rows a second and in seconds to the aim."""
    found: list[dict[str, object]] = []
    for peer in [name for name in ("recbole", "rectools") if name in curves]:
        ratio = curves["sasrec-softmax"].rate() / curves[peer].rate()
        row = f"sasrec-softmax, rows a second, over {peer}'s SASRec"
        found.append({"row": row, "reached": round(ratio, 2), "aim": 2.0, "better": "higher", "unit": "x"})
        their = curves[peer].until(aim)
        spent = sum(curves[peer].seconds) if their is None else their  # where it never does: at least as long
        for name in ("solid", "static", "sasrec-softmax"):
            own = curves[name].until(aim)
            if own is not None:
                row = f"{name}, seconds to validation NDCG@10 {aim}, over {peer}'s SASRec"
                row += "" if their is not None else f" (not there after {len(curves[peer].ndcg)} epochs: at least)"
                reached = round(spent / own, 2)
                found.append({"row": row, "reached": reached, "aim": 5.0, "better": "higher", "unit": "x"})
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with interactions")
    arguments.add_argument("--recbole-python", type=Path, help="interpreter of an environment with recbole")
    arguments.add_argument("--rectools-python", type=Path, help="interpreter of an environment with rectools[torch]")
    arguments.add_argument("--epochs", type=int, default=30)
    arguments.add_argument("--aim", type=float, default=0.05, help="of the validation's NDCG@10")
    arguments.add_argument("--json", action="store_true", help="write bench/results/peers_speed.json")
    arguments.add_argument("--quick", action="store_true", help="two epochs")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    epochs = 2 if options.quick else options.epochs
    dataset = load_dataset(options.data)
    split = make_split("leave_one_out", dataset)
    curves = {name: ours(name, dataset, split, epochs) for name in ("sasrec-softmax", "static", "solid")}
    for name, python in (("recbole", options.recbole_python), ("rectools", options.rectools_python)):
        if python is not None:
            curves[name] = theirs(name, python, dataset, split, epochs)
    table = Table("", "rows/s", f"seconds to NDCG@10 {options.aim}", "best NDCG@10", "epochs")
    found = {}
    for name, curve in curves.items():
        until = curve.until(options.aim)
        found[name] = {"rows_per_second": curve.rate(), "seconds_to_aim": until, "rows": curve.rows, **vars(curve)}
        table.add_row(
            name, f"{curve.rate():,.0f}", "not reached" if until is None else f"{until:.0f}", f"{max(curve.ndcg):.4f}",
            str(len(curve.ndcg)),
        )  # fmt: skip
    Console().print(table)
    if options.json:
        content = {"machine": machine(), "aim_ndcg": options.aim, "contestants": found}
        content["aims"] = aims(curves, options.aim)
        (RESULTS / "peers_speed.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
