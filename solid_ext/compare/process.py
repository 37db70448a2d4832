"""One run of a comparison, in a process of its own: `python -m solid_ext.compare.process OUT NUMBER`."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from solid_ext.compare.grid import Grid, PlannedRun
from solid_ext.compare.peers import PEERS, PeerTask
from solid_ext.data import Dataset, make_split
from solid_ext.evaluate import evaluate_full, evaluate_sampled, row_table
from solid_ext.files import digest, owned_place, read_json, write_json, written, written_folder
from solid_ext.run import holds_run, open_run
from solid_ext.serve import evaluate_beyond
from solid_ext.solid import SOLID
from solid_ext.threads import set_threads
from solid_ext.train import Epoch, load_checkpoint
from solid_ext.train.algorithm import stage1_config

GRID, RUNS, DATA = "compare.json", "runs", "data"
METRICS, USERS, STAGE1 = "metrics.json", "users.parquet", "stage1"


class Clock:
    """A reporter that measures the training steps alone, without validation and checkpoints."""

    def __init__(self) -> None:
        self.seconds, self.epochs = 0.0, 0
        self._start = self._last = 0.0

    def begin(self, stage: str, steps: int, epochs: int) -> None:
        self._start = self._last = time.perf_counter()

    def step(self) -> None:
        self._last = time.perf_counter()

    def epoch(self, epoch: Epoch, best: Epoch) -> None:
        self.seconds += self._last - self._start
        self.epochs += 1
        self._start = self._last = time.perf_counter()

    def end(self, stage: str, best: Epoch) -> None: ...


def run_planned(
    folder: Path, planned: PlannedRun, dataset: Dataset, others: Mapping[Path, PlannedRun] | None = None
) -> None:
    """Train, measure on the test rows and write `users.parquet` and, last of all, `metrics.json`.

    A folder that a stopped run left is resumed from the checkpoints of its stages. One of the finished runs `others`
    whose stage 1 would be the same, bit by bit, lends it.
    """
    config = planned.config.resolved(dataset.num_users, dataset.num_items)
    resume = holds_run(folder)
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    open_run(folder, config, dataset, resume=resume, overwrite=False)
    _borrow_stage1(folder, planned, others or {})
    set_threads(config.train.threads)
    split, clock, start = make_split(config.evaluate.split, dataset), Clock(), time.perf_counter()
    semantics = None
    if planned.method in PEERS:
        scorer, stages = PEERS[planned.method](PeerTask(config, dataset, split, folder, clock))
    else:
        solid = SOLID(config).fit(dataset, folder=folder, reporter=clock)
        scorer, stages, semantics = solid.scorer, solid.training.stages, solid.training.semantics.source
    trained = time.perf_counter()
    rows = split.test
    sampled = evaluate_sampled(scorer, dataset, rows, negatives=config.evaluate.eval_negatives, seed=config.train.seed)
    full, new = (evaluate_full(scorer, dataset, rows, exclude_history=exclude) for exclude in (False, True))
    beyond = evaluate_beyond(scorer, dataset, split)
    evaluated = time.perf_counter()
    with written(folder / USERS) as partial:
        row_table(sampled, full=full, new=new).write_parquet(partial)
    epochs = [epoch for stage in stages for epoch in stage.history]
    write_json(
        folder / METRICS,
        {
            "dataset": planned.dataset,
            "backbone": planned.backbone,
            "method": planned.method,
            "seed": planned.seed,
            "fingerprint": dataset.fingerprint,
            "metrics": {
                **{metrics.protocol: metrics.to_dict() for metrics in (sampled, full, new)},
                "beyond": beyond,
            },
            "semantics": semantics,
            "stages": [{"stage": s.name, "epochs": len(s.history), "best_epoch": s.best.epoch} for s in stages],
            "seconds": {
                "train": sum(epoch.seconds for epoch in epochs) if epochs else trained - start,
                "evaluate": evaluated - trained,
            },
            "rows_per_second": clock.epochs * len(split.train) / clock.seconds if clock.epochs else None,
            "peak_bytes": _peak_bytes(),
            "users": digest(folder / USERS),
        },
    )


def finished(folder: Path) -> bool:
    """Whether a run's folder holds all that a report reads of it, as it was written."""
    try:
        users = read_json(folder / METRICS, "compare").get("users")
        return users is None or users == digest(folder / USERS)
    except (ValueError, OSError):
        return False


def _peak_bytes() -> int | None:
    """The most memory that the process has held; None on a system that does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _borrow_stage1(folder: Path, planned: PlannedRun, others: Mapping[Path, PlannedRun]) -> None:
    """Copy stage 1 from a run of the same dataset that trained the same one, unless this run has begun its own."""
    wanted = stage1_config(planned.config)
    if wanted is None or planned.method in PEERS or (folder / STAGE1).exists():
        return
    for other, theirs in others.items():
        same = (theirs.dataset, stage1_config(theirs.config)) == (planned.dataset, wanted)
        if same and theirs.method not in PEERS and _whole(other / STAGE1):
            with written_folder(folder / STAGE1, "compare") as fresh:
                shutil.copytree(other / STAGE1, fresh, dirs_exist_ok=True)
            return


def _whole(stage: Path) -> bool:
    """Whether a stage's checkpoints are as they were written."""
    try:
        for name in ("last.safetensors", "best.safetensors"):
            load_checkpoint(stage / name)
    except ValueError:
        return False
    return True


def _end_with_parent() -> None:
    """Standard input is a pipe that nobody writes to: its end is the parent's, however that came."""
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(3)


def main(arguments: list[str]) -> None:
    """Run one of the plan; bad luck ends in one sentence on standard error and exit code 2."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    out, number = Path(arguments[0]), int(arguments[1])
    try:
        plan = Grid.load(out / GRID).plan()
        planned, folders = plan[number], {out / RUNS / each.name: each for each in plan}
        others = {folder: each for folder, each in folders.items() if finished(folder)}
        folder = out / RUNS / planned.name
        with owned_place(folder, "compare"):  # a lost worker may still be at it, and only cut off
            run_planned(folder, planned, Dataset.load(out / DATA / planned.dataset), others)
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError) as error:
        sys.stderr.write(f"{error or type(error).__name__}\n")
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
