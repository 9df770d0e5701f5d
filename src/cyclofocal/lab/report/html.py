"""Write a report as one self-contained HTML page: findings, tables, charts, mistakes, settings and commands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from cyclofocal.lab.records import CONFUSION_CLASSES
from cyclofocal.lab.report import charts, curves
from cyclofocal.lab.report.answer import answer, answer_over
from cyclofocal.lab.report.constructors import tuned_calls
from cyclofocal.lab.report.detections import box_strip, precision_recall_chart
from cyclofocal.lab.report.explanations import explanations
from cyclofocal.lab.report.findings import adjusted_conclusion, conclusions, ranking_conclusions
from cyclofocal.lab.report.mistakes import Mistakes, find_mistakes
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.result_tables import (
    adjusted_table,
    at_threshold,
    class_table,
    column_encoding,
    commands,
    confusion_table,
    environment,
    loss_settings,
    means_over,
    metric_table,
    overview_table,
    precision_table,
    primary_table,
    rank_table,
    recipe_settings,
    secondary_table,
    threshold_table,
)
from cyclofocal.lab.report.run_predictions import ExperimentPredictions, PredictionFiles, read_predictions
from cyclofocal.lab.report.summary import Summary
from cyclofocal.lab.report.table import Column, ReportTable, TableCell

MAX_WITH_PREDICTIONS = 12
"""Most experiments of a page whose predictions are read."""

MAX_AREAS = 6
"""Most losses whose areas are listed above a chart of curves; its text alternative has them all."""


class SampleSource(NamedTuple):
    """Files of predictions, and the data to show samples of.

    Attributes:
        files: files of predictions next to the records.
        root: folder of data sets.
        show_samples: False never shows an image or a row.
    """

    files: PredictionFiles
    root: Path = Path("data")
    show_samples: bool = True


@dataclass(frozen=True)
class Figure:
    """Picture and caption; without a picture, the reason as caption."""

    title: str
    svg: str
    caption: str


def page(
    summaries: Sequence[Summary],
    ranking: Ranking | None = None,
    problems: Sequence[str] = (),
    samples: SampleSource | None = None,
) -> str:
    """HTML of a page that needs no other file and no network.

    Args:
        summaries: at least one.
        ranking: ranks of the losses over the experiments.
        problems: problems with the files that were read.
        samples: predictions and data of the runs, for curves and mistakes; None leaves these out.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cyclofocal.lab.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = files("cyclofocal.lab.report") / "page"
    return environment.get_template("page.html").render(
        style=(parts / "page.css").read_text(encoding="utf-8"),
        script=(parts / "page.js").read_text(encoding="utf-8"),
        title=_title(summaries),
        experiments=[_experiment(summary) | _predicted(summary, samples, len(summaries)) for summary in summaries],
        means=means_over(summaries),
        overview=overview_table(summaries) if len(summaries) > 1 else None,
        ranking=None if ranking is None else _ranking(ranking),
        answer=answer_over(summaries, ranking) if len(summaries) > 1 else [],
        problems=problems,
    )


def _title(summaries: Sequence[Summary]) -> str:
    if len(summaries) == 1:
        return summaries[0].experiment.title
    return f"{len(summaries)} experiments"


def _experiment(summary: Summary) -> dict[str, Any]:
    titles, names = summary.experiment.titles, dict.fromkeys(row.name for row in summary.rows)
    return {
        "title": summary.experiment.title,
        "answer": answer(summary),
        "findings": _findings(summary),
        "tuned": tuned_calls(summary),
        "primary": primary_table(summary),
        "thresholds": threshold_table(summary),
        "secondary": secondary_table(summary),
        "adjusted": adjusted_table(summary),
        "legend": [(charts.css_class(summary, name), titles[name]) for name in names],
        "forests": [
            Figure(metric.title, charts.forest(summary, metric), metric_table(summary, metric).notes[0])
            for metric in summary.main_metrics
            if summary.reference
        ],
        "figures": _figures(summary),
        "reliability": [
            Figure(titles[name], charts.reliability_diagram(summary, name), "")
            for name in names
            if any(run.reliability for run in summary.experiment.runs[name])
        ],
        "confusion": [
            Figure(titles[name], charts.confusion_matrix(summary, name), "")
            for name in summary.experiment.confusion
            if len(summary.train_counts) <= charts.MAX_POINTS
        ],
        "confused": None if len(summary.train_counts) <= charts.MAX_POINTS else confusion_table(summary),
        "at_threshold": at_threshold(summary),
        "no_confusion": _no_confusion(summary),
        "classes": [table for table in (class_table(summary), precision_table(summary)) if table.rows],
        "columns": column_encoding(summary),
        "explanations": explanations(summary),
        "losses": loss_settings(summary),
        "recipe": recipe_settings(summary),
        "environment": environment(summary),
        "commands": commands(summary),
        "boxes": summary.experiment.boxes,
    }


def _no_confusion(summary: Summary) -> str:
    """Sentence on why there are no confusion matrices; "" if there are some."""
    if not summary.experiment.confusion:
        return f"not drawn; the records do not contain them, which new ones do up to {CONFUSION_CLASSES} classes"
    if (classes := len(summary.train_counts)) > charts.MAX_POINTS:
        return (
            f"not drawn for more than {charts.MAX_POINTS} classes, here {classes}; the most frequent confusions instead"
        )
    return ""


def _predicted(summary: Summary, source: SampleSource | None, n_experiments: int) -> dict[str, Any]:
    """Parts of an experiment that need predictions."""
    if n_experiments > MAX_WITH_PREDICTIONS:
        most = f"they are for pages of up to {MAX_WITH_PREDICTIONS} experiments, and this has {n_experiments}"
        found = ExperimentPredictions({}, missing=most)
    else:
        found = read_predictions(summary.experiment, source.files if source else None)
    root, show = (source.root, source.show_samples) if source else (Path(), False)
    mistakes = find_mistakes(summary.experiment, found, root, show)
    return {
        "strip": box_strip(summary, source.files if source else None, root, show) if summary.experiment.boxes else None,
        "without_predictions": found.missing,
        "prediction_notes": found.notes,
        "curves": _curves(summary, found) if found.runs else [],
        "mistakes": mistakes,
        "mistaken": [(name, summary.experiment.titles[name]) for name in found.runs],
        "row_values": _values_table(mistakes),
    }


def _curves(summary: Summary, found: ExperimentPredictions) -> list[Figure]:
    """ROC and precision-recall curves."""
    drawn, positive = curves.all_curves(summary, found), curves.positive_class(summary)
    of = f"each of {len(summary.train_counts)} classes against the others, averaged"
    if positive is not None:
        of = f"of class {summary.experiment.classes[positive]}, the rarer one"

    def caption(kind: str) -> str:
        areas = curves.areas(summary, [(name, getattr(of_loss, kind)) for name, of_loss in drawn.items()])
        return f"{of}; mean over seeds, band: 95 % t interval{f'. Area: {areas}' if len(drawn) <= MAX_AREAS else ''}"

    return [
        Figure("ROC", curves.roc_chart(summary, drawn), caption("roc")),
        Figure("Precision and recall", curves.precision_chart(summary, drawn, found), caption("precision")),
    ]


def _values_table(mistakes: Mistakes) -> ReportTable | None:
    """Values of the rows among the mistakes; None for images."""
    if not mistakes.columns:
        return None
    by_column = zip(*(found.values for found in mistakes.samples), strict=True)
    cells = [_value_cells(values) for values in by_column]
    columns = [Column("row", "text"), Column("true class", "text")]
    for name, values in zip(mistakes.columns, cells, strict=True):
        columns.append(Column(name, "text" if all(cell.key is None for cell in values) else "number"))
    rows = [
        [TableCell(found.name), TableCell(found.true), *values]
        for found, values in zip(mistakes.samples, zip(*cells, strict=True), strict=True)
    ]
    return ReportTable("Values of these rows", columns, rows)


def _value_cells(values: Sequence[str]) -> list[TableCell]:
    """Cells of a column, as numbers if all values are, but for missing ones."""
    numbers = [_as_number(value) for value in values]
    if any(value and number is None for value, number in zip(values, numbers, strict=True)):
        return [TableCell(value) for value in values]
    return [TableCell(value, key=number) for value, number in zip(values, numbers, strict=True)]


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _findings(summary: Summary) -> list[tuple[str, str, str]]:
    """CSS class, badge and sentence of each finding."""
    compared, sentences = summary.compared(summary.primary), conclusions(summary)
    adjusted = adjusted_conclusion(summary)
    return [
        *((found.direction, found.verdict, sentence) for found, sentence in zip(compared, sentences, strict=False)),
        *([("", "post-hoc adjusted", adjusted)] if adjusted else []),
    ]


def _figures(summary: Summary) -> list[Figure]:
    """Charts of curves, classes and schedules."""
    band, of_class = "mean over seeds, band: 95 % t interval", summary.experiment.of_class
    precision = (
        "Precision and recall",
        precision_recall_chart(summary) if summary.experiment.boxes else "",
        f"at an overlap of 0.5, mean over the classes; {band}",
        "the records do not contain the curves",
    )
    drawn = (
        *([precision] if summary.experiment.boxes else []),
        (
            "Learning curves",
            charts.learning_curves(summary),
            band,
            f"the records do not contain the {of_class} of each epoch",
        ),
        (
            f"{of_class.capitalize()} by class frequency",
            charts.class_accuracy(summary),
            band,
            f"the records do not contain the {of_class} of each class",
        ),
        (
            "Schedule of eta",
            charts.eta_schedule(summary),
            "1: the high-confidence loss, 0: the focal loss",
            "no loss has a schedule",
        ),
    )
    return [Figure(title, svg, caption if svg else why) for title, svg, caption, why in drawn]


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        "table": rank_table(ranking),
        "svg": charts.critical_difference_diagram(ranking) if ranking.enough else "",
        "findings": ranking_conclusions(ranking),
        "notes": ranking.notes,
    }
