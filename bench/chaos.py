"""`make chaos`: runs that are killed, cut off by a full disk and damaged, and what is lost by it.

A trial is one life of a run of `solid-ext train` with everything that a run has: both stages, the choice of neighbours,
evaluation, the static rival, the refit, saving. It is disturbed, goes on by `resume` (or is begun again, where it had
not described itself), and has survived if its models and its metrics have the bits of a run that nobody disturbed, or
if it refused what was damaged in a sentence that names the file and had those bits after the remedy of the sentence.
All else is lost. Disturbances:

* kill: SIGKILL at a random moment of the whole life;
* kill while writing: SIGKILL while a file is being written;
* killed twice: SIGKILL again in the life that goes on;
* overwriting: SIGKILL in a run that replaces another one, whose model must be readable at any time;
* signal: SIGTERM at a random moment;
* full disk: no file may grow beyond a random size (RLIMIT_FSIZE), which has to end in a sentence;
* flipped bit: a bit of a random file that a run reads back, in a life that was killed;
* dead rank: SIGKILL to one of two processes of a torchrun, of which every other one starts them again by itself.

    python -m bench.chaos --json
    python -m bench.chaos --json --kind "dead rank"    # this kind alone; the file keeps the others
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FIELDS = {"length": 5, "dim": 16, "heads": 2, "codebook_hidden": 16, "batch_size": 256, "epochs": 2, "patience": 2}
FIELDS |= {"eval_negatives": 20, "semantics": "category", "threads": 1, "learning_rate": 0.01}
TRIALS = {
    "kill": 14,
    "kill while writing": 10,
    "killed twice": 8,
    "overwriting": 8,
    "signal": 4,
    "full disk": 5,
    "flipped bit": 7,
    "dead rank": 6,
}
REFUSED = 2
# Imported once, and not in every life: what a run would import on its way too.
PRELOADED = ["solid_ext.run", "solid_ext.cli.stopping", "torch._dynamo", "matplotlib.figure", "scipy.stats"]
PRELOADED += ["matplotlib.backends.backend_agg", "sklearn.metrics"]


def live_together(folder: str, data: str, seed: int, how: dict[str, Any], said: str) -> None:
    """One life in two processes, which torchrun's agent starts, and starts again so often as `restarts` says."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    job = LaunchConfig(1, 1, 2, run_id=folder, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork")
    job.max_restarts = how.pop("restarts")
    try:
        elastic_launch(job, live)(folder, data, seed, how, said)
    except ChildFailedError:
        os._exit(REFUSED if Path(said).exists() else 1)


def live(folder: str, data: str, seed: int, how: dict[str, Any], said: str) -> None:
    """One life: a run in a process of its own, with the exit codes of the command line."""
    from solid_ext import Config, Dataset, distributed
    from solid_ext.cli.stopping import stoppable
    from solid_ext.run import begun_by, train_run
    from solid_ext.train import Silent

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if "bytes" in how:
        resource.setrlimit(resource.RLIMIT_FSIZE, (how.pop("bytes"), resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with distributed.joined(), warnings.catch_warnings(), stoppable(Silent()) as reporter:
            warnings.simplefilter("ignore")
            if distributed.of_writer(begun_by(Path(folder), distributed.restarted_job())):
                how["resume"] = True
            config = Config().replace(**FIELDS, seed=seed)
            dataset = Dataset.load(data)
            train_run(Path(folder), config, dataset, baseline=True, refit=True, reporter=reporter, **how)
    except ValueError as error:
        with contextlib.suppress(OSError):
            Path(said).write_text(str(error), encoding="utf-8")
        os._exit(REFUSED)
    except ConnectionError:  # another rank is gone
        os._exit(REFUSED)
    except KeyboardInterrupt as stop:
        os._exit(128 + stop.args[0])


class Chaos:
    """The trials of one place, their random moments drawn from one seed."""

    def __init__(self, place: Path, seed: int, kinds: list[str]) -> None:
        from solid_ext.data import synthetic_dataset

        self.place, self.random, self.restarts = place, random.Random(seed), itertools.cycle((1, 0))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.data = str(synthetic_dataset(200, 60, 6, predictability=0.8, drift=0.0, seed=3)[0].save(place / "data"))
        self.phases: dict[str, int] = defaultdict(int)
        self.seconds: dict[bool, float] = {}  # of a life by one process, and by two
        self.expected: dict[tuple[int, bool], str] = {}
        for together in sorted({kind == "dead rank" for kind in kinds}):
            how = {"restarts": 0} if together else {}
            first = self.undisturbed(place / "first", **how)
            second = self.undisturbed(place / ("together" if together else "whole"), **how)
            self.seconds[together] = min(first, second)  # the moments lie in a life of an idle hour too
            assert outcome(place / "first") == self.expected[0, together], "two undisturbed runs differ"
            shutil.rmtree(place / "first")

    def undisturbed(self, folder: Path, seed: int = 0, **how: Any) -> float:
        """A whole life, whose outcome is that of every other one; its seconds."""
        start = time.perf_counter()
        self.run(folder, seed, **how)
        self.expected[seed, "restarts" in how] = outcome(folder)
        return time.perf_counter() - start

    def start(self, folder: Path, seed: int = 0, **how: Any) -> Any:
        target = live_together if "restarts" in how else live
        process = self.context.Process(
            target=target, args=(str(folder), self.data, seed, how, str(self.place / "said"))
        )
        process.start()
        return process

    def run(self, folder: Path, seed: int = 0, **how: Any) -> tuple[int, str]:
        """A life that nobody ends; its exit code and its sentence."""
        (self.place / "said").unlink(missing_ok=True)
        process = self.start(folder, seed, **how)
        process.join()
        said = self.place / "said"
        return process.exitcode, said.read_text(encoding="utf-8") if said.exists() else ""

    def kill(self, folder: Path, number: int = signal.SIGKILL, *, writing: bool = False, **how: Any) -> bool:
        """A life that is ended at a random moment; whether it had not ended by itself before."""
        process, together = self.start(folder, **how), "restarts" in how
        files, share = self.random.randrange(50), self.random.uniform(0.02, 1)
        end = time.perf_counter() + share * self.seconds[together]
        seen: set[str] = set()
        while process.is_alive():
            if writing:
                with contextlib.suppress(FileNotFoundError):  # a folder that another takes the place of
                    seen |= {path.name for path in folder.rglob(".*.partial")} if folder.exists() else set()
                if len(seen) > files:
                    break
            elif time.perf_counter() >= end:
                break
            time.sleep(0.0005)
        alive = process.is_alive()
        if alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(children(process.pid)) if together else process.pid, number)
            self.phases[phase_of(folder)] += 1
        process.join()
        self.code = process.exitcode
        return alive if number == signal.SIGKILL else alive and process.exitcode == 128 + number

    def ends_well(self, folder: Path, seed: int = 0, **together: int) -> bool:
        """Whether the run goes on, or is begun again, to the expected bits."""
        if (seed, bool(together)) not in self.expected:
            self.undisturbed(self.place / f"whole{seed}", seed)
        for how in ({"resume": True}, {"overwrite": folder.exists()}):
            code, said = self.run(folder, seed, **how, **together)
            if code == 0:
                return outcome(folder) == self.expected[seed, bool(together)]
            begin_again = "start it again without --resume" in said or "got none" in said
            if code != REFUSED or not begin_again:
                return False
        return False

    def trial(self, kind: str, folder: Path) -> tuple[bool, bool]:
        """Whether there was a disturbance, and whether the run survived it."""
        if kind in ("kill", "kill while writing"):
            return self.kill(folder, writing=kind != "kill"), self.ends_well(folder)
        if kind == "killed twice":
            first = self.kill(folder)
            resume = (folder / "run.json").exists()
            self.kill(folder, resume=resume)
            return first, self.ends_well(folder)
        if kind == "overwriting":
            shutil.copytree(self.place / "whole", folder)
            killed = self.kill(folder, seed=1, overwrite=True)
            return killed, readable(folder) and self.ends_well(folder, 1)
        if kind == "dead rank":
            restarts = next(self.restarts)
            killed = self.kill(folder, restarts=restarts)
            if killed and restarts:  # torchrun has gone on by itself
                return True, self.code == 0 and outcome(folder) == self.expected[0, True]
            return killed, (not killed or self.code != 0) and self.ends_well(folder, restarts=0)
        if kind == "signal":
            killed = self.kill(folder, signal.SIGTERM)
            return killed, self.ends_well(folder)
        if kind == "full disk":
            largest = max(path.stat().st_size for path in (self.place / "whole").rglob("*") if path.is_file())
            code, said = self.run(folder, bytes=self.random.randrange(100, largest))
            return code != 0, code == REFUSED and bool(said) and self.ends_well(folder)
        while not (files := read_back(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            self.kill(folder)
        path = self.random.choice(files)
        content = bytearray(path.read_bytes())
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        path.write_bytes(bytes(content))
        if self.ends_well(folder):
            return True, True
        code, said = self.run(folder, resume=True)
        if code != REFUSED or path.name not in said:
            return True, False
        if "--overwrite" in said:
            self.run(folder, overwrite=True)
            return True, outcome(folder) == self.expected[0, False]
        shutil.rmtree(path.parent)  # as the sentence says: the stage is trained again
        return True, self.ends_well(folder)


def children(process: int) -> list[int]:
    """The processes that one has started, and itself before it has any (on Linux)."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return list(map(int, found)) or [process]


def phase_of(folder: Path) -> str:
    """What a run is doing, by what it has written."""
    order = {
        "before the first checkpoint": folder,
        "stage 1": folder / "stage1" / "last.safetensors",
        "stage 2": folder / "stage2" / "last.safetensors",
        "static rival": folder / "static" / "stage2" / "last.safetensors",
        "evaluation and saving": folder / "static" / "stage2" / "best.safetensors",
        "refit": folder / "refit",
    }
    with contextlib.suppress(OSError, ValueError):
        rows = len((folder / "static" / "stage2" / "log.csv").read_text().splitlines()) - 1
        if rows < FIELDS["epochs"]:
            order.pop("evaluation and saving")
    return [name for name, path in order.items() if path.exists() or path == folder][-1]


def read_back(folder: Path) -> list[Path]:
    """The files of a run that going on with it reads."""
    names = ("last.safetensors", "best.safetensors", "previous.safetensors", "run.json", "chosen.json")
    return sorted(path for path in folder.rglob("*") if path.name in names)


def readable(folder: Path) -> bool:
    from solid_ext import SOLID

    return SOLID.load(folder).model is not None


def outcome(folder: Path) -> str:
    """A digest of the models and of what is measured, without times."""
    from solid_ext.train import load_checkpoint

    digest = hashlib.sha256()
    for model in ("measured", "model"):
        for path in sorted((folder / model).iterdir()):
            if path.suffix == ".safetensors" and path.name.startswith("model"):
                for name, tensor in sorted(load_checkpoint(path)[0].items()):
                    digest.update(name.encode() + tensor.numpy().tobytes())
            elif path.suffix == ".safetensors":
                digest.update(path.read_bytes())
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    kept = {name: metrics[name] for name in ("models", "differences", "refit_epochs")}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    return digest.hexdigest()


def beside(others: dict[str, Any], kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call found, with the row of a kind that had a call of its own."""
    (row,) = found.pop("rows")
    rows = [other for other in others["rows"] if other["disturbance"] != kind]
    return others | {"rows": [*rows, row], "calls_of_their_own": {**others.get("calls_of_their_own", {}), kind: found}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="write bench/results/chaos.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the trials")
    parser.add_argument("--kind", choices=TRIALS, help="only this kind; its row takes its place beside those there are")
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        kinds = [arguments.kind] if arguments.kind else list(TRIALS)
        chaos = Chaos(Path(place), arguments.seed, kinds)
        life = next(iter(chaos.seconds.values()))
        print(f"a life takes {life:.1f} s", flush=True)
        rows = []
        for kind in kinds:
            tried = survived = 0
            for number in range(max(round(TRIALS[kind] * arguments.share), 1)):
                folder = Path(place) / f"{kind}{number}".replace(" ", "_")
                disturbed, well = chaos.trial(kind, folder)
                tried += 1
                survived += well
                if well:
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    print(f"lost: {kind} {number}", flush=True)
                    shutil.copytree(folder, Path(tempfile.mkdtemp()) / folder.name)
                if not disturbed:
                    print(f"  {kind} {number}: the life had ended by itself", flush=True)
            rows.append({"disturbance": kind, "trials": tried, "survived": survived, "lost": tried - survived})
            print(
                "{disturbance:20} {trials:3} trials {survived:3} survived {lost:3} lost".format(**rows[-1]), flush=True
            )
    lost = sum(row["lost"] for row in rows)
    found = {
        "rows": rows,
        "killed_in": dict(sorted(chaos.phases.items())),
        "life_seconds": round(life, 1),
        "seed": arguments.seed,
        "wall_seconds": round(time.perf_counter() - start),
    }
    print(f"moments: {found['killed_in']}")
    if arguments.kind and arguments.json:
        found = beside(json.loads((RESULTS / "chaos.json").read_text()), arguments.kind, found)
    if arguments.json:
        (RESULTS / "chaos.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
