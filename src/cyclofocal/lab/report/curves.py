"""ROC and precision-recall curves of the losses, averaged over runs, and their charts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.longtail import rarer_class
from cyclofocal.lab.metrics import Array, log_softmax, positives_by_threshold
from cyclofocal.lab.report.charts import Lines, line_chart
from cyclofocal.lab.report.run_predictions import ExperimentPredictions
from cyclofocal.lab.report.statistics import half_width
from cyclofocal.lab.report.summary import Summary
from cyclofocal.lab.training.predictions import Predictions

STRIPS = 100
"""Points of a drawn curve: its mean height in strips of equal width, so that its area is exact."""


class Curves(NamedTuple):
    """Curves of one loss, each (runs, STRIPS), as fractions."""

    roc: Array
    precision: Array


def strip_means(x: Array, y: Array) -> Array:
    """Mean height of a piecewise linear curve over [0, 1] in each of :data:`STRIPS` strips, (STRIPS,).

    Args:
        x: (N,), from 0 to 1, not falling; a repeated value is a vertical step.
        y: (N,).

    Example:
        >>> float(strip_means(np.array([0.0, 0.5, 0.5, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])).mean())
        0.5
    """
    area = np.append(0.0, np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2))
    edges = np.linspace(0, 1, STRIPS + 1)
    start = np.clip(np.searchsorted(x, edges, side="right") - 1, 0, len(x) - 2)
    width = x[start + 1] - x[start]
    share = np.divide(edges - x[start], width, out=np.zeros(STRIPS + 1), where=width > 0)
    height = y[start] + share * (y[start + 1] - y[start])
    return np.diff(area[start] + (edges - x[start]) * (y[start] + height) / 2) * STRIPS


def curves_of_class(score: Array, positive: NDArray[np.bool_]) -> tuple[Array, Array]:
    """ROC curve and precision-recall curve of one class in strips; their means are AUROC and average precision.

    Args:
        score: (N,).
        positive: (N,), True for samples of the class, of which there must be some, as of the others.
    """
    right, wrong = positives_by_threshold(score, positive)
    recall = np.append(0.0, right / right[-1])
    roc = strip_means(np.append(0.0, wrong / wrong[-1]), recall)
    steps = np.repeat(recall, 2)[1:-1]
    return roc, strip_means(steps, np.repeat(right / (right + wrong), 2))


def mean_curves(predictions: Predictions, positive: int | None) -> tuple[Array, Array]:
    """Curves of the class ``positive``; None averages those of all classes, each against the others."""
    p = np.exp(log_softmax(predictions.logits.astype(np.float64)))
    classes = np.unique(predictions.target).tolist() if positive is None else [positive]
    found = np.array([curves_of_class(p[:, c], predictions.target == c) for c in classes])
    return found[:, 0].mean(0), found[:, 1].mean(0)


def positive_class(summary: Summary) -> int | None:
    """The rarer of two classes, None for more."""
    return rarer_class(summary.train_counts) if len(summary.train_counts) == 2 else None


def all_curves(summary: Summary, found: ExperimentPredictions) -> dict[str, Curves]:
    """Curves of every loss with predictions."""
    positive = positive_class(summary)
    return {
        name: Curves(*map(np.stack, zip(*(mean_curves(run, positive) for run in runs), strict=True)))
        for name, runs in found.runs.items()
    }


def roc_chart(summary: Summary, curves: dict[str, Curves]) -> str:
    """ROC curves: mean over runs, with a 95 % t interval; the diagonal is chance."""
    lines = _lines(summary, {name: found.roc for name, found in curves.items()})
    labels = "false-positive rate, %", "true-positive rate (recall), %"
    return curve_chart(summary, lines, labels, "ROC curves", (0.0, 100.0))


def precision_chart(summary: Summary, curves: dict[str, Curves], found: ExperimentPredictions) -> str:
    """Precision-recall curves: mean over runs, with a 95 % t interval; the flat line is chance."""
    lines = _lines(summary, {name: of_loss.precision for name, of_loss in curves.items()})
    positive = positive_class(summary)
    runs = next(iter(found.runs.values()))
    shares = [
        1 / len(np.unique(run.target)) if positive is None else float(np.mean(run.target == positive)) for run in runs
    ]
    chance = 100 * float(np.mean(shares))
    return curve_chart(summary, lines, ("recall, %", "precision, %"), "Precision-recall curves", (chance, chance))


def areas(summary: Summary, curves: Sequence[tuple[str, Array]]) -> str:
    """Mean area under the curves of each loss, in words."""
    return ", ".join(f"{summary.experiment.titles[name]} {100 * found.mean():.1f}\u00a0%" for name, found in curves)


def _lines(summary: Summary, curves: dict[str, Array]) -> Lines:
    x = 100 * (np.arange(STRIPS) + 0.5) / STRIPS
    overlap = summary.experiment.overlap
    return {name: (x, 100 * found.mean(0), half_width(100 * found, overlap)) for name, found in curves.items()}


def curve_chart(
    summary: Summary, lines: Lines, labels: tuple[str, str], title: str, chance: tuple[float, float] | None = None
) -> str:
    """Draw percentages over percentages, with a line of chance; the description gives the area under each curve."""
    titles = summary.experiment.titles
    description = "; ".join(f"{titles[name]}: area {mean.mean():.1f} %" for name, (_, mean, _) in lines.items())
    return line_chart(
        summary, lines, (0.0, 100.0), labels, title, across=(0.0, 100.0), chance=chance, description=description
    )
