"""What `bench/gpu_session.py` reads out of the logs of a GPU's tools."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def session() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "gpu_session.py"
    spec = importlib.util.spec_from_file_location("gpu_session", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sanitizer_is_asked_about_our_kernels_alone(session: ModuleType) -> None:
    clean = "========= COMPUTE-SANITIZER\n....\n========= ERROR SUMMARY: 0 errors\n"
    other = (
        "========= Uninitialized __global__ memory read of size 4 bytes\n"
        "=========     at void at::native::elementwise_kernel<128>(int)+0x90\n========= ERROR SUMMARY: 1 error\n"
    )
    ours = other.replace("at::native::elementwise_kernel<128>", "solid::kernel_entry<solid::PackCodes>")
    assert session.sanitizer_findings(clean) == (True, [])
    assert session.sanitizer_findings(other) == (True, [])
    complete, lines = session.sanitizer_findings(ours)
    assert complete
    assert len(lines) == 1
    assert not session.sanitizer_findings("compute-sanitizer: not found")[0]
    assert session.sanitizer_findings("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n") == (True, [])


def test_figures_of_the_profiler_are_kept_by_launch(session: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "ncu.log"
    log.write_text(
        "==PROF== Connected to process 7\n"
        '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","solid::kernel_entry<A>","Occupancy","Achieved Occupancy","%","23.5"\n'
        '"0","solid::kernel_entry<A>","GPU Speed Of Light","Duration","us","1,234.5"\n'
        '"1","solid::kernel_entry<B>","Launch Statistics","Function Cache Configuration","","CachePreferNone"\n'
        "==PROF== Disconnected\n"
    )
    assert session.ncu_figures(log) == [
        {"kernel": "solid::kernel_entry<A>", "metrics": {"Achieved Occupancy [%]": 23.5, "Duration [us]": 1234.5}},
        {"kernel": "solid::kernel_entry<B>", "metrics": {"Function Cache Configuration": "CachePreferNone"}},
    ]


def test_a_part_that_fails_is_kept_with_its_last_lines(session: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(session, "LOGS", tmp_path)
    run = session.Session()
    assert run.run("right", "printf", "one\ntwo\n")
    assert not run.run("wrong", "sh", "-c", "echo gone wrong; exit 3")
    assert not run.run("absent", "no-such-program-anywhere")
    run.leave_out("later", "no device at hand")
    assert run.parts["right"]["passed"] is True
    assert run.parts["wrong"]["status"] == 3
    assert run.parts["wrong"]["tail"] == ["gone wrong"]
    assert run.parts["absent"]["passed"] is False
    chosen = session.Session(("sanitizer",))
    assert chosen.run("sanitizer_memcheck", "true")
    assert not chosen.run("tests", "true")
    assert list(chosen.parts) == ["sanitizer_memcheck"]
    assert run.parts["later"] == {"passed": None, "left out": "no device at hand"}
