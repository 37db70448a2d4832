"""The report: a complete picture for full, partial and odd input, and none for bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from solid_ext.compare.picture import draw_comparison
from solid_ext.run.picture import draw_report, perplexity

METRICS = {
    "popularity": {"sampled": {"user_auc": 0.628, "hr@10": 0.3}, "full": {"ndcg@10": 0.0171}},
    "SOLID": {"sampled": {"user_auc": 0.757, "hr@10": 0.44, "log_loss": 0.05}, "full": {"ndcg@10": 0.0261}},
}


def rows(stage: str, values: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "epoch": epoch, "loss": 1 / epoch, "valid": value, "seconds": 1.5}
        for epoch, value in enumerate(values, 1)
    ]


HISTORY = rows("static", [0.1, 0.2, 0.15]) + rows("stage1", [0.2, 0.3]) + rows("stage2", [0.3, 0.35, 0.34, 0.3])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def axes_of(figures: list[Figure]) -> list[Axes]:
    """Loss, validation, codes, sampled, full."""
    return [axis for part in figures[-1].subfigs for axis in part.axes]


def texts(axis: Axes) -> list[str]:
    legend = axis.get_legend()
    return [text.get_text() for text in [*axis.texts, *(legend.get_texts() if legend else [])]]


def outer_texts(axis: Axes) -> list[Text]:
    """Titles, axis labels, values on bars, and the tick labels inside the view."""
    low, high = axis.get_xlim()
    bottom, top = axis.get_ylim()
    across = [label for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high]
    upward = [label for label in axis.get_yticklabels() if bottom <= label.get_position()[1] <= top]
    others = [child for child in axis.get_children() if isinstance(child, Text)]
    found = [*others, axis.xaxis.label, axis.yaxis.label, *across, *upward]
    return [text for text in found if text.get_text()]


def test_draws_one_picture_with_everything_in_it(tmp_path: Path, drawn: list[Figure]) -> None:
    path = draw_report(tmp_path / "report.png", HISTORY, np.array([40, 0, 10, 0]), METRICS)
    assert path == tmp_path / "report.png"
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]
    assert imread(path).shape[:2] == (1080, 1800)

    loss, valid, codes, sampled, full = axes_of(drawn)
    assert texts(loss) == ["static (4 s)", "stage 1 (3 s)", "stage 2 (6 s)"]
    assert texts(valid) == [
        "static: 0.200 at epoch 2",
        "stage 1: 0.300 at epoch 2",
        "stage 2: 0.350 at epoch 2",
    ]
    assert codes.get_title(loc="left") == f"Entries: perplexity {perplexity([40, 10]):.1f} of 4, 2 dead"
    assert codes.get_yscale() == "log"
    assert [label.get_text() for label in sampled.get_xticklabels()] == ["user-AUC", "HR@10"]
    assert texts(sampled) == ["0.628", "0.300", "0.757", "0.440"]
    assert texts(full) == ["0.0171", "0.0261"]
    (legend,) = drawn[-1].subfigs[1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["popularity", "SOLID"]


def test_a_model_keeps_its_colour(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_report(tmp_path / "report.png", HISTORY, None, METRICS | {"A": METRICS["SOLID"], "B": METRICS["SOLID"]})
    loss, _, _, sampled, full = axes_of(drawn)
    colours = {bars.get_label(): bars[0].get_facecolor() for bars in sampled.containers}
    assert colours == {bars.get_label(): bars[0].get_facecolor() for bars in full.containers}
    assert len(set(colours.values())) == 4
    assert colours["SOLID"] == to_rgba(loss.lines[2].get_color())


@pytest.mark.parametrize("models", [1, 3, 8])
def test_no_two_texts_overlap(models: int, tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = {
        f"model number {place}": {
            "sampled": dict.fromkeys(("auc", "user_auc", "ndcg@10", "hr@10"), 0.7),
            "full": dict.fromkeys(("ndcg@10", "hr@10", "mrr"), 0.03),
        }
        for place in range(models)
    }
    usage = np.append(np.arange(1, 8000) ** 2, np.zeros(193, int))
    draw_report(tmp_path / "report.png", HISTORY, usage, metrics)
    figure = drawn[-1]
    width, height = figure.canvas.get_width_height()
    boxes = [text.get_window_extent() for axis in axes_of(drawn) for text in outer_texts(axis)]
    boxes += [legend.get_window_extent() for legend in figure.subfigs[1].legends]
    for place, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:place])


def test_a_run_may_lack_a_codebook_validation_or_a_protocol(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_report(tmp_path / "report.png", rows("static", [None]), None, {"static": {"full": {"mrr": 0.1}}})
    _, valid, codes, sampled, full = axes_of(drawn)
    assert texts(valid) == ["not validated"]
    assert texts(codes) == ["no codebook"]
    assert texts(sampled) == ["not evaluated"]
    assert texts(full) == ["0.100"]
    draw_report(tmp_path / "report.png", [], np.zeros(3, int), {}, validation="sampled NDCG@10")
    loss, valid, codes, sampled, full = axes_of(drawn)
    assert texts(loss) == ["no epochs"]
    assert texts(codes) == ["no entry was ever chosen"]
    assert valid.get_ylabel() == "sampled NDCG@10"
    assert codes.get_title(loc="left") == "Entries: perplexity 0.0 of 3, 3 dead"


def test_an_epoch_that_diverged_is_never_the_best(tmp_path: Path, drawn: list[Figure]) -> None:
    history = rows("stage1", [0.2, 0.3, float("nan")])
    draw_report(tmp_path / "report.png", history, np.array([1]), METRICS)
    assert texts(axes_of(drawn)[1]) == ["stage 1: 0.300 at epoch 2"]


def test_leaves_no_global_figure(tmp_path: Path) -> None:
    draw_report(tmp_path / "report.png", HISTORY, np.zeros(0, int), METRICS)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_perplexity_by_hand() -> None:
    assert perplexity([5, 5, 5, 5]) == pytest.approx(4.0)
    assert perplexity([7, 0, 0]) == pytest.approx(1.0)
    assert perplexity([0, 0]) == 0.0
    assert perplexity([3, 1]) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize(
    ("history", "usage", "metrics", "message"),
    [
        (
            [{"stage": "stage1", "epoch": 1}],
            None,
            {},
            "draw_report: expected history rows with stage, epoch, ",
        ),
        (rows("stage3", [0.1]), None, {}, "and a stage of static, stage1, stage2, got .*stage3"),
        ([], np.array([1, -1]), {}, r"draw_report: expected usage \[C\] of counts >= 0, got \[2\]"),
        ([], np.zeros((2, 2)), {}, r"expected usage \[C\] of counts >= 0, got \[2, 2\]"),
        (
            [],
            None,
            {"a": {"ndcg@10": {}}},
            r"expected metrics of a by protocol \(sampled, full\), got ndcg@10",
        ),
    ],
)
def test_bad_input_gets_a_sentence_and_no_file(tmp_path: Path, history, usage, metrics, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_report(tmp_path / "report.png", history, usage, metrics)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw_report(tmp_path / "report.png", HISTORY, None, METRICS)
    before = path.read_bytes()

    def fail(self: Figure, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(ValueError, match=r"write: expected a file that can be written, got .*disk full"):
        draw_report(path, HISTORY, None, METRICS)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]


def test_dollars_in_names_are_no_formulas(tmp_path: Path, drawn: list[Figure]) -> None:
    """`$\\frac$` alone would end in a ParseException after everything was trained."""
    named = {"日本 $x_1$ $\\frac$": METRICS["SOLID"], "popularity": METRICS["popularity"]}
    draw_report(tmp_path / "report.png", HISTORY, None, named, validation="$\\frac$")
    dots = SimpleNamespace(backbone="none", method="$\\frac$", seeds={("full", "ndcg@10"): [0.1, 0.2]})
    draw_comparison(tmp_path / "c.png", {"日本 [$\\frac$]": [dots]}, [("full", "ndcg@10")], "none")
    assert drawn[-1].axes[0].get_title() == "日本 [$\\frac$]: full ndcg@10"
    assert (tmp_path / "c.png").exists()
