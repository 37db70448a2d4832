"""Comparisons: grids of runs, the peers in them, and the report with a test over users."""

from solid_ext.compare.comparison import check_dataset, compare
from solid_ext.compare.grid import PRESETS, Cell, Grid, make_grid
from solid_ext.compare.peers import PEERS
from solid_ext.compare.significance import Difference, holm, paired_differences

__all__ = [
    "PEERS",
    "PRESETS",
    "Cell",
    "Difference",
    "Grid",
    "check_dataset",
    "compare",
    "holm",
    "make_grid",
    "paired_differences",
]
