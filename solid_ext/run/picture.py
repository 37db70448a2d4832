"""One picture of a run: how its stages trained, which entries of the codebook are in use, and what came of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solid_ext.files import written

# matplotlib is imported where it draws: it would add a second to every start of the package.
if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_Metrics: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]

# Okabe and Ito's colours, which any common colour blindness tells apart; markers differ as well.
_BLUE, _ORANGE, _SKY, _GREEN, _GREY = "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#5F5F5F"
# A model keeps its colour from its training curves to its bars; both of SOLID's stages are blue.
_MODELS = {"SOLID": _BLUE, "static": _ORANGE, "popularity": _GREY}
_OTHERS = (_GREEN, "#E69F00", "#CC79A7", _SKY, "#000000", "#F0E442")
_STAGES = {
    "static": ("static", _ORANGE, "s"),
    "stage1": ("stage 1", _SKY, "o"),
    "stage2": ("stage 2", _BLUE, "^"),
}
_HISTORY_KEYS = ("stage", "epoch", "loss", "valid", "seconds")
_PROTOCOLS = {"sampled": "Sampled protocol", "full": "Full ranking"}
_INK, _FAINT = "#222222", "#D9D9D9"
_STYLE = {"title": 12.5, "label": 11.0, "tick": 10.0, "value": 9.0}

HEADLINE = ("auc", "user_auc", "ndcg@10", "hr@10", "mrr")
"""The metrics drawn as bars: those that rise with quality, at one cutoff."""


def draw_report(
    path: str | os.PathLike[str],
    history: Sequence[Mapping[str, Any]],
    usage: ArrayLike | None,
    metrics: _Metrics,
    *,
    validation: str = "validation metric",
    shown: Sequence[str] = HEADLINE,
) -> Path:
    """Draws training curves, the codebook's use and metric bars into one PNG, and returns its path.

    Args:
        path: of the PNG; it appears complete or not at all.
        history: one row per epoch with `stage` ("static", "stage1" or "stage2"), `epoch`, `loss`, `valid`
            (the validation metric, higher is better; None where none was computed) and `seconds`.
        usage: `[C]`, how often each entry of the codebook was chosen; None or `[0]` for a model without one.
        metrics: model name -> protocol ("sampled", "full") -> metric name -> value, as the protocols give
            them; a model may lack a protocol or a metric.
        validation: what `valid` is, for the label of its axis.
        shown: the metric names drawn, in this order; the others stay in the run's metrics file.

    Raises:
        ValueError: a history row without one of its keys or of an unknown stage, a usage that is no count,
            or an unknown protocol.
    """
    for row in history:
        missing = [key for key in _HISTORY_KEYS if key not in row]
        if missing or row["stage"] not in _STAGES:
            raise ValueError(
                f"draw_report: expected history rows with {', '.join(_HISTORY_KEYS)} and a stage of "
                f"{', '.join(_STAGES)}, got {dict(row)}"
            )
    for model, protocols in metrics.items():
        if not protocols.keys() <= _PROTOCOLS.keys():
            raise ValueError(
                f"draw_report: expected metrics of {model} by protocol ({', '.join(_PROTOCOLS)}), "
                f"got {', '.join(protocols)}"
            )
    count = None if usage is None or np.size(usage) == 0 else np.asarray(usage)
    if count is not None and (count.ndim != 1 or not np.isfinite(count).all() or (count < 0).any()):
        raise ValueError(f"draw_report: expected usage [C] of counts >= 0, got {list(count.shape)}")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.14, wspace=0.03, hspace=0.05)
    figure = Figure(figsize=(15, 9), dpi=120, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False)
    loss, valid, entries = top.subplots(1, 3)
    _draw_loss(loss, history)
    _draw_valid(valid, history, validation)
    _draw_usage(entries, count)
    groups = {protocol: _names(metrics, protocol, shown) for protocol in _PROTOCOLS}
    widths = [max(len(names), 1) for names in groups.values()]
    axes = bottom.subplots(1, len(groups), width_ratios=widths)
    for axis, (protocol, names) in zip(axes, groups.items(), strict=True):
        _draw_bars(axis, protocol, names, metrics)
    _draw_legend(bottom, axes)

    target = Path(path)
    with written(target) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font lacks
        figure.savefig(partial, format="png")
    return target


def perplexity(usage: ArrayLike) -> float:
    """Effective number of entries in use, `exp(-sum_c p_c log p_c)` with `p = usage / sum(usage)`; 0 if unused.

    Args:
        usage: `[C]`, counts.
    """
    count = np.asarray(usage, np.float64)
    share = count[count > 0] / count.sum() if count.any() else np.empty(0)
    return float(np.exp(-np.sum(share * np.log(share)))) if share.size else 0.0


def _draw_loss(axis: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    _frame(axis, "Training loss", "epoch", "mean loss")
    for stage, rows in _by_stage(history).items():
        label, colour, marker = _STAGES[stage]
        label = f"{label} ({_duration(sum(float(row['seconds']) for row in rows))})"
        epochs, losses = [row["epoch"] for row in rows], [row["loss"] for row in rows]
        axis.plot(epochs, losses, color=colour, marker=marker, label=label, **_line(len(rows)))
    _finish_curves(axis, bool(history), "no epochs")


def _draw_valid(axis: Axes, history: Sequence[Mapping[str, Any]], validation: str) -> None:
    _frame(axis, "Validation, best epoch marked", "epoch", validation)
    drawn = False
    for stage, rows in _by_stage(history).items():
        label, colour, marker = _STAGES[stage]
        points = [(row["epoch"], float(row["valid"])) for row in rows if _is_finite(row["valid"])]
        if not points:
            continue
        drawn = True
        epochs, values = zip(*points, strict=True)
        best = int(np.argmax(values))
        label = f"{label}: {_short(values[best])} at epoch {epochs[best]}"
        axis.plot(epochs, values, color=colour, marker=marker, label=label, **_line(len(points)))
        axis.axhline(values[best], color=colour, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        axis.plot(
            epochs[best],
            values[best],
            marker="*",
            markersize=17,
            color=colour,
            markeredgecolor="white",
            markeredgewidth=1.2,
            linestyle="none",
            zorder=4,
        )
    _finish_curves(axis, drawn, "not validated")


def _draw_usage(axis: Axes, count: NDArray[Any] | None) -> None:
    if count is None:
        _frame(axis, "Codebook", "entry, most used first", "times chosen")
        _empty(axis, "no codebook")
        return
    dead = int(np.count_nonzero(count == 0))
    effective = perplexity(count)
    title = f"Entries: perplexity {effective:.{1 if effective < 100 else 0}f} of {count.size}, {dead} dead"
    _frame(axis, title, "entry, most used first", "times chosen")
    alive = np.sort(count[count > 0])[::-1]
    if alive.size == 0:
        _empty(axis, "no entry was ever chosen")
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.set_yscale("log")
    decades = np.log10(alive[0] / alive[-1])
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(_count_label))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    floor = alive[-1] / 2  # half of the rarest: its bar is still visible on a log scale
    edges = np.arange(alive.size + 1) + 0.5
    axis.stairs(alive, edges, baseline=floor, fill=True, color=_GREEN, alpha=0.85)
    axis.set_ylim(floor, alive[0] * max(2.0, (alive[0] / floor) ** 0.2))  # room for the legend
    axis.set_xlim(0.5, count.size + 0.5)
    axis.axhline(alive.sum() / count.size, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label="even use")
    if dead:
        axis.axvspan(alive.size + 0.5, count.size + 0.5, color=_FAINT, alpha=0.6, linewidth=0, label=f"dead ({dead})")
    axis.legend(loc="upper right", ncols=2, frameon=True, framealpha=0.8, edgecolor="none", fontsize=_STYLE["tick"])
    axis.grid(axis="x", visible=False)


def _draw_bars(axis: Axes, protocol: str, names: Sequence[str], metrics: _Metrics) -> None:
    _frame(axis, _PROTOCOLS[protocol], "", "")
    axis.grid(axis="x", visible=False)
    if not names:
        _empty(axis, "not evaluated")
        return
    width = min(0.84 / len(metrics), 0.4)
    # Values over narrow bars are turned upright, or they would run into each other.
    upright = len(metrics) > 3
    for place, (model, colour) in enumerate(_model_colours(metrics).items()):
        values = metrics[model].get(protocol, {})
        drawn = [(x, values[name]) for x, name in enumerate(names) if name in values]
        if not drawn:
            continue
        x, heights = np.asarray(drawn, np.float64).T
        centre = x + (place - (len(metrics) - 1) / 2) * width
        bars = axis.bar(centre, heights, width * 0.92, color=colour, label=model)
        axis.bar_label(
            bars,
            labels=[_short(height) for height in heights],
            padding=2,
            fontsize=_STYLE["value"],
            rotation=90 if upright else 0,
            color=_INK,
        )
    axis.set_xticks(range(len(names)), [_metric_name(name) for name in names], fontsize=_STYLE["label"])
    axis.margins(y=0.24 if upright else 0.12)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.tick_params(axis="x", length=0)


def _draw_legend(figure: SubFigure, axes: Sequence[Axes]) -> None:
    models: dict[str, Any] = {}  # a model may be in one protocol alone
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        models |= dict(zip(labels, handles, strict=True))
    if models:
        rows = -(-len(models) // 6)
        legend = figure.legend(
            list(models.values()),
            list(models),
            loc="outside lower center",
            ncols=-(-len(models) // rows),
            frameon=False,
            fontsize=_STYLE["label"],
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _model_colours(models: Iterable[str]) -> dict[str, str]:
    others = cycle(_OTHERS)
    return {model: _MODELS.get(model) or next(others) for model in models}


def _names(metrics: _Metrics, protocol: str, shown: Sequence[str]) -> list[str]:
    return [name for name in shown if any(name in values.get(protocol, {}) for values in metrics.values())]


def _by_stage(history: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    stages = {stage: [row for row in history if row["stage"] == stage] for stage in _STAGES}
    return {stage: rows for stage, rows in stages.items() if rows}


def _frame(axis: Axes, title: str, across: str, up: str) -> None:
    plain: dict[str, Any] = {"color": _INK, "parse_math": False}  # names hold dollars that are no formulas
    axis.set_title(title, fontsize=_STYLE["title"], loc="left", pad=10, fontweight="bold", **plain)
    axis.set_xlabel(across, fontsize=_STYLE["label"], **plain)
    axis.set_ylabel(up, fontsize=_STYLE["label"], **plain)
    axis.tick_params(labelsize=_STYLE["tick"], colors=_INK)
    axis.grid(color=_FAINT, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _finish_curves(axis: Axes, drawn: bool, otherwise: str) -> None:
    if not drawn:
        _empty(axis, otherwise)
        return
    from matplotlib.ticker import MaxNLocator

    low, high = axis.get_xlim()
    axis.set_xlim(min(low, high - 1.0), max(high, low + 1.0))  # a single epoch gets whole ticks too
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.legend(loc="best", frameon=True, framealpha=0.8, edgecolor="none", fontsize=_STYLE["tick"])


def _empty(axis: Axes, text: str) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="#777777", fontsize=12)


def _line(points: int) -> dict[str, Any]:
    # Markers on every epoch help a short curve and smear a long one.
    return {"linewidth": 2, "markersize": 4.5, "markevery": max(1, points // 20), "zorder": 3}


def _is_finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))


def _metric_name(name: str) -> str:
    base, at, cutoff = name.partition("@")
    known = {
        "auc": "AUC",
        "user_auc": "user-AUC",
        "ndcg": "NDCG",
        "hr": "HR",
        "mrr": "MRR",
        "log_loss": "log loss",
    }
    return known.get(base, base) + at + cutoff


def _count_label(count: float, _place: int | None = None) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:g}{letter}"
    return f"{count:g}"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
