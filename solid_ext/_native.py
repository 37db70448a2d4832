"""The compiled module, found beside the package, and what it was built with."""

from __future__ import annotations

import os
from typing import Any

try:
    import _solid_ext as kernels
except ImportError as error:
    raise ImportError(
        "solid_ext: expected its compiled module _solid_ext, found none "
        f"(run `pip install .` in the project's folder; the loader said: {error})"
    ) from error

if os.environ.get("SOLID_EXT_ISA"):
    kernels.set_isa(os.environ["SOLID_EXT_ISA"])


def build_info() -> dict[str, Any]:
    """What the compiled module is and runs on.

    Returns:
        dict with `version`; `compiler`; `isa_built`, `isa_usable` (instruction sets compiled in; those this
        processor runs), `isa` (the one in use, `SOLID_EXT_ISA` forces another); `cuda` (None, or a dict with the
        toolkit's `version` and `architectures`, of which "PTX" serves GPUs newer than the others).

    Source: docs/kernels/index.md#what-was-built.
    """
    return dict(kernels.build_info())
