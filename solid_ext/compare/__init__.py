"""Comparisons: grids of runs, the peers in them, and their report."""

from solid_ext.compare.comparison import check_dataset, compare
from solid_ext.compare.grid import PRESETS, Grid, PlannedRun, make_grid
from solid_ext.compare.peers import PEERS

__all__ = [
    "PEERS",
    "PRESETS",
    "Grid",
    "PlannedRun",
    "check_dataset",
    "compare",
    "make_grid",
]
