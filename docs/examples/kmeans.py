"""`nearest_code` as the assignment of k-means, beside scikit-learn's `KMeans`.

Both take the same start by k-means++ and the same number of Lloyd's turns: assign every row to its nearest mean,
average the rows of each. `nearest_code_statistics` gives counts and sums in the same call as the assignment.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.datasets import make_blobs
from torch import Tensor

from solid_ext.ops.nearest_code import nearest_code, nearest_code_statistics


def lloyd(rows: Tensor, means: Tensor, turns: int) -> Tensor:
    """The means [K, D] after so many turns over rows [N, D]; one that no row chose stays."""
    for _ in range(turns):
        near = nearest_code_statistics(rows, means)
        averaged = near.sums / near.counts.clamp(min=1).unsqueeze(1)
        means = torch.where(near.counts.unsqueeze(1) > 0, averaged, means)
    return means


def run(
    number: int = 20000, dim: int = 32, clusters: int = 256, turns: int = 20, seeds: tuple[int, ...] = (0, 1, 2)
) -> dict[str, list[dict[str, float]]]:
    """For each and seed the inertia, `sum_n min_k ||x_n - c_k||^2`, and the seconds of the turns."""
    found: dict[str, list[dict[str, float]]] = {"nearest_code": [], "scikit-learn KMeans": []}
    for seed in seeds:
        data, _ = make_blobs(number, dim, centers=clusters, cluster_std=4.0, random_state=seed)
        data = data.astype(np.float32)
        start, _ = kmeans_plusplus(data, clusters, random_state=seed)
        rows = torch.from_numpy(data)
        begun = time.process_time()
        means = lloyd(rows, torch.from_numpy(start), turns)
        inertia = float(nearest_code(rows, means).distance.double().sum())
        found["nearest_code"].append({"inertia": inertia, "seconds": time.process_time() - begun})
        begun = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged after so many turns
            theirs = KMeans(clusters, init=start, n_init=1, max_iter=turns, tol=0, algorithm="lloyd").fit(data)
        found["scikit-learn KMeans"].append({"inertia": float(theirs.inertia_), "seconds": time.process_time() - begun})
    return found


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=2)
