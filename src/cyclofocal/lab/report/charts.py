"""Draw charts of a summary as SVG in the colours of the page; "" if the records lack the data."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.metrics import Array, Metric
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.experiment import by_run
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.statistics import half_width
from cyclofocal.lab.report.summary import PairedComparison, Summary
from cyclofocal.lab.report.svg import AxisScale, band, dot, line, picture, rectangle, text, x_axis, y_axis
from cyclofocal.lab.report.wording import format_count, format_interval, format_value

WIDTH, HEIGHT = 360, 236
WIDE_CHART = 440  # width of a chart with names of losses above its lines
LEFT, RIGHT, TOP, BOTTOM = 40, 350, 28, 194
"""Frame of a chart with two axes, in pixels."""

HUES = 8
"""Number of colours and dash patterns in the style sheet; further losses repeat them."""

LONGEST_LABEL = 56
"""Most characters of a name in a forest plot, whose width they fill."""

MAX_NUMBERED = 12
"""Largest number of classes of a confusion matrix with numbers in its cells."""

MAX_POINTS = 30
"""Largest number of classes drawn one by one; more are averaged in 20 groups of similar frequency."""


Lines = dict[str, tuple[Array, Array, Array]]
"""x, mean and half the width of the band, by loss."""


def css_class(summary: Summary, name: str) -> str:
    """CSS class of a loss; the reference has the colour of the text."""
    return f"hue{list(summary.experiment.runs).index(name) % HUES}" if _is_compared(summary, name) else "reference"


def _is_compared(summary: Summary, name: str) -> bool:
    return summary.reference != summary.experiment.titles[name]


def forest(summary: Summary, metric: Metric) -> str:
    """Forest plot of paired differences in one metric: means, intervals, and seeds as small dots."""
    compared = summary.compared(metric)
    if not compared:
        return ""
    half = _axis_limit(compared)
    bottom = 10 + 38 * len(compared)
    scale = AxisScale(-half, half, 12, WIDTH - 12)
    start, end = (scale(0), scale.end) if metric.higher_is_better else (scale.start, scale(0))
    parts = []
    for place, comparison in enumerate(compared):
        y = 22 + 38 * place
        parts.append(rectangle(start, y - 2, end - start, 21, "good"))
        parts.append(line([(scale(0), y - 2), (scale(0), y + 19)], "axis"))
        parts.append(_forest_row(summary, comparison, scale, y))
    unit = f", {metric.unit_of_difference}" if metric.unit_of_difference else ""
    parts.append(x_axis(scale, bottom, f"difference to {summary.reference}{unit}"))
    description = "; ".join(map(_describe, compared))
    return picture(WIDTH, bottom + 38, parts, f"{metric.title}: difference to {summary.reference}", description)


def _axis_limit(compared: Sequence[PairedComparison]) -> float:
    """Limit of an axis that is symmetric about 0."""
    ends = [end for found in compared for end in (*found.per_seed, *(found.estimate.interval or ()))]
    return 1.06 * max(map(abs, ends)) or 1.0


def _forest_row(summary: Summary, comparison: PairedComparison, scale: AxisScale, y: float) -> str:
    value, css = comparison.estimate, css_class(summary, comparison.name)
    parts = [text(14, y - 6, shortened(comparison.loss, LONGEST_LABEL), "name")]
    parts += [dot(scale(seed), y + 13, 1.8, f"seed {css}") for seed in comparison.per_seed]
    if value.interval:
        parts.append(line([(scale(bound), y + 4) for bound in value.interval], f"interval {css}"))
    kind = "significant" if comparison.direction else "open"
    parts.append(dot(scale(value.mean), y + 4, 4.5, f"{kind} {css}"))
    return "".join(parts)


def _describe(comparison: PairedComparison) -> str:
    value, metric = comparison.estimate, comparison.metric
    size = f"{format_value(value.mean, metric, sign=True)} {format_interval(value, metric, sign=True)}".rstrip()
    return f"{comparison.loss} {size}, {comparison.verdict}"


def learning_curves(summary: Summary) -> str:
    """Learning curves: mean accuracy over seeds by epoch, with a 95 % t interval.

    Validation accuracy is preferred, and balanced accuracy unless plain accuracy is the primary metric.
    """
    key, label = _stored_accuracy(summary)
    found = {name: by_run(members, _epochs(key)) for name, members in summary.experiment.runs.items()}
    curves = {name: 100 * runs for name, runs in found.items() if runs.size}
    if not curves:
        return ""
    bands = {name: (runs.mean(0), half_width(runs, summary.experiment.overlap)) for name, runs in curves.items()}
    ends = [end for mean, half in bands.values() for end in (*(mean - half), *(mean + half))]
    return line_chart(
        summary,
        {name: (np.arange(1, mean.size + 1.0), mean, half) for name, (mean, half) in bands.items()},
        (max(0.0, min(ends)), min(100.0, max(ends))),
        ("epoch", label),
        "Learning curves",
    )


def _stored_accuracy(summary: Summary) -> tuple[str, str]:
    """Key and label of the best accuracy that all runs have by epoch."""
    runs = [run for members in summary.experiment.runs.values() for run in members]
    plain = ("validation_accuracy", "validation accuracy, %")
    balanced = ("validation_balanced_accuracy", "balanced validation accuracy, %")
    boxes = ("validation_ap", "validation AP, %")
    for key, label in (boxes, plain, balanced) if summary.primary.key == "accuracy" else (boxes, balanced, plain):
        if all(run.epochs and key in run.epochs[-1] for run in runs):
            return key, label
    return "train_accuracy", "training accuracy, %"


def eta_schedule(summary: Summary) -> str:
    """Mixing weight eta by epoch, for losses that have one."""
    found = {name: by_run(members[:1], _epochs("eta")) for name, members in summary.experiment.runs.items()}
    lines: Lines = {
        name: (np.arange(1, seeds.shape[1] + 1.0), seeds[0], np.zeros(seeds.shape[1]))
        for name, seeds in found.items()
        if seeds.size
    }
    return line_chart(summary, lines, (0.0, 1.0), ("epoch", "eta"), "Schedule of eta") if lines else ""


def class_accuracy(summary: Summary) -> str:
    """Accuracy of each class over its training samples, on a logarithmic axis if they differ by over 10 times."""
    found = summary.experiment.class_accuracy
    if not found:
        return ""
    counts = np.asarray(summary.train_counts, dtype=np.float64)
    groups = _groups(counts)
    frequency = np.array([counts[group].mean() for group in groups])
    of_class, samples = summary.experiment.of_class, "boxes" if summary.experiment.boxes else "samples"
    label = f"training {samples} of the class"
    if np.ptp(counts) == 0:
        frequency, label = np.arange(len(groups), dtype=np.float64), f"class ({counts[0]:.0f} training {samples} each)"
    lines = {}
    for name, runs in found.items():
        grouped = np.stack([runs[:, group].mean(1) for group in groups], axis=1)
        lines[name] = (frequency, grouped.mean(0), half_width(grouped, summary.experiment.overlap))
    return line_chart(
        summary, lines, (0.0, 100.0), (label, f"{of_class}, %"), f"{of_class.capitalize()} by class frequency"
    )


def _groups(counts: Array) -> list[NDArray[np.intp]]:
    order = np.argsort(counts, kind="stable")
    return np.array_split(order, len(order) if len(order) <= MAX_POINTS else 20)


def reliability_diagram(summary: Summary, name: str) -> str:
    """Reliability diagram of one loss: accuracy over confidence, seeds and folds pooled."""
    runs = [run for run in summary.experiment.runs[name] if run.reliability]
    if not runs:
        return ""
    bins = np.sum([run.reliability for run in runs], axis=0)
    total, gap = bins[:, 0].sum(), float(np.abs(bins[:, 1] - bins[:, 2]).sum())
    size, start, end = 200, 34, 192
    x, y = AxisScale(0, 1, start, end), AxisScale(0, 1, end - 18, 22)
    parts = [x_axis(x, y(0), "confidence", most=5), y_axis(y, start, "accuracy", end)]
    parts.append(line([(x(0), y(0)), (x(1), y(1))], "diagonal"))
    css = css_class(summary, name)
    width = (end - start) / len(bins)
    for index, (samples, confidence, right) in enumerate(bins.tolist()):
        if samples:
            top = y(right / samples)
            parts.append(rectangle(start + width * index + 0.5, top, width - 1, y(0) - top, f"bar {css}"))
            parts.append(dot(x(confidence / samples), top, 1.2 + 3 * (samples / total) ** 0.5, f"significant {css}"))
    description = f"pooled calibration error {100 * gap / total:.1f} %"
    return picture(size, size + 8, parts, f"Reliability diagram of {summary.experiment.titles[name]}", description)


def confusion_matrix(summary: Summary, name: str) -> str:
    """Confusion matrix of one loss, true classes down and predicted ones across."""
    matrix = summary.experiment.confusion[name]
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names, count = summary.experiment.classes, len(matrix)
    left, size = 74, (WIDTH - 80) / count
    parts = []
    for row in range(count):
        y = 8 + size * row
        parts.append(text(left - 4, y + size / 2 + 3, short_name(names[row]), "name", "end"))
        for column in range(count):
            x, value = left + size * column, matrix[row, column]
            parts.append(rectangle(x, y, size - 1, size - 1, "cell", 0.04 + 0.76 * share[row, column]))
            if value and count <= MAX_NUMBERED:
                parts.append(text(x + size / 2, y + size / 2 + 3, format_count(value), "", "middle"))
    parts.append(
        text(left + size * count / 2, 24 + size * count, "predicted class, in the order of the rows", "", "middle")
    )
    right = f"{100 * np.trace(matrix) / matrix.sum():.1f} % on the diagonal"
    wrong = np.where(np.eye(count, dtype=bool), 0, matrix)
    if most := wrong.max():
        true, predicted = (int(place) for place in np.unravel_index(wrong.argmax(), wrong.shape))
        right += f"; most often wrong: {names[true]} as {names[predicted]}, {format_count(most)} samples"
    title = f"Confusion matrix of {summary.experiment.titles[name]}"
    return picture(WIDTH, round(size * count) + 34, parts, title, right)


def short_name(name: str) -> str:
    """Name of a class, cut to 12 characters."""
    return shortened(name, 12)


def shortened(name: str, most: int) -> str:
    """Name, cut to ``most`` characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def critical_difference_diagram(ranking: Ranking) -> str:
    """Mean ranks with half the critical difference on either side; overlapping bars do not differ significantly."""
    losses, half = list(ranking.ranks.items()), ranking.critical_difference / 2
    bottom = 12 + 34 * len(losses)
    scale = AxisScale(1 - half, len(losses) + half, 14, WIDE_CHART - 14)
    parts = []
    for place, (loss, rank) in enumerate(losses):
        y = 26 + 34 * place
        bar = [(scale(rank - half), y + 5), (scale(rank + half), y + 5)]
        parts += [text(14, y - 5, f"{rank:.2f} {loss}", "name"), line(bar, "interval reference")]
        parts.append(dot(scale(rank), y + 5, 4.5, "significant reference"))
    parts.append(x_axis(scale, bottom, "mean rank"))
    values = ", ".join(f"{loss} {rank:.2f}" for loss, rank in losses)
    description = f"{values}; critical difference {ranking.critical_difference:.2f}"
    return picture(WIDE_CHART, bottom + 38, parts, "Mean ranks with critical difference", description)


def line_chart(
    summary: Summary,
    lines: Lines,
    bounds: tuple[float, float],
    labels: tuple[str, str],
    title: str,
    *,
    across: tuple[float, float] | None = None,
    chance: tuple[float, float] | None = None,
    description: str = "",
) -> str:
    """Chart of a line with a band for each loss.

    Args:
        summary: decides colours and names.
        lines: at least one.
        bounds: smallest and largest value of the vertical axis.
        labels: of the horizontal and the vertical axis.
        title: first words of the text alternative.
        across: ends of the horizontal axis; default: those of the lines, logarithmic if they differ by over 10 times.
        chance: height of a dotted line at the ends of the horizontal axis.
        description: text alternative; default: the last value of each line.
    """
    every = np.concatenate([x for x, _, _ in lines.values()])
    low, high = across or (float(every.min()), float(every.max()))
    x = AxisScale(low, high, LEFT, RIGHT - 8, log=high > 10 * low > 0 and labels[0] != "epoch")
    room = 0.04 * (bounds[1] - bounds[0]) or 1.0
    y = AxisScale(bounds[0] - room * (bounds[0] > 0), bounds[1] + room * (bounds[1] not in (1.0, 100.0)), BOTTOM, TOP)
    parts = [x_axis(x, BOTTOM, labels[0]), y_axis(y, LEFT, labels[1], RIGHT)]
    if chance:
        parts.append(line([(x(low), y(chance[0])), (x(high), y(chance[1]))], "diagonal"))
    for name, (xs, mean, half) in lines.items():
        css, order = css_class(summary, name), np.argsort(xs, kind="stable")
        horizontal = [x(value) for value in xs[order].tolist()]
        middle, lower, upper = (
            [*zip(horizontal, map(y, np.clip(values[order], y.low, y.high).tolist()), strict=True)]
            for values in (mean, mean - half, mean + half)
        )
        if half.any():
            parts.append(band(lower, upper, f"band {css}"))
        parts.append(line(middle, f"line {css}"))
        if len(order) <= MAX_POINTS and labels[0] != "epoch":
            parts += [dot(*point, 2.2, f"significant {css}") for point in middle]
    ends = "; ".join(f"{summary.experiment.titles[n]} ends at {mean[-1]:.3g}" for n, (_, mean, _) in lines.items())
    return picture(WIDTH, HEIGHT, parts, title, f"{labels[1]} over {labels[0]}. {description or ends}")


def _epochs(key: str) -> Callable[[RunRecord], list[float]]:
    def values(run: RunRecord) -> list[float]:
        rows = [row.get(key) for row in run.epochs]
        return [] if any(value is None for value in rows) else [float(value) for value in rows if value is not None]

    return values
