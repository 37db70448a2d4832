"""Threads beside other work: idle ones sleep, their number is measured and said, a forked child computes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import _solid_ext
import pytest
import torch

from solid_ext import Config, Dataset, build_info, threads
from solid_ext._native import arithmetic
from solid_ext.cli import main
from solid_ext.data import SyntheticTruth
from solid_ext.run import open_run
from solid_ext.threads import Threads, use_threads

ROOT = Path(__file__).parents[1]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing in the environment decides, there are two processors, and the number is put back afterwards."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_processors", lambda: 2)
    torch.set_num_threads(2)
    yield monkeypatch
    torch.set_num_threads(before)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    path = os.pathsep.join([str(Path(_solid_ext.__file__).parent), str(ROOT)])
    command, environment = [sys.executable, "-c", code], {**kept, "PYTHONPATH": path, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("given", "asleep"), [({}, True), ({"OMP_WAIT_POLICY": "ACTIVE"}, False)])
def test_idle_threads_sleep_unless_told_otherwise(given: dict[str, str], asleep: bool) -> None:
    code = "import os, solid_ext; print(os.environ.get('OMP_WAIT_POLICY'))"
    done = python(code, OMP_DISPLAY_ENV="VERBOSE", **given)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this OpenMP library does not show how long it spins")
    assert ("GOMP_SPINCOUNT = '0'" in done.stderr) == asleep
    assert done.stdout.strip() == given.get("OMP_WAIT_POLICY", "None")  # processes started later are left alone


FORKED = """
import os, signal, torch
from torch import nn
from solid_ext.nn import DynamicMLP
from solid_ext.ops import nearest_code
from solid_ext.ops.gru import gru_last_state

torch.set_num_threads(2)
torch.manual_seed(0)
x, codes = torch.randn(8192, 32), torch.randn(512, 32)
mlp = DynamicMLP(sizes=(32, 32, 32), code_dim=32, delta=0.01)
cell, mask = nn.GRUCell(32, 32), torch.ones(1024, 8, dtype=torch.bool)
sequences = torch.randn(1024, 8, 32)

def results():
    gru = gru_last_state(sequences, mask, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    y = mlp(x, x, x)
    gradients = torch.autograd.grad(y.square().mean() + gru.square().mean(), [*mlp.parameters(), *cell.parameters()])
    return [nearest_code(x, codes).index, y.detach(), gru.detach()], [*gradients, x @ codes.T]

ours, torchs = results()
child = os.fork()
if child == 0:
    signal.alarm(60)
    again, others = results()
    same = all(torch.equal(a, b) for a, b in zip(ours, again))
    near = all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(torchs, others))
    os._exit(0 if same and near and torch.get_num_threads() == 1 else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
results()
print(code, torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes_after_the_threads_have_run() -> None:
    done = python(FORKED)
    assert done.stdout.strip() == "0 2", done.stderr


def test_a_number_that_was_asked_for_is_taken(free: pytest.MonkeyPatch) -> None:
    assert use_threads(3).count == torch.get_num_threads() == 3
    assert build_info()["threads"] == arithmetic()["threads"] == 3


def test_the_environment_decides_before_a_measurement(free: pytest.MonkeyPatch) -> None:
    free.setenv("OMP_NUM_THREADS", "2")
    free.setattr(threads, "_speed", lambda count: 1 / 0)
    assert use_threads(0) == Threads(2, "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("speeds", "expected"), [({1: 10.0, 2: 18.0}, 2), ({1: 10.0, 2: 11.0}, 1), ({1: 10.0, 2: 0.1}, 1)]
)
def test_more_threads_are_taken_where_they_are_faster(
    free: pytest.MonkeyPatch, speeds: dict[int, float], expected: int
) -> None:
    free.setattr(threads, "_speed", speeds.__getitem__)
    found = use_threads(0)
    assert found.count == torch.get_num_threads() == expected
    assert f"2: {speeds[2] / speeds[1]:.2f}" in str(found)


def test_of_many_processors_the_powers_of_two_are_tried(free: pytest.MonkeyPatch) -> None:
    tried: set[int] = set()

    def speed(count: int) -> float:
        tried.add(count)
        return min(count, 4) * 10.0

    free.setattr(threads, "_speed", speed)
    assert threads._measured(12).count == 4
    assert tried == {1, 2, 4, 8, 12}


def test_a_real_measurement_finds_one_of_the_numbers(free: pytest.MonkeyPatch) -> None:
    assert use_threads(0).count in (1, 2)


def test_a_run_that_goes_on_has_the_threads_it_had(
    free: pytest.MonkeyPatch, world: tuple[Dataset, SyntheticTruth], tmp_path: Path
) -> None:
    free.setattr(threads, "_speed", {1: 10.0, 2: 20.0}.__getitem__)
    use_threads(1)
    open_run(tmp_path / "run", Config(), world[0], resume=False, overwrite=False)
    torch.set_num_threads(2)
    assert use_threads(0, tmp_path / "run") == Threads(1, "as the run had before")
    torch.set_num_threads(2)
    assert use_threads(0, tmp_path / "no-run").count == 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_a_control_groups_quota_is_read(files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert threads._quota(tmp_path) == expected


def test_where_the_system_tells_no_affinity_its_processors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(threads, "_quota", lambda root: None)
    assert threads.usable_processors() == 3


def test_train_says_its_threads(free: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free.setattr(threads, "_speed", {1: 10.0, 2: 5.0}.__getitem__)
    with pytest.raises(SystemExit):
        main(["train", "--dataset", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")])
    assert "threads: 1 (measured, speed by threads 1: 1.00, 2: 0.50" in capsys.readouterr().out.replace("\n", " ")
    assert torch.get_num_threads() == 1


FITTED = """
import os, signal, warnings, torch
from solid_ext import SOLID
from solid_ext.data import synthetic_dataset
from solid_ext.threads import set_threads, use_threads

def in_a_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            work()
        except ValueError as error:
            print(error, flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads(), flush=True)

def computes():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_threads(2)
    print(*(warning.message for warning in caught), torch.get_num_threads(), use_threads(2), flush=True)
    torch.randn(512, 512) @ torch.randn(512, 512)
    torch.randn(1000000).exp()

set_threads(2)
torch.randn(1000000).exp()
in_a_child(computes)
data, _ = synthetic_dataset(300, 100, 10)
in_a_child(lambda: SOLID(dim=16, epochs=1, threads=2).fit(data))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not tell its threads")
def test_a_forked_child_takes_one_thread_and_fits_no_model_that_would_wait_for_polars() -> None:
    done = python(FITTED)
    warned, one, refused, two = done.stdout.splitlines()
    assert warned == "threads: expected 1 in a forked process, got 2; it goes on with 1 1 1 (a forked process has one)"
    assert refused.startswith("fit: expected a process that was not forked after data had been read, got a forked one")
    assert one == two == "0 2"


@pytest.mark.parametrize("value", ["abc", "0", "100000", "-1", "4,2"])
def test_a_value_that_torch_did_not_take_is_not_given_as_the_reason(value: str, free: pytest.MonkeyPatch) -> None:
    free.setenv("OMP_NUM_THREADS", value)
    assert use_threads(0) == Threads(2, f"torch's choice; OMP_NUM_THREADS={value!r} was not used")
