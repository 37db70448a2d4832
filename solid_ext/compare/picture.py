"""A comparison in one picture: a dot a backbone and method, its spread over seeds, a row of panels a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from solid_ext.files import written

# Okabe and Ito's colours; markers differ as well.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
_PEER = ("#444444", "x")


class Dots(Protocol):
    """What is drawn of one backbone and method."""

    @property
    def backbone(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def seeds(self) -> Mapping[tuple[str, str], Sequence[float]]: ...


def draw_comparison(
    path: Path, results: Mapping[str, Sequence[Dots]], metrics: Sequence[tuple[str, str]], no_backbone: str
) -> None:
    """Draw mean and standard deviation over seeds into one PNG, which appears complete or not at all.

    Args:
        results: by dataset.
        metrics: (protocol, metric), a column of panels each.
        no_backbone: what stands for none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = {dataset: list(dict.fromkeys(result.method for result in found)) for dataset, found in results.items()}
    heights = [0.9 + 0.34 * len(names) for names in methods.values()]
    figure = Figure(figsize=(4.2 * len(metrics) + 1, sum(heights) + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(results), len(metrics), squeeze=False, height_ratios=heights, sharey="row")
    backbones = list(dict.fromkeys(result.backbone for found in results.values() for result in found))
    looks = dict(zip((name for name in backbones if name != no_backbone), _LOOKS * len(backbones), strict=False))
    handles = {}
    for row, (dataset, found) in zip(panels, results.items(), strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            for result in found:
                colour, marker = looks.get(result.backbone, _PEER)
                place = list(looks).index(result.backbone) if result.backbone in looks else (len(looks) - 1) / 2
                offset = 0.5 * ((place + 0.5) / max(len(looks), 1) - 0.5)
                values = result.seeds[metric]
                handles[result.backbone] = axis.errorbar(
                    np.mean(values),
                    methods[dataset].index(result.method) + offset,
                    xerr=np.std(values, ddof=1) if len(values) > 1 else None,
                    color=colour, marker=marker, markersize=6, capsize=3, linestyle="none",
                )  # fmt: skip
            axis.set_yticks(range(len(methods[dataset])), methods[dataset], parse_math=False)
            axis.locator_params(axis="x", nbins=5)
            axis.grid(alpha=0.3)
            axis.set_title(f"{dataset}: {' '.join(metric)}", fontsize=10, parse_math=False)
        row[0].invert_yaxis()
    names = ["none" if name == no_backbone else name for name in handles]
    figure.legend(handles.values(), names, loc="outside lower center", ncols=len(names), title="backbone")
    with written(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font lacks
        figure.savefig(partial, format="png")
