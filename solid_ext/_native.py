"""The compiled module, found beside the package, and what it was built with."""

from __future__ import annotations

import os
import sys
from typing import Any

# OpenMP's idle threads spin, each on a processor, unless told to sleep. Beside other work that is ruinous: the one
# that spins keeps its processor from the one that is waited for, and a pass of small operations took 100 times as long
# on two threads as on one. OpenMP reads the variable once, as it is loaded, so it is set for that moment alone; whoever
# sets it outside, or has loaded torch before, has decided otherwise.
IDLE = "OMP_WAIT_POLICY"
_decides = "torch" not in sys.modules and not {IDLE, "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ)
if _decides:
    os.environ[IDLE] = "PASSIVE"
try:
    import _solid_ext as kernels
    import torch
except ImportError as error:
    if error.name != "_solid_ext":
        raise
    raise ImportError(
        "solid_ext: expected its compiled module _solid_ext, found none "
        f"(run `pip install .` in the project's folder; the loader said: {error})"
    ) from error
finally:
    if _decides:
        del os.environ[IDLE]

from solid_ext.forked import is_forked_child  # noqa: E402, F401 (whose hook leaves a child of this process one thread)

if os.environ.get("SOLID_EXT_ISA"):
    kernels.set_isa(os.environ["SOLID_EXT_ISA"])


def build_info() -> dict[str, Any]:
    """What the compiled module is and runs on.

    Returns:
        dict with `version`; `compiler`; `isa_built`, `isa_usable` (instruction sets compiled in; those this
        processor runs), `isa` (the one in use, `SOLID_EXT_ISA` forces another); `threads` (of torch, which the kernels
        take too); `cuda` (None, or a dict with the toolkit's `version` and `architectures`, "90" being machine code
        of sm_90 and "compute_90" what newer GPUs translate); `cuda_build` (whether CUDA kernels were built, and why:
        `SOLID_EXT_CUDA` when the package is built is AUTO, for the GPUs that are present; ON, for every architecture;
        or OFF).

    Source: docs/kernels/index.md#what-was-built.
    """
    return {**kernels.build_info(), "threads": torch.get_num_threads()}


def arithmetic() -> dict[str, Any]:
    """What decides the last bits of a training beside its inputs: `isa`, the kernels' instruction set, and `threads`.

    The kernels give the same bits for any number of threads; torch's own sums over a batch do not, so that a training
    repeats its bits with the same two alone.
    """
    return {"isa": kernels.build_info()["isa"], "threads": torch.get_num_threads()}
