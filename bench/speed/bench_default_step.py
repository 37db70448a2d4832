"""A training step of the default SOLID, on the training rows of a dataset: native, reference, and an earlier source.

    python -m bench.speed.bench_default_step --data FOLDER [--before FOLDER] [--run] [--json] [--quick]

One thread and processor time, each contestant in a process of its own (`peer_default_step.py`), in turns. FOLDER of
`--before` is a checkout of an earlier source, with its compiled module in it or in its folder `build`. `--run` also
trains whole, from the file to the model, by the command line of both sources with its defaults. Before anything is
timed, losses and gradients of both back ends are compared in float64, with the same elements dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.harness import RESULTS, Peer, Report, compare, missing
from bench.speed.peer_default_step import default_steps
from solid_ext.train.losses import full_softmax

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("peer_default_step.py")


def environment(source: Path) -> dict[str, str]:
    """Of a process that finds the solid_ext of this source, and uses one thread."""
    paths = [
        str(source / "build"),
        str(source),
        *filter(None, [os.environ.get("PYTHONPATH") if source == ROOT else ""]),
    ]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def validate(data: Path) -> float:
    """Largest difference between the back ends' gradients in float64, relative to each tensor's largest value."""
    gradients = []
    for backend in ("native", "reference"):
        step, batches = default_steps(data, backend, dtype="float64", batch_size=256)
        torch.manual_seed(0)
        state = step.model(batches[0][0])
        loss = full_softmax(*step.model.over_catalogue(state.vector, batches[0][1])) + 0.1 * state.auxiliary_loss
        gradients.append(torch.autograd.grad(loss, list(step.model.parameters())))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(*gradients, strict=True))


def run_seconds(source: Path, data: Path) -> float:
    """Processor seconds of `solid-ext train` with its defaults."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["train", "--dataset", str(data), "--out", f"{folder}/run", "--threads", "1"]
        subprocess.run(
            [sys.executable, "-m", "solid_ext.cli", *command],
            env=environment(source),
            cwd=source,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with interactions")
    arguments.add_argument("--before", type=Path, help="checkout of an earlier source")
    arguments.add_argument("--run", action="store_true", help="also train whole, which takes minutes")
    arguments.add_argument("--json", action="store_true", help="write bench/results/default_step.json")
    arguments.add_argument("--quick", action="store_true", help="few rounds")
    options = arguments.parse_args()
    report = Report("default_step")
    report.notes["largest gradient difference in float64"] = difference = validate(options.data)
    if not difference < 1e-7:
        raise SystemExit(f"validation: expected a difference below 1e-7, got {difference}")
    peers = {
        "native": Peer(sys.executable, SCRIPT, [options.data, "native"], environment(ROOT)),
        "reference": Peer(sys.executable, SCRIPT, [options.data, "reference"], environment(ROOT)),
    }
    if options.before is None:
        report.notes["left out"] = "the earlier source: no folder is given by --before"
    else:
        before = options.before.resolve()
        peers["before"] = Peer(sys.executable, SCRIPT, [options.data, "native"], environment(before))
    for name in [name for name, peer in peers.items() if not peer.ready]:
        missing(peers.pop(name), name)
    rounds = (3, 5) if options.quick else (15, 41)
    report.rows += compare("training step, defaults", dict(peers), threads=1, seconds=60, rounds=rounds)
    for peer in peers.values():
        peer.close()
    ratios = {row.name: row.ratio for row in report.rows}
    aims = []
    for name, aim in (("before", 2.0), ("reference", 3.0)):
        if name in ratios:
            row = f"training step of the default SOLID, over {'the earlier source' if name == 'before' else name}"
            aims.append({"row": row, "reached": round(ratios[name], 2), "aim": aim, "better": "higher", "unit": "x"})
    if options.run and options.before is not None:
        earlier, now = (run_seconds(source, options.data) for source in (before, ROOT))
        report.notes["processor seconds of train, before"] = round(earlier, 1)
        report.notes["processor seconds of train"] = round(now, 1)
        row = "solid-ext train, from file to model, over the earlier source"
        aims.append({"row": row, "reached": round(earlier / now, 2), "aim": 2.5, "better": "higher", "unit": "x"})
    report.print()
    if options.json:
        path = report.write()
        content = json.loads(path.read_text())
        (RESULTS / path.name).write_text(json.dumps({**content, "aims": aims}, indent=1) + "\n")


if __name__ == "__main__":
    main()
