"""Every CUDA source compiles for the architectures that are served, within recorded registers and without spills."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMITS = json.loads((Path(__file__).parents[1] / "cuda_limits.json").read_text(encoding="utf-8"))
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/*/*_cuda.cu"))

pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc: CUDA code is not compiled here")
CMAKE = shutil.which("cmake")


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


# The oldest, and the one that kernels are tuned for; `make test-cuda` compiles for all.
ARCHITECTURES = LIMITS["architectures"] if os.environ.get("SOLID_EXT_EVERY_ARCHITECTURE") else ["80", "90"]


def test_all_sources_stay_within_their_limits() -> None:
    """The limits are those of one nvcc; another one may count a little differently, but must not spill."""
    version = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    same_compiler = f"release {LIMITS['nvcc']}," in version
    assert set(ARCHITECTURES) <= set(LIMITS["architectures"])
    jobs = [(source, architecture) for source in SOURCES for architecture in ARCHITECTURES]
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


# Enough of pybind11 to configure: what is chosen is asked, nothing is built.
NO_PYBIND11 = "function(pybind11_add_module name)\n  add_library(${name} ${ARGN})\nendfunction()\n"


def configured(folder: Path, choice: str, gpus: list[str] | None, *, archs: str = "") -> tuple[str, list[str]]:
    """What CMake says of the CUDA kernels, and the architectures it compiles for, with such GPUs (None: no driver)."""
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "nvidia-smi"
    answer = "exit 9" if gpus is None else "\n".join(f"echo {capability}" for capability in gpus)
    program.write_text(f"#!/bin/sh\n{answer}\n", encoding="utf-8")
    program.chmod(0o755)
    (folder / "pybind11Config.cmake").write_text(NO_PYBIND11, encoding="utf-8")
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "CUDAARCHS": archs}
    command = [str(CMAKE), "-S", str(ROOT), "-B", str(folder / "build"), f"-DSOLID_EXT_CUDA={choice}"]
    command += [f"-Dpybind11_DIR={folder}", f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_CUDA_COMPILER={NVCC}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    sentence = re.search(r"-- CUDA kernels: (.*)", done.stdout)
    assert sentence
    flags = "".join(path.read_text(encoding="utf-8") for path in (folder / "build").rglob("flags.make"))
    return sentence[1], sorted(set(re.findall(r"code=\[(\w+)\]", flags)))


@pytest.mark.skipif(CMAKE is None or os.name != "posix", reason="needs cmake on PATH")
@pytest.mark.parametrize(
    ("choice", "gpus", "archs", "said", "expected"),
    [
        ("AUTO", None, "", "left out, nvidia-smi showed no GPU", []),
        ("AUTO", ["9.0", "8.6", "9.0"], "", "built", ["compute_90", "sm_86", "sm_90"]),
        ("AUTO", ["7.0"], "", "left out, the GPU .sm_70. is older than sm_80", []),
        ("AUTO", ["999.0"], "", "built", None),
        ("AUTO", None, "80-real", "built", ["sm_80"]),
        ("AUTO", ["12.0", "9.0"], "", "built", ["compute_120", "compute_90", "sm_120", "sm_90"]),
        ("ON", None, "", "built", ["compute_90", *(f"sm_{name}" for name in LIMITS["architectures"])]),
        ("OFF", ["9.0"], "", "left out, SOLID_EXT_CUDA was OFF", []),
    ],
)
def test_the_kernels_are_built_for_the_gpus_that_are_there(
    choice: str, gpus: list[str] | None, archs: str, said: str, expected: list[str] | None, tmp_path: Path
) -> None:
    sentence, built = configured(tmp_path, choice, gpus, archs=archs)
    assert re.match(said, sentence), sentence
    if expected is None:  # a GPU that nvcc does not know yet: the newest that it knows, and its PTX
        assert [name.split("_")[0] for name in built] == ["compute", "sm"]
    else:
        assert set(expected) <= set(built)
        assert len(built) == len(expected) + (choice == "ON")  # and the PTX of the newest
