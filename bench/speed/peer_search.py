"""FAISS or scikit-learn, searching the same data in a process of its own (they bring another OpenMP).

python peer_search.py faiss|sklearn N K D threads
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from peer_answers import answer

library, threads = sys.argv[1], int(sys.argv[5])
rows, codes, dim = map(int, sys.argv[2:5])
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)

try:
    import numpy as np

    if library == "faiss":
        import faiss
    else:
        from sklearn.metrics import pairwise_distances_argmin
except ImportError as error:
    print(f"missing: {error}", flush=True)
    sys.exit()

random = np.random.default_rng(0)
x = random.standard_normal((rows, dim), dtype=np.float32)
codebook = random.standard_normal((codes, dim), dtype=np.float32)
search: Callable[[], object]
if library == "faiss":
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(dim)
    index.add(codebook)
    search = lambda: index.search(x, 1)  # noqa: E731
else:
    search = lambda: pairwise_distances_argmin(x, codebook)  # noqa: E731
search()
answer(search)
