"""Pictures of long-tailed and open-set runs: accuracy along the tail, and confidence of known and unknown images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from cyclofocal.lab.longtail import ShotGroups
from cyclofocal.lab.oltr.evaluation import Evaluation
from cyclofocal.lab.oltr.open_set_metrics import auroc, confidence
from cyclofocal.lab.report.figure import COLOURS, GREY, STYLE, save_figure
from cyclofocal.lab.training.predictions import Predictions

PALE = "#E2E2E2"
DOTS = 30
"""Largest number of classes with a dot each; more are averaged over neighbours in frequency."""

BESIDE = 0.5
"""Part of a class's width over which the dots of all titles are spread."""

HISTOGRAM_BINS = 25

Run = TypeVar("Run", Evaluation, Predictions)


def draw_classes(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Training images per class, from head to tail, and over them the accuracy of each class, a line per title.

    Runs of one title, such as the seeds of a loss, make one line, their mean. Where classes have dots, these stand side
    by side, with a bar from the least to the greatest run.

    Args:
        evaluations: of one training set, such as one per loss.
        path: ending in .png or .svg.

    Raises:
        ValueError: training sets that differ.
    """
    counts, groups = np.array(evaluations[0].train_counts), evaluations[0].groups
    if any(evaluation.train_counts != evaluations[0].train_counts for evaluation in evaluations):
        raise ValueError("the runs have different training images per class; draw them one by one")
    order = np.argsort(-counts, kind="stable")
    with matplotlib.rc_context(STYLE):
        figure = _figure(8.5, 4.2)
        frequency = figure.subplots()
        accuracy = frequency.twinx()
        places = np.arange(len(counts))
        frequency.bar(places, counts[order], width=1.0 if len(counts) > DOTS else 0.86, color=PALE, linewidth=0)
        titles = _by_title(evaluations)
        for index, (title, runs) in enumerate(titles.items()):
            recall = 100 * np.array([run.recall for run in runs])[:, order]
            aside = BESIDE * ((index + 0.5) / len(titles) - 0.5)
            _accuracy(accuracy, recall, title, COLOURS[index % len(COLOURS)], aside)
        _dress(frequency, accuracy, len(counts))
        _shots(accuracy, counts[order], groups)
        note = f"Shot groups, {groups}."
        if len(counts) <= DOTS and len(titles) < len(evaluations):
            note += "\nDots: means of the runs of one title; bars: from the least run to the greatest."
        if len(counts) > DOTS:
            note += f"\nLines: means of neighbours among the {len(counts)} classes; small dots: the classes."
        _words(figure, "Accuracy from the head to the tail", note)
        _save(figure, path)


def draw_confidence(runs: Sequence[Predictions], path: Path, threshold: float | None = None) -> None:
    """Histograms of the confidence of known and unknown test images, a panel per title.

    Runs of one title, such as the seeds of a loss, are in one panel, with the mean of their AUROC.

    Args:
        runs: with known and unknown images.
        path: ending in .png or .svg.
        threshold: drawn as a line; None: none.

    Raises:
        ValueError: a run without unknown images.
    """
    for run in runs:
        if run.known.all():
            raise ValueError(f"{run.title} has no unknown images; there is nothing to separate")
    with matplotlib.rc_context(STYLE):
        titles = _by_title(runs)
        columns = 2 if len(titles) == 4 else min(3, len(titles))
        lines = -(-len(titles) // columns)
        figure = _figure(3.4 * max(columns, 2), 0.9 + 2.3 * lines)
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for panel, (title, same) in zip(axes.flat, titles.items(), strict=False):
            _histograms(panel, same, title, threshold)
        for panel in axes.flat[len(titles) :]:
            panel.set_visible(False)
        for panel in axes[:, 0]:
            panel.set_ylabel("% of images", fontsize=8, color=GREY)
        handles, names = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, frameon=False, fontsize=8, loc="upper right", ncols=2)
        note = "Largest softmax probability; each histogram is normalised by itself."
        if len(titles) < len(runs):
            note += "\nRuns of one title are in one panel, with the mean of their AUROC."
        if threshold is not None:
            note += f"\nDashed: the threshold, {threshold:g}; below it an image is rejected."
        _words(figure, "Confidence, known and unknown images", note)
        _save(figure, path)


def _accuracy(axes: Any, runs: NDArray[np.float64], title: str, colour: str, aside: float) -> None:
    percent = runs.mean(0)
    places = np.arange(len(percent))
    if len(percent) <= DOTS:
        axes.plot(places + aside, percent, color=colour, linewidth=0.8, alpha=0.5)
        axes.vlines(places + aside, runs.min(0), runs.max(0), color=colour, linewidth=1.2)
        axes.plot(places + aside, percent, color=colour, linewidth=0, marker="o", markersize=5, label=title)
        return
    edges = np.linspace(0, len(percent), DOTS + 1).round().astype(int)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    means = np.add.reduceat(percent, edges[:-1]) / np.diff(edges)
    axes.scatter(places, percent, s=3, color=colour, alpha=0.22, linewidth=0)
    axes.plot(middles, means, color=colour, linewidth=1.8, label=title)


def _dress(frequency: Any, accuracy: Any, classes: int) -> None:
    frequency.set_yscale("log")
    frequency.set_ylabel("training images per class (log axis, bars)", fontsize=8, color=GREY)
    frequency.yaxis.set_label_position("right")
    frequency.yaxis.tick_right()
    frequency.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    frequency.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    frequency.yaxis.set_minor_locator(NullLocator())
    frequency.tick_params(axis="y", colors=GREY)
    frequency.set_xlabel("classes, from the most frequent to the rarest", fontsize=8, color=GREY)
    frequency.set_xlim(-0.6, classes - 0.4)
    accuracy.set_ylim(0, 102)
    accuracy.set_ylabel("accuracy, %")
    accuracy.yaxis.set_label_position("left")
    accuracy.yaxis.tick_left()
    accuracy.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2)
    for axes in (frequency, accuracy):
        axes.spines["top"].set_visible(False)


def _shots(axes: Any, counts: NDArray[np.integer], groups: ShotGroups) -> None:
    """Names of the shot groups above their classes, and lines between them; ``counts`` fall."""
    for name, members in groups.classes_of(counts.tolist()).items():
        if members:
            axes.text((members[0] + members[-1]) / 2, 3, name, ha="center", fontsize=8, color=GREY)
            if members[0] > 0:
                axes.axvline(members[0] - 0.5, color=GREY, linewidth=0.7, linestyle=":")


def _histograms(axes: Any, runs: Sequence[Predictions], title: str, threshold: float | None) -> None:
    confidences = [confidence(run.logits) for run in runs]
    separation = np.mean([auroc(sure, run.known) for sure, run in zip(confidences, runs, strict=True)])
    sure, known = np.concatenate(confidences), np.concatenate([run.known for run in runs])
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    for kind, colour, members in (("known", COLOURS[0], known), ("unknown", COLOURS[1], ~known)):
        share = 100 * np.histogram(sure[members], edges)[0] / members.sum()
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(share, edges, color=colour, linewidth=1.4, label=kind)
    if threshold is not None:
        axes.axvline(threshold, color=GREY, linewidth=0.9, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_title(f"{title}   (AUROC {100 * separation:.1f} %)", loc="left", fontsize=9, weight="bold")
    axes.tick_params(labelbottom=True)
    axes.spines[["top", "right"]].set_visible(False)


def _by_title(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.title, []).append(run)
    return found


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.03)
    return Figure(figsize=(width, height), layout=layout)


def _words(figure: Figure, title: str, note: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=GREY)


def _save(figure: Figure, path: Path) -> None:
    save_figure(figure, path)
