"""Draw the paired differences of each loss to the reference as PNG or SVG."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cyclofocal.lab.metrics import Metric
from cyclofocal.lab.records import CONFUSION_CLASSES
from cyclofocal.lab.report.charts import MAX_NUMBERED, MAX_POINTS, short_name
from cyclofocal.lab.report.experiment import Experiment
from cyclofocal.lab.report.summary import PairedComparison, Summary, common_primary
from cyclofocal.lab.report.wording import format_count, format_value

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
"""Okabe and Ito's palette, for colour-blind readers too."""

TITLE = 30
"""Characters in a line of the title of a panel."""

WIDE_TITLE = 40
"""The same of a panel that is one of two or three."""

LABEL = 28
"""Characters in a line of a label; longer names are wrapped to leave room for the panels."""

GREY = "#555555"
GREEN = "#EAF3EA"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.hashsalt": "cyclofocal",
    "axes.linewidth": 0.8,
}
LEGEND = "Large dots: mean with 95 % interval; filled: significant after correction. Green side: better."


def draw_differences(summaries: Sequence[Summary], path: Path) -> None:
    """Draw the differences as PNG or SVG, by the suffix of ``path``.

    One experiment has one panel per metric and one line per loss. Two or three have one panel each, in the primary
    metric; more have one panel per loss and one line per experiment.

    Raises:
        ValueError: no loss can be compared with the reference.
    """
    compared = [summary for summary in summaries if summary.compared(summary.primary)]
    if not compared:
        raise ValueError("no loss can be compared with the reference; there is nothing to draw")
    with matplotlib.rc_context(STYLE):
        figure = _one(compared[0]) if len(summaries) == 1 else (_few if len(compared) < 4 else _many)(compared)
        save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure without the date in an SVG, so that equal figures are equal files."""
    figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def draw_confusion(experiment: Experiment, path: Path) -> None:
    """Draw the confusion matrix of every loss as PNG or SVG: shares of the true class, mean over seeds.

    Raises:
        ValueError: no loss has one in all its records.
    """
    if not experiment.confusion:
        raise ValueError(
            f"no loss has a confusion matrix in all its records; they hold one if they are new and have at most"
            f" {CONFUSION_CLASSES} classes"
        )
    with matplotlib.rc_context(STYLE):
        figure = _confusion_figure(experiment)
        save_figure(figure, path)


def _confusion_figure(experiment: Experiment) -> Figure:
    columns = min(3, len(experiment.confusion))
    lines = -(-len(experiment.confusion) // columns)
    figure = _figure(1.2 + 3.4 * columns, 0.9 + 3.5 * lines)
    axes = figure.subplots(lines, columns, squeeze=False)
    for panel in axes.flat[len(experiment.confusion) :]:
        panel.set_visible(False)
    for panel, (name, matrix) in zip(axes.flat, experiment.confusion.items(), strict=False):
        drawn = _confusion_panel(panel, matrix, experiment.classes)
        panel.set_title(fill(experiment.titles[name], LABEL), loc="left", fontsize=10, weight="bold")
    figure.colorbar(drawn, ax=axes, shrink=0.6, label="share of the true class, %")
    note = "Rows: true class; columns: predicted class. Numbers: test samples, mean over seeds."
    figure.suptitle(f"Confusion: {experiment.title}", x=0.01, ha="left", fontsize=12, weight="bold")
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)
    return figure


def _confusion_panel(axes: Any, matrix: NDArray[np.float64], classes: Sequence[str]) -> Any:
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    drawn = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if len(matrix) <= MAX_NUMBERED:
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                colour = "white" if share[row, column] > 55 else "black"
                axes.text(column, row, format_count(value), ha="center", va="center", fontsize=6.5, color=colour)
    if len(matrix) <= MAX_POINTS:
        names = [short_name(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("predicted", fontsize=8, color=GREY)
    axes.set_ylabel("true", fontsize=8, color=GREY)
    return drawn


def _one(summary: Summary) -> Figure:
    metrics = [metric for metric in summary.metrics if metric in _drawn_metrics(summary) and summary.compared(metric)]
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    losses = max(len(summary.compared(metric)) for metric in metrics)
    figure = _figure(10, 1.0 + lines * (1.0 + 0.34 * losses))
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel, metric in zip(axes.flat, metrics, strict=False):
        _metric_panel(panel, metric, summary)
    for panel in axes.flat[len(metrics) :]:
        panel.set_visible(False)
    seeds = f"{summary.seeds} seed{'s' * (summary.seeds > 1)}, paired (small dots). "
    _titles(figure, f"Differences to {summary.reference}: {summary.experiment.title}", seeds)
    return figure


def _drawn_metrics(summary: Summary) -> list[Metric]:
    """Metrics to draw; plain accuracy only if it is the primary metric, since it adds little to balanced accuracy."""
    return [metric for metric in summary.main_metrics if metric.key != "accuracy" or metric == summary.primary]


def _few(summaries: Sequence[Summary]) -> Figure:
    primary = common_primary(summaries)
    losses = max(len(summary.compared(summary.primary)) for summary in summaries)
    figure = _figure(3 + 3.5 * len(summaries), 1.7 + 0.34 * losses)
    shared = len({tuple(row.loss for row in summary.compared(summary.primary)) for summary in summaries}) == 1
    for panel, summary in zip(figure.subplots(1, len(summaries), sharey=shared), summaries, strict=True):
        _metric_panel(panel, summary.primary, summary)
        panel.set_title(fill(summary.experiment.title, WIDE_TITLE), loc="left", fontsize=10, weight="bold")
    _titles(figure, f"Differences to {summaries[0].reference} in {primary.title}", "Small dots: seeds. ")
    return figure


def _many(summaries: Sequence[Summary]) -> Figure:
    primary = common_primary(summaries)
    losses = list(dict.fromkeys(row.loss for s in summaries for row in s.compared(primary)))
    figure = _figure(2.5 + 2.6 * len(losses), 1.4 + 0.24 * len(summaries))
    axes = figure.subplots(1, len(losses), squeeze=False, sharey=True, sharex=True)
    for panel, loss in zip(axes.flat, losses, strict=True):
        _loss_panel(panel, loss, summaries)
    _limits(axes.flat[0], [row for s in summaries for row in s.compared(primary)], of_seeds=False)
    for panel in axes.flat:
        _better_side(panel, primary)
    reference = summaries[0].reference
    _titles(figure, f"Differences to {reference} in {primary.title}", "")
    return figure


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03)
    return Figure(figsize=(width, height), layout=layout)


def _metric_panel(axes: Any, metric: Metric, summary: Summary) -> None:
    rows = summary.compared(metric)
    reference = next(row for row in summary.of_metric(metric) if row.comparison is None)
    for y, row in enumerate(rows):
        _difference(axes, y, row, COLOURS[y % len(COLOURS)])
    _limits(axes, rows)
    _better_side(axes, metric)
    _lines(axes, [row.loss for row in rows])
    primary = " (primary)" if metric == summary.primary else ""
    axes.set_title(fill(metric.title + primary, TITLE), loc="left", fontsize=10, weight="bold")
    mean = format_value(reference.estimate.mean, metric) + (" %" if metric.percent else "")
    unit = f" in {metric.unit_of_difference}" if metric.unit_of_difference else ""
    axes.set_xlabel(f"difference{unit}; {reference.loss}: {mean}", fontsize=8, color=GREY)


def _loss_panel(axes: Any, loss: str, summaries: Sequence[Summary]) -> None:
    for y, summary in enumerate(summaries):
        for row in summary.compared(summary.primary):
            if row.loss == loss:
                _difference(axes, y, row, COLOURS[0], of_seeds=False)
    _lines(axes, [summary.experiment.title for summary in summaries])
    axes.set_title(fill(loss, LABEL), loc="left", fontsize=10, weight="bold")
    axes.set_xlabel(f"difference in {summaries[0].primary.unit_of_difference}", fontsize=8, color=GREY)


def _lines(axes: Any, labels: Sequence[str]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_yticks(range(len(labels)), [fill(label, LABEL) for label in labels])
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)


def _difference(axes: Any, y: int, row: PairedComparison, colour: str, of_seeds: bool = True) -> None:
    seeds, value = row.per_seed, row.estimate
    if of_seeds:
        spread = [y + 0.24 + 0.05 * (index % 3 - 1) for index in range(len(seeds))]
        axes.scatter(seeds, spread, s=9, color=colour, alpha=0.4, linewidth=0, zorder=2)
    if value.interval:
        axes.plot(value.interval, [y, y], color=colour, linewidth=2, solid_capstyle="round", zorder=3)
    size, face = 38 if of_seeds else 20, colour if row.direction else "white"
    axes.scatter([value.mean], [y], s=size, facecolor=face, edgecolor=colour, linewidth=1.6, zorder=4)


def _limits(axes: Any, rows: Sequence[PairedComparison], of_seeds: bool = True) -> None:
    """Set limits that are symmetric about 0."""
    ends: list[float] = []
    for row in rows:
        ends += row.per_seed if of_seeds else row.estimate.interval or (row.estimate.mean,)
    limit = 1.08 * (max(map(abs, ends), default=0.0) or 1.0)
    axes.set_xlim(-limit, limit)


def _better_side(axes: Any, metric: Metric) -> None:
    low, high = axes.get_xlim()
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    axes.axvspan(*((0, high) if metric.higher_is_better else (low, 0)), color=GREEN, linewidth=0, zorder=0)


def _titles(figure: Figure, title: str, start: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    figure.supxlabel(start + LEGEND, x=0.01, ha="left", fontsize=8, color=GREY)
