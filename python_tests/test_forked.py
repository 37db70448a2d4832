"""A forked process refuses what would wait for polars' threads for ever, and computes where polars has not run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PARENT = """
import os, sys, signal
import numpy as np
from solid_ext import SOLID, load_dataset
from solid_ext.data import Dataset, make_semantics, prepare_raw, read_interactions, synthetic_dataset
from solid_ext.config import Config
folder = {folder!r}
users, items = np.repeat(np.arange(30), 6), np.arange(180) * 7 % 40
"""
READ = """
data = load_dataset((users, items))
small = SOLID(dim=8, epochs=1, neighbours=False, semantics="id", num_semantics=4)
small.fit(data)
data = load_dataset((users, items))  # whose fingerprint nobody has asked for
small.save(folder + "/model")
load_dataset((users, items)).save(folder + "/data")
"""
CHILD = """
child = os.fork()
if child == 0:
    signal.alarm(30)
    try:
        {work}
    except ValueError as error:
        os._exit(5 if "polars has lost its threads" in str(error) else 6)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
WORK = [
    *("load_dataset((users, items))", "load_dataset(folder + '/data')", "Dataset.load(folder + '/data')"),
    *("data.fingerprint", "data.save(folder + '/again')", "small.evaluate(data)", "small.fit(data)"),
    *("small.save(folder + '/other')", "SOLID.load(folder + '/model')", "read_interactions((users, items))"),
    "synthetic_dataset(40, 20, 4)",
    "prepare_raw('book', '/dev/null')",
    "make_semantics(Config().semantics, data, seed=0, train_end=data.offsets[1:])",
]


def answers(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    return done.stdout.split() or [done.stderr]


def test_a_child_of_a_process_that_read_data_refuses_to_read_write_and_train_and_still_recommends(
    tmp_path: Path,
) -> None:
    code = PARENT.format(folder=str(tmp_path)) + READ
    recommends = "assert len(small.recommend([[int(items[0])]], 3)[0]) == 3"
    twice = "pid = os.fork(); pid or signal.alarm(30); pid or data.fingerprint; "
    twice += "os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    code += "".join(CHILD.format(work=work) for work in [*WORK, recommends, twice])
    assert answers(code) == ["5"] * len(WORK) + ["0", "5"]


def test_a_child_reads_where_the_parent_had_not() -> None:
    code = PARENT.format(folder="") + CHILD.format(work="load_dataset((users, items)).fingerprint")
    assert answers(code) == ["0"]
