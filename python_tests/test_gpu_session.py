"""`bench/gpu_session.py`: what it keeps of its parts, and what it reads out of the logs of a GPU's tools."""

from __future__ import annotations

import importlib.util
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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


@pytest.fixture
def begin(session: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A session of the chosen parts whose folders are the test's own."""
    monkeypatch.setattr(session, "WORK", tmp_path / "work")
    return lambda *chosen, name="out": session.Session(tmp_path / name, chosen)


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


def test_figures_of_the_profiler_are_kept_by_launch(session: ModuleType) -> None:
    log = (
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


def test_the_number_of_skipped_tests_is_read_from_the_last_line(session: ModuleType) -> None:
    log = "SKIPPED [1] a.py:3: 2 skipped\n3 failed, 18 passed, 1 skipped, 7 deselected in 2.11s\n"
    assert session.test_counts(log) == {"failed": 3, "passed": 18, "skipped": 1, "deselected": 7}
    assert session.test_counts("no pytest") == {}


def test_a_part_whose_tests_were_skipped_has_not_passed(session: ModuleType) -> None:
    assert session.ran_enough({"passed": 18, "skipped": 1}, 1, dry=False)
    assert not session.ran_enough({"passed": 18, "skipped": 2}, 1, dry=False)
    assert not session.ran_enough({"skipped": 1}, 1, dry=False)
    assert session.ran_enough({"skipped": 20}, 1, dry=True)
    assert not session.ran_enough({}, 1, dry=True)


def test_a_part_that_fails_is_kept_with_its_last_lines(session: ModuleType, begin: Callable[..., Any]) -> None:
    run = begin()
    assert run.run("right", "printf", "one\ntwo\n", limit=60)
    assert not run.run("wrong", "sh", "-c", "echo gone wrong; exit 3", limit=60)
    assert not run.run("absent", "no-such-program-anywhere", limit=60)
    assert not run.run("long", "sleep", "60", limit=0.2)
    run.leave_out("later", "no device at hand")
    assert run.parts["right"]["passed"] is True
    assert run.parts["wrong"]["status"] == 3
    assert run.parts["wrong"]["tail"] == ["gone wrong"]
    assert run.parts["absent"]["passed"] is False
    assert run.parts["long"]["tail"][-1] == "ended after 0.2 seconds"
    assert run.parts["later"] == {"passed": None, "left out": "no device at hand"}
    run.judge("right", False, skipped=9)
    assert run.parts["right"]["passed"] is False


def test_each_part_is_written_as_it_ends(begin: Callable[..., Any]) -> None:
    run = begin()
    for name in ("one", "two"):
        run.run(name, "echo", name, limit=60)
        assert list(json.loads((run.out / "session.json").read_text())["parts"])[-1] == name
        with tarfile.open(run.out / "logs.tar.gz") as archive:
            assert f"logs/{name}.log" in archive.getnames()


def test_what_a_command_needs_is_done_whatever_was_chosen(session: ModuleType, begin: Callable[..., Any]) -> None:
    run = begin(*session.STEPS["sanitize"])
    assert run.run("build", "true", limit=60)
    assert run.run("sanitizer_racecheck", "true", limit=60)
    assert not run.run("sanitizer_memcheck", "true", limit=60)
    assert not run.run("tests_layers", "true", limit=60)
    assert list(run.parts) == ["build", "sanitizer_racecheck"]


@pytest.mark.parametrize("broken", ["configure", "build", "info"])
def test_nothing_is_tried_on_what_was_not_built(
    session: ModuleType, begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    run = begin()
    tried: list[str] = []

    def pretend(name: str, *command: object, limit: float, **environment: str) -> bool:
        tried.append(name)
        return name != broken

    monkeypatch.setattr(run, "run", pretend)
    monkeypatch.delenv("SOLID_EXT_WHEELS", raising=False)
    session.session(run, None)
    assert tried[-1] == broken


def test_an_earlier_source_is_built_by_itself_and_measured_by_the_same_benchmarks(
    session: ModuleType, begin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, earlier = begin("before"), tmp_path / "earlier"
    tried: dict[str, tuple[Path, list[str]]] = {}

    def pretend(name: str, *command: object, limit: float, **environment: str) -> bool:
        if run.wants(name):
            tried[name] = run.source, [str(word) for word in command]
        return True

    monkeypatch.setattr(run, "run", pretend)
    monkeypatch.delenv("SOLID_EXT_WHEELS", raising=False)
    session.session(run, earlier)
    assert tried["build"][0] == session.ROOT
    assert tried["before_build"][0] == tried["before_nearest_code"][0] == earlier
    assert str(earlier / "build" / "gpu") in tried["before_build"][1]
    assert str(session.ROOT / "bench" / "speed" / "bench_gpu.py") in tried["before_nearest_code"][1]
    assert str(run.out / "before.json") in tried["before_nearest_code"][1]


def test_the_folders_of_several_commands_are_joined(session: ModuleType, begin: Callable[..., Any]) -> None:
    first, second = begin(name="first"), begin(name="second")
    first.run("tests_layers", "true", limit=60)
    second.run("ncu", "printf", '"ID","Kernel Name","Metric Name","Metric Value"\n"0","A","Duration","3"\n', limit=60)
    (second.out / "bench.json").write_text('{"rows": [1]}')
    out = first.out.parent / "joined"
    session.collect([first.out, second.out], out)
    content = json.loads((out / "gpu_session.json").read_text())
    assert list(content["parts"]) == ["tests_layers", "ncu"]
    assert content["bench"] == {"rows": [1]}
    assert content["ncu"] == [{"kernel": "A", "metrics": {"Duration": 3.0}}]
