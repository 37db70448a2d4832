"""What every contestant in a process of its own does: `bench.harness.Peer` asks, it times one call, without torch.

Scripts that run in another environment import this file by its place, beside theirs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def answer(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> None:
    """Say that all is ready; then do the work once for every line on the input, and answer with its seconds."""
    print("ready", flush=True)
    for _ in sys.stdin:
        start = clock()
        work()
        print(clock() - start, flush=True)
