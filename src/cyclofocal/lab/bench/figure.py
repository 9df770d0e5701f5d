"""Figure of a benchmark: time of each loss relative to torch's loss of its family, one panel per shape."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cyclofocal.lab.bench.candidates import REFERENCES
from cyclofocal.lab.bench.record import Measurement
from cyclofocal.lab.bench.tables import overall, significant
from cyclofocal.lab.report.figure import COLOURS, GREY, STYLE, save_figure

OTHERS = "#B4B4B4"


def draw_speed(records: Sequence[Measurement], path: Path) -> None:
    """Draw the setting of the first record, as PNG or SVG by the suffix of ``path``."""
    setting = records[0].setting
    records = [record for record in records if record.setting == setting and record.family != "layer"]
    losses = list(overall([record for record in records if record.family == "softmax"]))
    losses += ["", *overall([record for record in records if record.family == "sigmoid"])]
    shapes = list(dict.fromkeys(record.shape_title for record in records))
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(shapes))
        rows = -(-len(shapes) // columns)
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08, wspace=0.02, hspace=0.04)
        figure = Figure(figsize=(3.4 * columns + 2, 1.1 + rows * (0.7 + 0.21 * len(losses))), layout=layout)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for panel, shape in zip(axes.flat, shapes, strict=False):
            _panel(panel, shape, [record for record in records if record.shape_title == shape], losses)
        for panel in axes.flat[len(shapes) :]:
            panel.set_visible(False)
        _limits(axes.flat[0], records)
        figure.suptitle("Forward + backward of each loss", x=0.01, ha="left", fontsize=12, weight="bold")
        figure.supxlabel(
            f"Time relative to torch's cross_entropy, of sigmoid losses (below) to torch's BCE with logits; log axis:"
            f" to the left faster. Line: 20 to 80 % of rounds."
            f"\n{setting}; torch {records[0].versions['torch']}.",
            x=0.01,
            ha="left",
            fontsize=8,
            color=GREY,
        )
        save_figure(figure, path)


def _panel(axes: Any, shape: str, records: Sequence[Measurement], losses: Sequence[str]) -> None:
    found = {record.loss: record for record in records}
    axes.set_xscale("log")
    for y, loss in enumerate(losses):
        if loss:
            _bar(axes, y, found.get(loss))
    axes.axvline(1, color="black", linewidth=0.9, zorder=4)
    axes.set_yticks(range(len(losses)), losses)
    for label, loss in zip(axes.get_yticklabels(), losses, strict=False):  # inner panels have no labels
        label.set_weight("bold" if loss.startswith("cyclofocal") else "normal")
    axes.set_ylim(len(losses) - 0.4, -0.6)
    axes.set_title(shape, loc="left", fontsize=9, weight="bold")
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)


def _bar(axes: Any, y: int, record: Measurement | None) -> None:
    if record is None or record.ratio is None:
        axes.text(1.06, y, "not measured", va="center", fontsize=7, color=GREY, style="italic")
        return
    low, middle, high = record.ratio
    if record.loss in REFERENCES.values():
        assert record.milliseconds is not None
        axes.text(1.06, y, f"1 = {significant(record.milliseconds[1], 3)} ms", va="center", fontsize=7.5)
        return
    colour = COLOURS[0] if record.is_cyclofocal else OTHERS
    axes.barh(y, middle - 1, left=1, height=0.68, color=colour, linewidth=0, zorder=2)
    axes.plot([low, high], [y, y], color="black", linewidth=0.9, zorder=3)
    faster = middle < 1
    axes.annotate(
        significant(middle, 2),
        (min(low, middle) if faster else max(high, middle), y),
        xytext=(-3 if faster else 3, 0),
        textcoords="offset points",
        ha="right" if faster else "left",
        va="center",
        fontsize=7.5,
        weight="bold" if record.is_cyclofocal else "normal",
    )


def _limits(axes: Any, records: Sequence[Measurement]) -> None:
    """Leave space for the numbers next to the longest bars; put ticks at 1, 3, 10, ... and their inverses."""
    ends = [end for record in records if record.ratio for end in record.ratio]
    low, high = min(*ends, 0.5), max(*ends, 2.0)
    axes.set_xlim(low / (high / low) ** 0.13, high * (high / low) ** 0.13)
    ticks = [factor * 10.0**power for power in range(-4, 6) for factor in (1, 3)]
    shown = [tick for tick in ticks if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.xaxis.set_major_locator(FixedLocator(shown if len(shown) < 8 else [t for t in shown if f"{t:e}"[0] == "1"]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
