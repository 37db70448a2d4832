"""Builds check_kernels in one of four ways and runs it: plain, address, thread (sanitizers) or neon (emulated).

    python3 csrc/check/check.py plain|address|thread|neon [--cases N] [--folder build]

A sanitizer must also stop at every bug that check_kernels plants for it. Exit status: 0 all is well, 1 not, 77 with one
sentence where this machine lacks a tool.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOL_MISSING = 77
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
PLANTED = {  # bug: what its report says
    "address": {"overrun": "AddressSanitizer: heap-buffer-overflow", "misaligned": "misaligned address"},
    "thread": {"race": "ThreadSanitizer: data race"},
}


class ToolMissing(Exception):
    """A sentence about what this machine lacks."""


def need(tool: str, what: str) -> str:
    found = shutil.which(tool)
    if found is None:
        raise ToolMissing(f"expected {what}, found no {tool}")
    return found


def compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        if shutil.which(name):
            return name
    raise ToolMissing("expected a C++ compiler, found neither g++ nor clang++; set CXX")


def need_sanitizer(name: str) -> None:
    flags = ["-x", "c++", "-", "-o", os.devnull, f"-fsanitize={SANITIZERS[name]}"]
    probe = subprocess.run([compiler(), *flags], input="int main() {}", capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        raise ToolMissing(f"expected a compiler with -fsanitize={SANITIZERS[name]}, got {probe.stderr.strip()}")


def build(folder: Path, *options: str) -> Path:
    """check_kernels, built in `folder`."""
    cmake = need("cmake", "CMake to build check_kernels")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DSOLID_EXT_CHECK=ON", *options]
    for command in ([cmake, *generator, *configure], [cmake, "--build", str(folder), "-j", str(os.cpu_count())]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"check.py: {' '.join(command)} failed\n{done.stdout}")
    return folder / "csrc" / "check" / "check_kernels"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    asleep = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # OpenMP's idle threads spin otherwise, on a neighbour's time
    return subprocess.run(command, capture_output=True, text=True, check=False, env=asleep)


def report(name: str, done: subprocess.CompletedProcess[str]) -> bool:
    print(f"{name}: {(done.stdout + done.stderr).strip()}", flush=True)
    return done.returncode == 0


def check_sanitized(name: str, program: str, cases: str) -> bool:
    done = run(program, "--cases", cases)
    if "FATAL: ThreadSanitizer" in done.stderr:
        raise ToolMissing(f"expected a system that ThreadSanitizer can run on, got {done.stderr.strip()}")
    well = report(name, done)
    for bug, words in PLANTED[name].items():
        done = run(program, "--plant", bug)
        stopped = done.returncode != 0 and words in done.stderr
        print(f"{name}: planted {bug}, {'stopped' if stopped else 'NOT stopped: ' + done.stderr}", flush=True)
        well &= stopped
    return well


def check_neon(folder: Path, cases: str) -> bool:
    """Both levels of Arm; the baseline's float32 results must be the bits that this machine's baseline gives."""
    need("aarch64-linux-gnu-g++", "a cross compiler for 64-bit Arm")
    emulator = need("qemu-aarch64", "an emulator of 64-bit Arm")
    program = build(folder / "neon", f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'csrc/check/aarch64.cmake'}")
    done = run(emulator, str(program), "--cases", cases, "--bits")
    here = run(str(build(folder / "plain")), "--cases", cases, "--bits", "--isa", "baseline")
    well = report("neon", done) and report("here", here)
    same = done.stdout.split("\n")[0] == here.stdout.split("\n")[0]
    print(f"neon: the baseline's float32 results {'are' if same else 'are NOT'} the same bits on both")
    return well and same


def check(way: str, folder: Path, cases: str) -> bool:
    if way == "neon":
        return check_neon(folder, cases)
    if way == "plain":
        compiler()
        return report(way, run(str(build(folder / way)), "--cases", cases))
    need_sanitizer(way)
    # The plain build has OpenMP's threads; these have those of a compiler without it.
    program = build(folder / way, f"-DSOLID_EXT_SANITIZE={SANITIZERS[way]}", "-DSOLID_EXT_OPENMP=OFF")
    return check_sanitized(way, str(program), cases)


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the kernels without Python.")
    parser.add_argument("way", choices=["plain", *SANITIZERS, "neon"])
    parser.add_argument("--cases", default="200", help="drawn cases of each kernel")
    parser.add_argument("--folder", type=Path, default=ROOT / "build", help="where to build")
    arguments = parser.parse_args()
    try:
        return 0 if check(arguments.way, arguments.folder, arguments.cases) else 1
    except ToolMissing as sentence:
        print(f"check.py: {sentence}", file=sys.stderr)
        return TOOL_MISSING


if __name__ == "__main__":
    sys.exit(main())
