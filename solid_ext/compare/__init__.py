"""Comparisons: grids of runs, the peers in them, and their report."""

from solid_ext.compare.comparison import check_dataset, compare
from solid_ext.compare.grid import PRESETS, Cell, Grid, make_grid
from solid_ext.compare.peers import PEERS

__all__ = [
    "PEERS",
    "PRESETS",
    "Cell",
    "Grid",
    "check_dataset",
    "compare",
    "make_grid",
]
