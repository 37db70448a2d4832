"""The compiled module: found from everywhere, what it was built with, and a forced instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import _solid_ext
import pytest

from solid_ext import build_info

ROOT = Path(__file__).parents[1]


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(Path(_solid_ext.__file__).parent)])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_version_is_the_one_of_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{build_info()["version"]}"\n' in project


def test_build_info_names_what_was_built_and_what_runs() -> None:
    info = build_info()
    assert set(info) == {"version", "compiler", "isa_built", "isa_usable", "isa", "cuda", "cuda_build", "threads"}
    assert info["isa"] in info["isa_usable"]
    assert set(info["isa_usable"]) <= set(info["isa_built"])
    assert info["isa_built"][0] == "baseline"


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_it_is_found_from_the_repository_and_from_anywhere_else(where: str, tmp_path: Path) -> None:
    result = python("from solid_ext import SOLID; print(SOLID.__name__)", ROOT if where == "root" else tmp_path)
    assert (result.returncode, result.stdout) == (0, "SOLID\n"), result.stderr


def test_an_instruction_set_can_be_forced(tmp_path: Path) -> None:
    for isa in build_info()["isa_usable"]:
        result = python("import solid_ext._native as n; print(n.build_info()['isa'])", tmp_path, SOLID_EXT_ISA=isa)
        assert result.stdout == isa + "\n", result.stderr


def test_an_unknown_instruction_set_gets_a_sentence(tmp_path: Path) -> None:
    result = python("from solid_ext import nearest_code", tmp_path, SOLID_EXT_ISA="avx9000")
    assert "SOLID_EXT_ISA: expected one of baseline" in result.stderr
    assert "got 'avx9000'" in result.stderr


def test_without_the_module_there_is_a_sentence(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['_solid_ext'] = None; from solid_ext import SOLID"
    result = python(blocked, tmp_path)
    assert "solid_ext: expected its compiled module _solid_ext, found none" in result.stderr
