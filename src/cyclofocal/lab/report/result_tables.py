"""Build the tables of a report: results, means, classes, ranks, settings and environment."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from cyclofocal.lab.metrics import THRESHOLDS, Metric, metrics_of
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.experiment import LOSS_DEFAULTS, RECIPE_DEFAULTS, uses
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.statistics import Estimate
from cyclofocal.lab.report.summary import LossResult, PairedComparison, Summary, common_primary
from cyclofocal.lab.report.table import NONE, Column, ReportTable, TableCell
from cyclofocal.lab.report.wording import format_count, format_effect, format_interval, format_p, format_value

RESULT_COLUMNS = (
    Column("loss", "text"),
    Column("mean [95 % CI]"),
    Column("difference [95 % CI]"),
    Column("effect"),
    Column("p"),
    Column("verdict", "text"),
)

CSV_COLUMNS = (
    *("experiment", "recipe", "metric", "class", "role", "unit", "loss", "title", "seeds", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high", "pairs", "p", "corrected_p", "comparisons", "verdict"),
    *("seeds_needed", "epoch_time", "effect", "margin", "equivalence_p", "predicted"),
)
"""Columns of :func:`long_table`: means and intervals in ``unit``, times relative to the reference.

The role is "primary" or "secondary", or "reference" in any metric; "adjusted" of logits less the class prior, and
"against adjusted" of a loss compared with them in the primary metric; "class" of an accuracy of one class, and
"confusion" of the number of test samples of a class taken for another (``predicted``), both described only, without
cells of 0.
"""

APART = "references, not losses"
"""Heading of the rows of models that were fitted in place of a network."""

RANK_HEADINGS = ("mean rank", "wins", "ties", "losses", "significantly better", "significantly worse")
MOST_CONFUSED = 12  # pairs of classes
ALWAYS_LISTED = ("gamma_pos", "gamma_neg", "gamma_hc", "cyclical_factor", "label_smoothing")
NOT_SETTINGS = ("name", "title", "file", "digest", "estimator")


def metric_table(summary: Summary, metric: Metric) -> ReportTable:
    """Results of every loss in one metric, and of the references apart.

    In the primary metric also those of post-hoc adjusted cross-entropy.
    """
    notes = [f"{'higher' if metric.higher_is_better else 'lower'} is better"]
    if metric == summary.primary:
        notes.append("primary metric")
    adjusted = _adjusted_rows(summary, metric) if metric == summary.primary else []
    rows = [*summary.of_metric(metric), *adjusted]
    apart = [_result_cells(row) for row in summary.references if row.metric == metric]
    return ReportTable(metric.heading, RESULT_COLUMNS, [_result_cells(row) for row in rows], notes, apart, APART)


def _adjusted_rows(summary: Summary, metric: Metric) -> list[LossResult]:
    return [row for row in summary.adjusted if row.metric == metric]


def result_tables(summary: Summary) -> list[ReportTable]:
    """:func:`metric_table` of every metric but further ones, the primary one first."""
    return [metric_table(summary, metric) for metric in summary.main_metrics]


def adjusted_table(summary: Summary) -> ReportTable:
    """Results of the losses in the primary metric, compared with post-hoc adjusted cross-entropy; may have no rows."""
    rows = [*_adjusted_rows(summary, summary.primary), *summary.against_adjusted]
    own = summary.adjusted[0].loss if summary.adjusted else ""
    title = f"{summary.primary.heading} (differences to {own})"
    return ReportTable(title, RESULT_COLUMNS, [_result_cells(row) for row in rows] if summary.against_adjusted else [])


def primary_table(summary: Summary) -> ReportTable:
    """Results of every loss in the primary metric, and the relative time of an epoch."""
    table = metric_table(summary, summary.primary)
    times = [summary.time.get(row.name) for row in summary.of_metric(summary.primary)]
    times += [None] * (len(table.rows) - len(times))
    rows = [[*row, _time_cell(time)] for row, time in zip(table.rows, times, strict=True)]
    comparison = [f"differences to {summary.reference}"] if summary.reference else []
    title = f"{table.title} ({'; '.join([*reversed(table.notes), *comparison])})"
    apart = [[*row, NONE] for row in table.apart]
    return ReportTable(title, [*table.columns, Column("epoch time")], rows, apart=apart, apart_heading=APART)


def secondary_table(summary: Summary) -> ReportTable:
    """Results of every loss in all other metrics."""
    metrics = [metric for metric in summary.metrics if metric != summary.primary]
    rows = [row for m in metrics for row in (*summary.of_metric(m), *_adjusted_rows(summary, m))]
    others = [row for m in metrics for row in summary.references if row.metric == m]
    cells, apart = ([[TableCell(r.metric.heading), *_result_cells(r)] for r in part] for part in (rows, others))
    title = "Secondary metrics, p corrected over all of them together"
    if summary.comparisons(further=True):
        title = "Secondary metrics, p corrected over all up to ECE together, and over all others together"
    return ReportTable(title, [Column("metric", "text"), *RESULT_COLUMNS], cells, (), apart, APART)


def means_table(summary: Summary) -> ReportTable:
    """Means of every loss and reference in every metric but further ones, and the relative time of an epoch."""
    time = [Column("time")] if summary.time else []
    columns = [Column("loss", "text"), *(Column(metric.heading) for metric in summary.main_metrics), *time]

    def cells(results: Sequence[LossResult]) -> list[list[TableCell]]:
        found = {(row.name, row.metric): row for row in results}
        rows = []
        for name, title in {row.name: row.loss for row in results}.items():
            means = [_mean_cell(found.get((name, metric))) for metric in summary.main_metrics]
            rows.append([TableCell(title), *means, *[_time_cell(summary.time.get(name)) for _ in time]])
        return rows

    return ReportTable(summary.experiment.title, columns, cells(summary.rows), (), cells(summary.references), APART)


def threshold_table(summary: Summary) -> ReportTable:
    """Means of the rarer of two classes at 0.5, with those at chosen thresholds in brackets; no rows without these."""
    metrics = {metric.key: metric for metric in summary.metrics}
    tuned = {key: metrics[f"tuned_{name}"] for name, key in THRESHOLDS.items() if f"tuned_{name}" in metrics}
    shown = [metrics[key] for key in ("rare_ap", "rare_recall", "rare_precision", *tuned) if key in metrics]
    headings = [f"{metric.heading}{' (tuned)' if metric.key in tuned else ''}" for metric in shown]
    means = {(row.name, row.metric): _mean_cell(row) for row in summary.rows}
    rows = [
        [TableCell(title), *(_with_tuned(means, name, metric, tuned.get(metric.key)) for metric in shown)]
        for name, title in {row.name: row.loss for row in summary.rows if tuned}.items()
    ]
    return ReportTable("Means at 0.5 (tuned: at thresholds chosen on validation data)", _loss_and(headings), rows)


def means_over(summaries: Sequence[Summary]) -> ReportTable:
    """Means over all experiments of two classes, of every loss and reference that all of them have; no rows for one.

    Metrics at 0.5 are followed by those at the chosen threshold in brackets.
    """
    binary = [summary for summary in summaries if summary.experiment.rarer]
    keys = ("macro_auroc", "rare_ap", *THRESHOLDS.values())

    def cells(parts: Sequence[Sequence[LossResult]]) -> list[list[TableCell]]:
        found = [{(row.name, row.metric.key): row for row in rows} for rows in parts]
        titles = {row.name: row.loss for row in parts[0]}
        shared = [name for name in titles if all((name, keys[0]) in rows for rows in found)]

        def mean(name: str, key: str) -> str:
            rows = [one[name, key] for one in found if (name, key) in one]
            metric = rows[0].metric if len(rows) == len(found) else None
            return format_value(fmean(row.estimate.mean for row in rows), metric) if metric else NONE.text

        tuned = {key: f"tuned_{name}" for name, key in THRESHOLDS.items()}
        return [
            [
                TableCell(titles[name]),
                *(TableCell(mean(name, key), f"({mean(name, tuned[key])})" if key in tuned else "") for key in keys),
            ]
            for name in shared
        ]

    headings = {metric.key: metric.heading for metric in metrics_of("the rarer class")}
    columns = _loss_and(f"{headings[key]}{'' if key in keys[:2] else ' (tuned)'}" for key in keys)
    title = f"Means over {len(binary)} data sets of two classes (tuned: at thresholds chosen on validation data)"
    if len(binary) < 2:
        return ReportTable(title, columns, [])
    losses, apart = cells([summary.rows for summary in binary]), cells([summary.references for summary in binary])
    return ReportTable(title, columns, losses, (), apart, APART)


def _with_tuned(
    means: Mapping[tuple[str, Metric], TableCell], name: str, metric: Metric, tuned: Metric | None
) -> TableCell:
    cell = means.get((name, metric), NONE)
    return cell if tuned is None else replace(cell, detail=f"({means.get((name, tuned), NONE).text})")


def _loss_and(headings: Iterable[str]) -> list[Column]:
    return [Column("loss", "text"), *map(Column, headings)]


def at_threshold(summary: Summary) -> str:
    """Part of a caption: the threshold that predictions of two classes are at; "" for more classes."""
    return ", at the threshold 0.5" if summary.experiment.rarer else ""


def class_table(summary: Summary) -> ReportTable:
    """Mean accuracy, or average precision, of each class by loss; without rows if the records do not have it."""
    losses = (summary.experiment.titles[name] for name in summary.experiment.class_accuracy)
    boxes = summary.experiment.boxes
    samples = ("training boxes", "test boxes") if boxes else ("training samples", "test samples")
    columns = [Column("class", "text"), *map(Column, (*samples, *losses))]
    rows = [
        [
            TableCell(row.title),
            TableCell(str(row.trained), key=row.trained),
            _count_cell(row.tested),
            *(TableCell(f"{mean:.1f}", key=mean) for mean in row.accuracy.values()),
        ]
        for row in summary.class_results
    ]
    result = "Average precision" if boxes else "Accuracy (recall)"
    return ReportTable(
        f"{result} of each class, %{at_threshold(summary)}, mean over seeds; described, not tested",
        columns,
        rows,
    )


def precision_table(summary: Summary) -> ReportTable:
    """Mean precision of each class by loss; without rows if the records do not have confusion matrices."""
    found = {name: runs.mean(0).tolist() for name, runs in summary.experiment.class_precision.items()}
    columns = [Column("class", "text"), *(Column(summary.experiment.titles[name]) for name in found)]
    rows = [
        [TableCell(title), *(TableCell(f"{of_loss[c]:.1f}", key=of_loss[c]) for of_loss in found.values())]
        for c, title in enumerate(summary.experiment.classes if found else ())
    ]
    title = (
        f"Precision of each class, %{at_threshold(summary)}, mean over seeds; 0 for a class that is never predicted;"
        " described, not tested"
    )
    return ReportTable(title, columns, rows)


def confusion_table(summary: Summary) -> ReportTable:
    """The most frequent confusions of two classes, mean test samples over seeds; by their mean over the losses."""
    found, names = summary.experiment.confusion, summary.experiment.classes
    columns = [Column("true class", "text"), Column("predicted class", "text")]
    columns += [Column(summary.experiment.titles[name]) for name in found]
    mean = np.mean(list(found.values()), axis=0) if found else np.zeros((0, 0))
    wrong = np.where(np.eye(len(mean), dtype=bool), 0, mean)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(MOST_CONFUSED, np.count_nonzero(wrong))]
    rows = []
    for true, predicted in np.argwhere(np.ones_like(wrong))[order].tolist():
        counts = [float(matrix[true, predicted]) for matrix in found.values()]
        rows.append([TableCell(names[true]), TableCell(names[predicted]), *_numbers(counts)])
    return ReportTable("Most frequent confusions: test samples, mean over seeds", columns, rows)


def _numbers(values: Iterable[float]) -> list[TableCell]:
    return [TableCell(format_count(value), key=value) for value in values]


def overview_table(summaries: Sequence[Summary], references: bool = True) -> ReportTable:
    """Experiments down, losses and then references across: mean and difference in the primary metric."""
    primary = common_primary(summaries)
    by_loss = [{row.loss: row for row in summary.of_metric(primary)} for summary in summaries]
    for summary, found in zip(summaries, by_loss, strict=True):
        beside = [row for row in summary.references if row.metric == primary and references]
        found |= {f"reference: {row.loss}": row for row in beside}
    losses = sorted(dict.fromkeys(loss for rows in by_loss for loss in rows), key=_is_reference_heading)
    cells = [
        [
            TableCell(summary.experiment.title, link=f"#experiment-{place}"),
            *(_mean_cell(rows.get(loss), difference=True) for loss in losses),
        ]
        for place, (summary, rows) in enumerate(zip(summaries, by_loss, strict=True), start=1)
    ]
    return ReportTable(primary.heading, [Column("experiment", "text"), *map(Column, losses)], cells)


def _is_reference_heading(heading: str) -> bool:
    return heading.startswith("reference: ")


def rank_table(ranking: Ranking) -> ReportTable:
    """Mean ranks, and wins, ties and losses against the reference."""
    against = f", against {ranking.reference}" if ranking.reference else ""
    title = f"Mean ranks over {len(ranking.data_sets)} data sets by {ranking.metric.title}; 1 is best{against}"
    rows = [
        [TableCell(loss), TableCell(f"{rank:.2f}", key=rank), *map(_count_cell, ranking.counts(loss))]
        for loss, rank in ranking.ranks.items()
    ]
    return ReportTable(title, [Column("loss", "text"), *map(Column, RANK_HEADINGS)], rows)


def long_table(summaries: Sequence[Summary]) -> ReportTable:
    """One row per experiment, metric and loss, and per class and loss; empty cells for missing values.

    Numbers have 9 digits after the point.
    """
    parts = (_long_rows, _long_adjusted_rows, _long_class_rows, _long_confusion_rows)
    values = (row for summary in summaries for rows in parts for row in rows(summary))
    cells = [[TableCell(_digits(row.get(name))) for name in CSV_COLUMNS] for row in values]
    return ReportTable("", [Column(name) for name in CSV_COLUMNS], cells)


def loss_settings(summary: Summary) -> ReportTable:
    """Settings down, losses across; several values where the runs differ (tuned ones)."""
    titles, runs = summary.experiment.titles, summary.experiment.runs
    rows = []
    for key in (key for key in LOSS_DEFAULTS if key not in NOT_SETTINGS):
        cells = [_distinct(run.loss.get(key, LOSS_DEFAULTS[key]) for run in runs[name]) for name in runs]
        if key in ALWAYS_LISTED or any(cell != _setting(LOSS_DEFAULTS[key]) for cell in cells):
            rows.append([TableCell(key), *map(TableCell, cells)])
    return ReportTable("Losses", [Column("setting", "text"), *(Column(titles[name]) for name in runs)], rows)


def recipe_settings(summary: Summary) -> ReportTable:
    """Settings of the recipe that are not at their defaults."""
    defaults = {name: _plain(value) for name, value in RECIPE_DEFAULTS.items()}
    found = {name: _plain(value) for name, value in summary.recipe.items()}
    changed = {name: value for name, value in found.items() if name not in defaults or defaults[name] != value}
    return _pairs("Recipe; settings not listed have their defaults", "setting", changed)


def _plain(value: Any) -> str:
    """Value of a setting in words; groups and lists by their members."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(member)}" for name, member in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


def environment(summary: Summary) -> ReportTable:
    """Device, system, packages, and the number and time of the runs."""
    losses = [run for members in summary.experiment.runs.values() for run in members]
    runs = _all_runs(summary)
    seconds = math.fsum(run.seconds for run in runs)
    time = f"{seconds / 3600:.2g} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"
    packages = dict.fromkeys(package for run in runs for package in run.versions)
    found = {
        "device": _distinct(run.device for run in losses),
        "system": _distinct(run.system or "not recorded" for run in runs),
        "processes × threads": _distinct(f"{run.processes} × {run.threads}" for run in runs),
        "runs": f"{len(runs)}, {time} in all",
        **({"waiting for data": f"{share:.0%} of the training time"} if (share := waiting_share(losses)) else {}),
        "evaluated weights": _distinct(run.weights for run in losses),
        **{
            package: _distinct(run.versions.get(package, "not recorded") for run in runs if uses(run, package))
            for package in packages
        },
    }
    return _pairs("Hardware and software", "part", found)


def waiting_share(runs: Sequence[RunRecord]) -> float:
    """Share of the training time in which runs waited for their batches; 0 if the records do not have it."""
    timed = [run for run in runs if run.data_seconds]
    total = math.fsum(second for run in timed for second in run.epoch_seconds)
    return math.fsum(second for run in timed for second in run.data_seconds) / total if total else 0.0


def column_encoding(summary: Summary) -> ReportTable:
    """Encodings of each column of a table, several where the runs differ; no rows for images and old records."""
    runs = _all_runs(summary)
    names = dict.fromkeys(name for run in runs for name in run.columns)
    found = {name: dict.fromkeys(run.columns[name] for run in runs if name in run.columns) for name in names}
    return _pairs("How each column was encoded", "column", {name: "; ".join(how) for name, how in found.items()})


def commands(summary: Summary) -> list[str]:
    """Commands that made the runs."""
    return list(dict.fromkeys(run.command for run in _all_runs(summary) if run.command))


def _all_runs(summary: Summary) -> list[RunRecord]:
    experiment = summary.experiment
    return [run for members in (experiment.runs | experiment.references).values() for run in members]


def _pairs(title: str, heading: str, values: dict[str, Any]) -> ReportTable:
    columns = [Column(heading, "text"), Column("value", "text")]
    return ReportTable(title, columns, [[TableCell(name), TableCell(str(value))] for name, value in values.items()])


def _result_cells(row: LossResult) -> list[TableCell]:
    cells = [TableCell(row.loss), _value_cell(row.estimate, row.metric)]
    if row.comparison is None:
        return [*cells, NONE, NONE, NONE, NONE]
    comparison = row.comparison
    difference = _value_cell(comparison.estimate, row.metric, sign=True)
    p = TableCell(format_p(comparison.corrected_p), key=comparison.corrected_p)
    effect = TableCell(format_effect(comparison.difference.effect), key=comparison.difference.effect)
    return [*cells, difference, effect, p, TableCell(comparison.verdict, mark=comparison.direction)]


def _value_cell(value: Estimate, metric: Metric, sign: bool = False) -> TableCell:
    return TableCell(format_value(value.mean, metric, sign), format_interval(value, metric, sign), value.mean)


def _mean_cell(row: LossResult | None, difference: bool = False) -> TableCell:
    if row is None:
        return NONE
    mean, text = row.estimate.mean, format_value(row.estimate.mean, row.metric)
    if row.comparison is None:
        return TableCell(text, key=mean)
    detail = f"({format_value(row.comparison.estimate.mean, row.metric, sign=True)})" if difference else ""
    return TableCell(text, detail, mean, row.comparison.direction)


def _time_cell(time: float | None) -> TableCell:
    return NONE if time is None else TableCell(f"{time:.2f} ×", key=time)


def _count_cell(count: int | None) -> TableCell:
    return NONE if count is None else TableCell(str(count), key=count)


def _long_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    for row in summary.rows:
        role = "primary" if row.metric == summary.primary else "secondary"
        yield _long_row(summary, row, role) | {"epoch_time": summary.time.get(row.name)}
    for row in summary.references:
        yield _long_row(summary, row, "reference")


def _long_adjusted_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    for row in summary.adjusted:
        yield _long_row(summary, row, "adjusted")
    for row in summary.against_adjusted:
        yield _long_row(summary, row, "against adjusted")


def _long_row(summary: Summary, row: LossResult, role: str) -> dict[str, Any]:
    low, high = row.estimate.interval or (None, None)
    values = {
        **{"role": role, "unit": row.metric.unit, "metric": row.metric.key, "loss": row.name, "title": row.loss},
        **{"seeds": row.estimate.n, "mean": row.estimate.mean, "low": low, "high": high},
    }
    compared = _long_comparison(row.comparison, summary.margin) if row.comparison else {}
    return _long_start(summary) | values | compared


def _long_confusion_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    names, titles = summary.experiment.classes, summary.experiment.titles
    for name, matrix in summary.experiment.confusion.items():
        seeds = len({run.seed for run in summary.experiment.runs[name]})
        for true, predicted in np.argwhere(matrix):
            values = {"metric": "confusion", "class": names[true], "predicted": names[predicted], "role": "confusion"}
            of_loss = {"unit": "samples", "loss": name, "title": titles[name], "seeds": seeds}
            yield _long_start(summary) | values | of_loss | {"mean": float(matrix[true, predicted])}


def _long_comparison(comparison: PairedComparison, margin: float) -> dict[str, Any]:
    value = comparison.estimate
    low, high = value.interval or (None, None)
    return {
        **{"difference": value.mean, "difference_low": low, "difference_high": high, "pairs": value.n},
        **{"p": comparison.difference.p, "corrected_p": comparison.corrected_p, "comparisons": comparison.family_size},
        **{"verdict": comparison.verdict, "seeds_needed": comparison.needed, "effect": comparison.difference.effect},
        **{"margin": None if comparison.equivalence_p is None else margin, "equivalence_p": comparison.equivalence_p},
    }


def _long_class_rows(summary: Summary) -> Iterator[dict[str, Any]]:
    runs, titles = summary.experiment.runs, summary.experiment.titles
    for row in summary.class_results:
        for name, mean in row.accuracy.items():
            values = {
                "metric": summary.experiment.of_class,
                "class": row.title,
                "role": "class",
                "unit": "%",
                "mean": mean,
            }
            seeds = len({run.seed for run in runs[name]})
            yield _long_start(summary) | values | {"loss": name, "title": titles[name], "seeds": seeds}


def _long_start(summary: Summary) -> dict[str, Any]:
    return {"experiment": summary.experiment.title, "recipe": summary.recipe["name"]}


def _digits(value: object) -> str:
    """Text of a value, rounded to remove rounding errors; "" for None."""
    return "" if value is None else str(round(value, 9) if isinstance(value, float) else value)


def _distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(_setting, values)))


def _setting(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
