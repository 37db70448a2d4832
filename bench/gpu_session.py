"""A session on a machine with a GPU, in few commands of less than ten minutes each; see bench/gpu_session.sh.

    bench/gpu_session.sh STEP .. --out FOLDER [--dry] [--before FOLDER]
    bench/gpu_session.sh collect FOLDER .. --out FOLDER

Steps, and how long each may take: `first` (7 minutes: a smoke of every kernel, the tests on the device, memcheck),
`bench` (9: benchmarks, ncu), `sanitize` (8: racecheck, synccheck, initcheck), `train` (the rest: epochs, and what the
source in the folder --before reaches in the same benchmarks). Or the names of parts, or how they begin. Each command
first does `wheels`, `configure`, `build` and `info`, which are quick where a command before has done them; if one of
the last three fails, nothing else is tried.

FOLDER gets session.json and logs.tar.gz, both written after every part, and bench.json, written after every case. A
part that fails is recorded and the rest goes on; one that takes longer than its share is ended. The exit status is 1
if a part failed. `collect` joins the folders of several commands into one.

Needs nvcc, and a Python with torch, numpy, pytest, pybind11, CMake and ninja; no network. Training also needs what the
package imports: what that Python lacks of it, say polars, may lie as wheels in the folder that SOLID_EXT_WHEELS names;
without it the parts that train are left out. SOLID_EXT_DATA names a folder of datasets, for epochs per second. --dry
goes the same way without a device as far as that leads, at tiny sizes whose times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "gpu_session"
STEPS = {
    "first": ("smoke", "tests", "sanitizer_memcheck"),
    "bench": ("bench", "ncu"),
    "sanitize": ("sanitizer_racecheck", "sanitizer_synccheck", "sanitizer_initcheck"),
    "train": ("train", "before"),
}
ALWAYS = ("wheels", "configure", "build", "info")
TESTS = {
    "nearest_code": "test_cuda_device",
    "layers": "test_cuda_device_layers",
    "training": "test_cuda_device_training",
}
BENCH = ("limits", "nearest_code", "dynamic_mlp", "gru", "cross_entropy", "low_rank", "memory", "compiled")
TRAIN = ("step", "largest_batch", "epochs")
SKIPPED = {"nearest_code": 1, "layers": 0, "training": 0}  # most tests that may be skipped: one wants a second device
NCU_SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis")
TAIL = 3  # lines of a passed part's log; 30 of a failed one's
CAPABLE = """
import json, torch, solid_ext
info = solid_ext.build_info()
print("torch", torch.__version__, "CUDA", torch.version.cuda, "available", torch.cuda.is_available())
print(json.dumps(info))
assert info["cuda"] is not None, "expected a module with CUDA kernels: " + info["cuda_build"]
if not {dry}:
    assert torch.cuda.is_available(), "expected a CUDA device that torch can use"
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    built, own = info["cuda"]["architectures"], str(10 * major + minor)
    assert own in built, f"expected kernels for sm_{{own}}, got {{built}}"
    print("device:", name)
"""


class Session:
    """Parts in their order, with what came of each, kept in a folder as they end."""

    def __init__(self, out: Path, chosen: tuple[str, ...] = (), dry: bool = False, source: Path = ROOT) -> None:
        self.out, self.chosen, self.dry = out, chosen, dry
        self.parts: dict[str, dict[str, Any]] = {}
        self.device = "none: no device was at hand, so that no kernel ran on one and nothing was measured"
        self.logs = WORK / "logs"
        shutil.rmtree(self.logs, ignore_errors=True)
        for folder in (out, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.at(source)

    def at(self, source: Path) -> None:
        """Builds and runs what lies in this folder from now on."""
        self.source, self.build, self.site = source, source / "build" / "gpu", WORK / "site"
        path = os.pathsep.join(map(str, (self.build, source, self.site)))
        # Which cuBLAS wants for torch's deterministic algorithms.
        self.environment = {**os.environ, "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

    def wants(self, name: str) -> bool:
        return not self.chosen or name.startswith((*self.chosen, *ALWAYS))

    def run(self, name: str, *command: object, limit: float, **environment: str) -> bool:
        """Whether it was wanted, ran and passed within `limit` seconds; its log and its last lines are kept."""
        if not self.wants(name):
            return False
        words = [str(word) for word in command]
        print(f"== {name}: {' '.join(words)}", flush=True)
        log = self.logs / f"{name}.log"
        start = time.perf_counter()
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    words,
                    cwd=self.source,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**self.environment, **environment},
                    check=False,
                    timeout=None if self.dry else limit,  # a dry run waits for slow machines
                ).returncode
            except FileNotFoundError as error:
                output.write(str(error))
                code = 127
            except subprocess.TimeoutExpired:
                output.write(f"\nended after {limit:g} seconds")
                code = 124
        lines = log.read_text(errors="replace").splitlines()
        kept = lines[-(TAIL if code == 0 else 30) :]
        print("\n".join(kept), flush=True)
        places = {str(self.source): ".", str(WORK): "build/gpu_session", sys.executable: "python", str(self.out): "OUT"}
        self.parts[name] = {
            "passed": code == 0,
            "status": code,
            "seconds": round(time.perf_counter() - start, 1),
            "tail": [_replaced(line, places) for line in kept],
        }
        self.write()
        return code == 0

    def leave_out(self, name: str, reason: str) -> None:
        if self.wants(name):
            print(f"== {name}: left out, {reason}", flush=True)
            self.parts[name] = {"passed": None, "left out": reason}
            self.write()

    def judge(self, name: str, passed: bool, **what: Any) -> None:
        """A second look at a part that ran."""
        if name in self.parts and "status" in self.parts[name]:
            self.parts[name] |= {**what, "passed": bool(self.parts[name]["passed"] and passed)}
            self.write()

    def write(self) -> None:
        """session.json and logs.tar.gz as of now."""
        content = {
            "device": self.device,
            "dry": self.dry,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
            "python": ".".join(map(str, sys.version_info[:3])),
            "parts": self.parts,
        }
        (self.out / "session.json").write_text(json.dumps(content, indent=1) + "\n")
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as archive:
            archive.add(self.logs, "logs")

    def text(self, name: str) -> str:
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


def _replaced(line: str, places: dict[str, str]) -> str:
    for place, name in places.items():
        line = line.replace(place, name)
    return line


def test_counts(log: str) -> dict[str, int]:
    """What pytest's last line says: passed, skipped, failed, errors."""
    lines = [line for line in log.splitlines() if re.search(r"\d+ (passed|skipped|failed|error)", line)]
    return {name.rstrip("s"): int(count) for count, name in re.findall(r"(\d+) ([a-z]+)", lines[-1])} if lines else {}


def ran_enough(counts: dict[str, int], most_skipped: int, dry: bool) -> bool:
    """Whether tests were run and no more were skipped than may be: pytest itself is content with none at all."""
    ran, skipped = counts.get("passed", 0), counts.get("skipped", 0)
    return ran + skipped > 0 if dry else ran > 0 and skipped <= most_skipped


def sanitizer_findings(log: str) -> tuple[bool, list[str]]:
    """Whether a compute-sanitizer log is complete, and its lines that name a kernel of ours.

    PyTorch's own kernels run too, and what is said of them is not ours to mend.
    """
    lines = [line for line in log.splitlines() if line.startswith("=========")]
    return any(" SUMMARY: " in line for line in lines), [line for line in lines if "kernel_entry" in line]


def ncu_figures(log: str) -> list[dict[str, Any]]:
    """One entry per profiled launch, its metrics by name, from ncu's CSV; what is no number stays a string."""
    launches: dict[str, dict[str, Any]] = {}
    lines = [line for line in log.splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        entry = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "metrics": {}})
        value: float | str = row["Metric Value"]
        with contextlib.suppress(ValueError):
            value = float(str(value).replace(",", ""))
        unit = row.get("Metric Unit", "")
        entry["metrics"][f"{row['Metric Name']} [{unit}]" if unit else row["Metric Name"]] = value
    return list(launches.values())


def build(run: Session, prefix: str = "") -> bool:
    """Configures and builds what lies at hand, and asks it what it is; False if that failed."""
    python = sys.executable
    cmake_of_pybind = subprocess.run(
        [python, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=False
    ).stdout.strip()
    # What was found of another Python is forgotten.
    options = ["-U", "*Python*", "-DCMAKE_BUILD_TYPE=Release"]
    options += [f"-DPython_EXECUTABLE={python}", f"-Dpybind11_DIR={cmake_of_pybind}"]
    # For the GPU that is there; the dry run compiles one architecture: that all compile is what `make test` is for.
    options.append("-DSOLID_EXT_CUDA=" + ("ON" if run.dry else "AUTO"))
    options += ["-DCMAKE_CUDA_ARCHITECTURES=90-real;90-virtual"] if run.dry else []
    return (
        run.run(f"{prefix}configure", "cmake", "-S", run.source, "-B", run.build, "-G", "Ninja", *options, limit=60)
        and run.run(f"{prefix}build", "cmake", "--build", run.build, limit=300)
        and run.run(f"{prefix}info", python, "-c", CAPABLE.format(dry=run.dry), limit=90)
    )


def run_tests(run: Session, device: dict[str, str]) -> None:
    python = sys.executable
    # Quiet once, by pyproject.toml: twice, and the line that counts is gone.
    pytest = (python, "-m", "pytest", "-m", "cuda", "-rs", "-W", "default", "-p", "no:cacheprovider")
    files = {name: f"python_tests/cuda/{file}.py" for name, file in TESTS.items()}
    kernels = [files["nearest_code"], files["layers"]]
    # A launch that fails is then named by the test that made it; the first to fail ends the part.
    run.run("smoke", *pytest, "-x", "-k", "for_the_sanitizer", *kernels, limit=60, CUDA_LAUNCH_BLOCKING="1", **device)
    for name, file in files.items():
        if name == "training" and not trains():
            run.leave_out("tests_training", "polars is neither installed nor among the wheels")
            continue
        run.run(f"tests_{name}", *pytest, file, limit=120, **device)
        counts = test_counts(run.text(f"tests_{name}"))
        run.judge(f"tests_{name}", ran_enough(counts, SKIPPED[name], run.dry), tests=counts)
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        name = f"sanitizer_{tool}"
        if run.dry:
            run.leave_out(name, "no device at hand")
            continue
        # initcheck must see what other kernels write; PyTorch's allocator would hide what lies beyond an array.
        ours = () if tool == "initcheck" else ("--kernel-regex", "kns=kernel_entry")
        words = ("compute-sanitizer", f"--tool={tool}", *ours, *pytest, "-k", "for_the_sanitizer", *kernels)
        run.run(name, *words, limit=150, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        complete, found = sanitizer_findings(run.text(name))
        run.judge(name, complete and not found, **{"of our kernels": found[:20]})


def run_bench(run: Session, prefix: str, sections: tuple[str, ...], limit: float) -> None:
    """Each section in a process of its own: what breaks one breaks no other."""
    # By its path: an earlier source is measured by this one's benchmarks.
    words: list[object] = [sys.executable, ROOT / "bench" / "speed" / "bench_gpu.py"]
    words += ["--json", run.out / ("before.json" if prefix == "before" else "bench.json")]
    data = os.environ.get("SOLID_EXT_DATA")
    if data:
        words += ["--data", Path(data) / "amazon_scientific" / "interactions.tsv.gz"]
    words += ["--device", "cpu", "--small"] if run.dry else []
    for section in sections:
        name = f"{prefix}_{section}"
        if section in TRAIN and not trains():
            run.leave_out(name, "polars is neither installed nor among the wheels")
            continue
        run.run(name, *words, "--sections", section, limit=limit)
        if run.dry and name in run.parts:
            run.parts[name].pop("tail", None)  # numbers that mean nothing


def trains() -> bool:
    """Whether what training imports is there, in this Python or among the wheels."""
    return importlib.util.find_spec("polars") is not None or (WORK / "site" / "polars").is_dir()


def session(run: Session, before: Path | None) -> None:
    python = sys.executable
    wheels = sorted(Path(os.environ["SOLID_EXT_WHEELS"]).glob("*.whl")) if "SOLID_EXT_WHEELS" in os.environ else []
    if wheels:
        shutil.rmtree(run.site, ignore_errors=True)
        pip = (python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", run.site)
        run.run("wheels", *pip, *wheels, limit=120)
    if not build(run):
        return
    run.device = next((line[8:] for line in run.text("info").splitlines() if line.startswith("device: ")), run.device)
    run_tests(run, {"SOLID_EXT_TEST_DEVICE": "cpu"} if run.dry else {})
    run_bench(run, "bench", BENCH, 120)
    if run.dry or shutil.which("ncu") is None:
        run.leave_out("ncu", "no device at hand" if run.dry else "no ncu on the path")
    else:
        sections = [word for section in NCU_SECTIONS for word in ("--section", section)]
        # Clocks belong to the machine's owner.
        profiled = ("--clock-control", "none", "--kernel-name", "regex:kernel_entry", "--csv", "--page", "details")
        command = (python, "-m", "bench.speed.bench_gpu", "--profile")
        run.run("ncu", "ncu", *profiled, "--print-details", "all", *sections, *command, limit=120)
    run_bench(run, "train", TRAIN, 150)
    if before is not None and run.wants("before"):
        run.at(before)
        if build(run, "before_"):
            run_bench(run, "before", ("limits", "nearest_code", "dynamic_mlp", "gru"), 100)
        run.at(ROOT)


def collect(folders: list[Path], out: Path) -> None:
    """Joins what several commands wrote: parts in their order, benchmarks but a dry run's, ncu's figures."""
    content: dict[str, Any] = {"parts": {}}
    for folder in folders:
        one = json.loads((folder / "session.json").read_text())
        content |= {**one, "parts": content["parts"] | one["parts"]}
        for name in ("bench", "before"):
            if not one["dry"] and (folder / f"{name}.json").exists():
                content[name] = json.loads((folder / f"{name}.json").read_text())
        with tarfile.open(folder / "logs.tar.gz") as archive:
            log = archive.extractfile("logs/ncu.log") if "logs/ncu.log" in archive.getnames() else None
            if log is not None:
                content["ncu"] = ncu_figures(log.read().decode(errors="replace"))
    out.mkdir(parents=True, exist_ok=True)
    name = "gpu_session_dry_run" if content["dry"] else "gpu_session"
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("steps", nargs="*", help="first, bench, sanitize, train; parts; or collect FOLDER ..")
    arguments.add_argument("--out", type=Path, required=True, help="the folder to write into")
    arguments.add_argument("--dry", action="store_true", help="without a device, as far as that leads")
    arguments.add_argument(
        "--before", type=Path, help="a folder with an earlier source, to be measured beside this one"
    )
    options = arguments.parse_args()
    out = options.out.resolve()
    if options.steps[:1] == ["collect"]:
        return collect([Path(name) for name in options.steps[1:]], out)
    chosen = tuple(part for step in options.steps for part in STEPS.get(step, (step,)))
    run = Session(out, chosen, options.dry)
    session(run, options.before and options.before.resolve())
    failed = [name for name, part in run.parts.items() if part["passed"] is False]
    print(f"{out}: {'failed: ' + ', '.join(failed) if failed else 'all parts passed'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
