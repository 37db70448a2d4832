"""What the package says of itself: one version, one licence, wherever they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import yaml

from solid_ext import build_info

ROOT = Path(__file__).parents[1]


def test_the_version_is_that_of_pyproject_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert declared is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", declared[1])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert build_info()["version"] == citation["version"] == metadata("solid_ext")["Version"] == declared[1]


def test_the_licence_is_an_spdx_expression_with_its_text_beside_it() -> None:
    assert metadata("solid_ext")["License-Expression"] == "Apache-2.0"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("Copyright ")


def test_a_wheel_for_arm_is_refused_by_a_sentence_where_its_compiler_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "python_tests" / "wheel_aarch64.py")]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 77
    sentence = "wheel_aarch64.py: expected a cross compiler for 64-bit Arm, found no aarch64-linux-gnu-g++\n"
    assert (done.stdout, done.stderr) == ("", sentence)
