"""One run on a machine with a GPU: build, tests on the device, compute-sanitizer, benchmarks, profile; one file.

    bench/gpu_session.sh [--dry] [--out FILE] [--parts NAME ..]

writes `bench/results/gpu_session.json` (`gpu_session_dry_run.json` with --dry, which goes the same way without a
device as far as that leads, at tiny sizes whose times mean nothing and are left out). Logs go to `build/gpu_session/`.
A part that fails is recorded and the rest goes on; the exit status is then 1. --parts runs those whose names begin so
(wheels, configure, build, info, tests, opcheck, sanitizer, bench, ncu) and adds them to what the file holds, where one
command may not take as long as all of them do.

Needs nvcc, and a Python with torch, pybind11, CMake, ninja, pytest and what the package itself imports; no network.
What that Python lacks, say polars, may lie as wheels in the folder that SOLID_EXT_WHEELS names. SOLID_EXT_DATA names a
folder of datasets, for epochs per second.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "gpu_session"
BUILD = ROOT / "build" / "gpu"
SITE = LOGS / "site"  # what came as wheels
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
NCU_SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis")
TAIL = 3  # lines of a passed part's log; 30 of a failed one's


class Session:
    """Parts in their order, with what came of each."""

    def __init__(self, chosen: tuple[str, ...] = ()) -> None:
        self.chosen = chosen
        self.parts: dict[str, dict[str, Any]] = {}
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (BUILD, ROOT, SITE)))}
        LOGS.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, *command: object, environment: dict[str, str] | None = None) -> bool:
        """Whether it ran and passed; its log stays in LOGS, its last lines in `parts`."""
        if self.chosen and not name.startswith(self.chosen):
            return False
        words = [str(word) for word in command]
        print(f"== {name}: {' '.join(words)}", flush=True)
        log = LOGS / f"{name}.log"
        start = time.perf_counter()
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    words,
                    cwd=ROOT,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**self.environment, **(environment or {})},
                    check=False,
                ).returncode
            except FileNotFoundError as error:
                output.write(str(error))
                code = 127
        lines = log.read_text(errors="replace").splitlines()
        kept = lines[-(TAIL if code == 0 else 30) :]
        print("\n".join(kept), flush=True)
        self.parts[name] = {
            "passed": code == 0,
            "status": code,
            "seconds": round(time.perf_counter() - start, 1),
            "tail": [line.replace(str(ROOT), ".").replace(sys.executable, "python") for line in kept],
        }
        return code == 0

    def leave_out(self, name: str, reason: str) -> None:
        if self.chosen and not name.startswith(self.chosen):
            return
        print(f"== {name}: left out, {reason}", flush=True)
        self.parts[name] = {"passed": None, "left out": reason}


def sanitizer_findings(log: str) -> tuple[bool, list[str]]:
    """Whether a compute-sanitizer log is complete, and its lines that name a kernel of ours.

    PyTorch's own kernels run too, and what is said of them is not ours to mend.
    """
    lines = [line for line in log.splitlines() if line.startswith("=========")]
    return any(" SUMMARY: " in line for line in lines), [line for line in lines if "kernel_entry" in line]


def ncu_figures(path: Path) -> list[dict[str, Any]]:
    """One entry per profiled launch, its metrics by name, from ncu's CSV; what is no number stays a string."""
    launches: dict[str, dict[str, Any]] = {}
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        entry = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "metrics": {}})
        value: float | str = row["Metric Value"]
        with contextlib.suppress(ValueError):
            value = float(str(value).replace(",", ""))
        unit = row.get("Metric Unit", "")
        entry["metrics"][f"{row['Metric Name']} [{unit}]" if unit else row["Metric Name"]] = value
    return list(launches.values())


def session(dry: bool, chosen: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    python = sys.executable
    run = Session(chosen)
    wheels = sorted(Path(os.environ["SOLID_EXT_WHEELS"]).glob("*.whl")) if "SOLID_EXT_WHEELS" in os.environ else []
    if wheels:
        run.run("wheels", python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", SITE, *wheels)
    cmake_of_pybind = subprocess.run(
        [python, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=False
    ).stdout.strip()
    options = ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={python}", f"-Dpybind11_DIR={cmake_of_pybind}"]
    # The dry run compiles one architecture: that all of them compile is what `make test` is for.
    options += ["-DSOLID_EXT_CUDA=ON", *(["-DCMAKE_CUDA_ARCHITECTURES=90-real;90-virtual"] if dry else [])]
    run.run("configure", "cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", *options)
    run.run("build", "cmake", "--build", BUILD)
    run.run(
        "info",
        python,
        "-c",
        "import solid_ext, torch; print(solid_ext.build_info()); print(torch.__version__, torch.cuda.is_available())",
    )
    device = {"SOLID_EXT_TEST_DEVICE": "cpu"} if dry else {}
    pytest = (python, "-m", "pytest", "-q", "-m", "cuda", "-rs", "python_tests")
    run.run("tests", *pytest, environment=device)
    run.run("opcheck", *pytest, "-k", "opcheck or registered", environment=device)
    for tool in SANITIZERS:
        name, tests = f"sanitizer_{tool}", (*pytest, "-k", "for_the_sanitizer")
        if dry:
            run.leave_out(name, "no device at hand")
        else:
            # PyTorch's allocator would hide what lies beyond an array.
            uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            run.run(name, "compute-sanitizer", f"--tool={tool}", *tests, environment=uncached)
            if name in run.parts:
                complete, ours = sanitizer_findings((LOGS / f"{name}.log").read_text(errors="replace"))
                run.parts[name] |= {"of our kernels": ours[:20]}
                run.parts[name]["passed"] &= complete and not ours
    if dry:
        run.run("sanitizer_tests", *pytest, "-k", "for_the_sanitizer", environment=device)
    bench = [python, "-m", "bench.speed.bench_gpu", "--json", LOGS / "bench.json"]
    data = os.environ.get("SOLID_EXT_DATA")
    if data:
        bench += ["--data", Path(data) / "amazon_scientific" / "interactions.tsv.gz"]
    run.run("bench", *bench, *(["--device", "cpu", "--small"] if dry else []))
    if dry or shutil.which("ncu") is None:
        run.leave_out("ncu", "no device at hand" if dry else "no ncu on the path")
    else:
        sections = [word for section in NCU_SECTIONS for word in ("--section", section)]
        profiled = ("--kernel-name", "regex:kernel_entry", "--csv", "--page", "details", "--print-details", "all")
        run.run("ncu", "ncu", *sections, *profiled, python, "-m", "bench.speed.bench_gpu", "--profile")
    return run.parts


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--dry", action="store_true", help="without a device, as far as that leads")
    arguments.add_argument("--out", type=Path, help="the file to write")
    arguments.add_argument("--parts", nargs="+", default=(), help="names, or how they begin; all if left out")
    options = arguments.parse_args()
    name = "gpu_session_dry_run" if options.dry else "gpu_session"
    out = options.out or ROOT / "bench" / "results" / f"{name}.json"
    content: dict[str, Any] = json.loads(out.read_text()) if options.parts and out.exists() else {}
    parts = session(options.dry, tuple(options.parts))
    if options.dry and "bench" in parts:
        parts["bench"].pop("tail")  # numbers that mean nothing
    content |= {
        "device": content.get("device", "none: no device was at hand, so that no kernel ran and nothing was measured"),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "parts": content.get("parts", {}) | parts,
    }
    if not options.dry and parts.get("bench", {}).get("passed"):
        content |= json.loads((LOGS / "bench.json").read_text())
        content["device"] = content["notes"]["device"]
    if not options.dry and parts.get("ncu", {}).get("passed"):
        content["ncu"] = ncu_figures(LOGS / "ncu.log")
    out.write_text(json.dumps(content, indent=1) + "\n")
    failed = [name for name, part in content["parts"].items() if part["passed"] is False]
    print(f"{out}: {'failed: ' + ', '.join(failed) if failed else 'all parts passed'}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
