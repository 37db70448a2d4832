"""Every CUDA source compiles for every architecture, within recorded registers and without spills."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMITS = json.loads((Path(__file__).parent / "cuda_limits.json").read_text(encoding="utf-8"))
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*/*_cuda.cu"))

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc: CUDA code is not compiled here")


def resources(source: str, architecture: str) -> dict[str, tuple[int, int]]:
    """Registers and spilled bytes of each kernel of a source, as ptxas reports them."""
    flags = ["-std=c++17", "-fmad=false", f"-I{ROOT / 'csrc'}", "--Werror=all-warnings", "-Xptxas=-v", "-cubin"]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    done = subprocess.run(
        [str(NVCC), *flags, target, str(ROOT / source), "-o", os.devnull], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = subprocess.run(["c++filt"], input=done.stdout + done.stderr, capture_output=True, text=True, check=True)
    return parse(report.stdout)


def parse(report: str) -> dict[str, tuple[int, int]]:
    kernels = {}
    for part in report.split("Compiling entry function")[1:]:
        name = re.search(r"kernel_entry<(.*)>\(", part)
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert name, part
        assert spilled, part
        assert registers, part
        short = name[1].replace("solid::", "").replace(" ", "")
        kernels[short] = int(registers[1]), int(spilled[1]) + int(spilled[2])
    return kernels


def test_a_spill_is_seen() -> None:
    kernels = parse(
        "ptxas info : Compiling entry function 'void solid::kernel_entry<solid::A<float> >(solid::A<float>::Args)' "
        "for 'sm_80'\n 8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info : Used 168 registers, used 1 barriers\n"
        "ptxas info : Compiling entry function 'void solid::kernel_entry<solid::B>(solid::B::Args)' for 'sm_80'\n"
        " 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info : Used 20 registers\n"
    )
    assert kernels == {"A<float>": (168, 16), "B": (20, 0)}


def test_all_sources_and_architectures_stay_within_their_limits() -> None:
    """The limits are those of one nvcc; another one may count a little differently, but must not spill."""
    version = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    same_compiler = f"release {LIMITS['nvcc']}," in version
    jobs = [(source, architecture) for source in SOURCES for architecture in LIMITS["architectures"]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: resources(*job), jobs))
    found: dict[str, int] = {}
    for (source, architecture), kernels in zip(jobs, results, strict=True):
        assert kernels, f"{source}: no kernel for sm_{architecture}"
        for name, (registers, spilled) in kernels.items():
            assert spilled == 0, f"{name} spills {spilled} bytes on sm_{architecture}"
            found[name] = max(found.get(name, 0), registers)
    assert found.keys() == LIMITS["registers"].keys()
    if same_compiler:
        over = {name: count for name, count in found.items() if count > LIMITS["registers"][name]}
        assert not over, f"more registers than recorded in cuda_limits.json: {over}"


def test_the_build_has_the_same_architectures_and_flags() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"set(SERVED {' '.join(LIMITS['architectures'])})" in cmake
    assert "-fmad=false" in cmake
    for source in SOURCES:
        assert source in cmake
