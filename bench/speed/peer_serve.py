"""FAISS or implicit, which find the items of largest inner product, in a process of its own.

python peer_serve.py faiss|implicit V D B K threads
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from peer_answers import answer

library = sys.argv[1]
items, dim, batch, k, threads = map(int, sys.argv[2:7])
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)

try:
    import numpy as np

    if library == "faiss":
        import faiss
    else:
        from implicit.cpu.topk import topk
except ImportError as error:
    print(f"missing: {error}", flush=True)
    sys.exit()

random = np.random.default_rng(0)
keys = random.standard_normal((items, dim), dtype=np.float32)
queries = random.standard_normal((batch, dim), dtype=np.float32)
search: Callable[[], object]
if library == "faiss":
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(dim)
    index.add(keys)
    search = lambda: index.search(queries, k)  # noqa: E731
else:
    search = lambda: topk(keys, queries, k, num_threads=threads)  # noqa: E731
clock = time.thread_time if threads == 1 else time.perf_counter
search()
answer(search, clock)
