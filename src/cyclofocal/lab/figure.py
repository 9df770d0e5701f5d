"""The picture of a comparison: what each loss changes, seed by seed, relative to the reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from cyclofocal.lab.metrics import Metric
from cyclofocal.lab.report import Row, Summary, number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
"""Okabe and Ito's, told apart by colour-blind readers."""

GREY = "#555555"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.hashsalt": "cyclofocal",
    "axes.linewidth": 0.8,
}


def draw(summary: Summary, path: Path) -> None:
    """Write the picture as PNG or SVG, by the suffix of ``path``: one panel per metric, one line per loss."""
    metrics = [metric for metric in summary.metrics if metric.key != "accuracy"]  # balanced says more here
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(metrics))
        lines = -(-len(metrics) // columns)
        losses = len(summary.of_metric(metrics[0])) - 1
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03)
        figure = Figure(figsize=(10, 1.0 + lines * (1.1 + 0.34 * losses)), layout=layout)
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for panel, metric in zip(axes.flat, metrics, strict=False):
            _panel(panel, metric, summary)
        for panel in axes.flat[len(metrics) :]:
            panel.set_visible(False)
        _titles(figure, summary)
        figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Any, metric: Metric, summary: Summary) -> None:
    rows = [row for row in summary.of_metric(metric) if row.versus]
    reference = next(row for row in summary.of_metric(metric) if row.versus is None)
    for y, row in enumerate(rows):
        _difference(axes, y, row, COLOURS[y % len(COLOURS)])
    axes.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    _limits(axes, rows)
    low, high = axes.get_xlim()
    axes.axvspan(*((0, high) if metric.higher_is_better else (low, 0)), color="#EAF3EA", linewidth=0, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.set_yticks(range(len(rows)), [row.loss for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_title(metric.title, loc="left", fontsize=10, weight="bold")
    unit = "points" if metric.percent else "nats"
    mean = number(reference.estimate.mean, metric) + (" %" if metric.percent else "")
    axes.set_xlabel(f"difference in {unit}; {reference.loss}: {mean}", fontsize=8, color=GREY)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)


def _difference(axes: Any, y: int, row: Row, colour: str) -> None:
    assert row.versus is not None
    seeds, value = row.versus.per_seed, row.versus.difference.estimate
    spread = [y + 0.24 + 0.05 * (index % 3 - 1) for index in range(len(seeds))]
    axes.scatter(seeds, spread, s=9, color=colour, alpha=0.4, linewidth=0, zorder=2)
    if value.interval:
        axes.plot(value.interval, [y, y], color=colour, linewidth=2, solid_capstyle="round", zorder=3)
    shown = row.versus.verdict in ("better", "worse")
    axes.scatter(
        [value.mean], [y], s=38, facecolor=colour if shown else "white", edgecolor=colour, linewidth=1.6, zorder=4
    )


def _limits(axes: Any, rows: Sequence[Row]) -> None:
    """The same room on both sides of 0, so that no panel looks one-sided by its axis."""
    reach = max((abs(value) for row in rows if row.versus for value in row.versus.per_seed), default=0.0) or 1.0
    axes.set_xlim(-1.08 * reach, 1.08 * reach)


def _titles(figure: Figure, summary: Summary) -> None:
    figure.suptitle(
        f"What each loss changes relative to {summary.reference}: {summary.recipe['title']}",
        x=0.01,
        ha="left",
        fontsize=12,
        weight="bold",
    )
    figure.supxlabel(
        f"{summary.seeds} seeds, paired. Large dots: mean with 95 % interval; filled: a difference is shown after"
        " correction; small dots: seeds. Green side: better.",
        x=0.01,
        ha="left",
        fontsize=8,
        color=GREY,
    )
