"""One self-contained HTML page: findings, tables, pictures, settings, and the command that makes it again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cyclofocal.lab.report import charts
from cyclofocal.lab.report.experiment import OF_LOSS, OF_RECIPE
from cyclofocal.lab.report.findings import (
    NOT_RANKED,
    conclusion,
    conclusions,
    explanations,
    number,
    p_value,
    ranking_conclusions,
)
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.summary import ClassRow, Row, Summary

NOT_SETTINGS = ("name", "title", "file", "digest")


@dataclass(frozen=True)
class Cell:
    """Of a table: what it shows, a smaller second line, and what it is sorted by ("": last)."""

    text: str
    small: str = ""
    key: float | str = ""


@dataclass(frozen=True)
class Figure:
    """A picture and its caption; without a picture, why."""

    title: str
    svg: str
    caption: str


def page(summaries: Sequence[Summary], ranking: Ranking | None = None, faults: Sequence[str] = ()) -> str:
    """The page, which needs no other file and no network.

    Args:
        summaries: of at least one experiment.
        ranking: of the losses over the experiments.
        faults: what was wrong with the files that were read.
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
        experiments=[_experiment(summary) for summary in summaries],
        overview=_overview(summaries) if len(summaries) > 1 else None,
        ranking=None if ranking is None else _ranking(ranking),
        not_ranked=NOT_RANKED,
        faults=faults,
        primary=summaries[0].primary,
    )


def _title(summaries: Sequence[Summary]) -> str:
    if len(summaries) == 1:
        return summaries[0].experiment.title
    return f"{len(summaries)} experiments"


def _experiment(summary: Summary) -> dict[str, Any]:
    primary = [row for row in summary.rows if row.metric == summary.primary]
    others = [row for row in summary.rows if row.metric != summary.primary]
    titles, names = summary.experiment.titles, dict.fromkeys(row.name for row in summary.rows)
    return {
        "title": summary.experiment.title,
        "reference": summary.reference,
        "findings": _findings(summary),
        "primary": summary.primary,
        "rows": [_primary_cells(summary, row) for row in primary],
        "others": [[Cell(row.metric.heading, key=row.metric.heading), *_cells(row)] for row in others],
        "legend": [(charts.hue(summary, name), titles[name]) for name in names],
        "forests": [
            Figure(metric.title, charts.forest(summary, metric), _way(metric.higher_is_better))
            for metric in summary.metrics
            if summary.reference
        ],
        "figures": _figures(summary),
        "reliability": [
            Figure(titles[name], charts.reliability(summary, name), "")
            for name in names
            if any(run.reliability for run in summary.experiment.runs[name])
        ],
        "class_headings": summary.class_headings,
        "classes": [_class_cells(row) for row in summary.class_rows],
        "explanations": explanations(summary),
        "settings": {k: v for k, v in summary.recipe.items() if OF_RECIPE.get(k, v) != v or k not in OF_RECIPE},
        "losses": _losses(summary),
        "environment": _environment(summary),
        "commands": _commands(summary),
    }


def _findings(summary: Summary) -> list[tuple[str, str, str]]:
    """CSS class, badge and sentence; one for all where there is one for all."""
    rows = [row for row in summary.of_metric(summary.primary) if row.versus]
    said = conclusions(summary)
    if len(said) < len(rows):
        return [("few", "too few", said[0])]
    return [_finding(row, conclusion(summary, row)) for row in rows]


def _finding(row: Row, sentence: str) -> tuple[str, str, str]:
    assert row.versus is not None
    return row.versus.verdict.replace("too ", ""), row.versus.verdict, sentence


def _primary_cells(summary: Summary, row: Row) -> list[Cell]:
    time = summary.time.get(row.name)
    return [*_cells(row), Cell("–") if time is None else Cell(f"{time:.2f} ×", key=time)]


def _cells(row: Row) -> list[Cell]:
    """Loss, mean, difference, p, verdict."""
    mean = _value(row.estimate.mean, row.estimate.interval, row, False)
    loss = Cell(row.loss, key=row.loss)
    if row.versus is None:
        return [loss, mean, Cell("–"), Cell("–"), Cell("–")]
    value, p = row.versus.difference.estimate, row.versus.corrected_p
    verdict = Cell(row.versus.verdict, key=row.versus.verdict)
    return [loss, mean, _value(value.mean, value.interval, row, True), Cell(p_value(p), key=p), verdict]


def _value(mean: float, interval: tuple[float, float] | None, row: Row, sign: bool) -> Cell:
    small = "" if interval is None else " to ".join(_minus(number(bound, row.metric, sign)) for bound in interval)
    return Cell(_minus(number(mean, row.metric, sign)), small, mean)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _way(higher_is_better: bool) -> str:
    return f"{'higher' if higher_is_better else 'lower'} is better"


def _figures(summary: Summary) -> list[Figure]:
    """Each with its caption, or with why it is not there."""
    band = "mean over seeds, band: 95 % t interval"
    drawn = (
        ("Learning curves", charts.learning_curves(summary), band, "the records have no accuracy by epoch"),
        (
            "Accuracy by class frequency",
            charts.class_accuracy(summary),
            band,
            "the records are from before the accuracy of each class was kept",
        ),
        (
            "Schedule of eta",
            charts.eta_schedule(summary),
            "1: the high-confidence loss, 0: the focal loss",
            "no loss has one",
        ),
    )
    return [Figure(title, svg, caption if svg else why) for title, svg, caption, why in drawn]


def _class_cells(row: ClassRow) -> list[Cell]:
    tested = Cell("–", key=0) if row.tested is None else Cell(str(row.tested), key=row.tested)
    accuracy = (Cell(f"{mean:.1f}", key=mean) for mean in row.accuracy.values())
    return [Cell(row.title, key=row.title), Cell(str(row.trained), key=row.trained), tested, *accuracy]


def _losses(summary: Summary) -> dict[str, Any]:
    """Settings down, losses across; several values where the runs differ (tuned ones)."""
    keys = [key for key in OF_LOSS if key not in NOT_SETTINGS]
    titles, runs = summary.experiment.titles, summary.experiment.runs
    rows = []
    for key in keys:
        cells = [_distinct(run.loss.get(key, OF_LOSS[key]) for run in runs[name]) for name in titles]
        if key in ("gamma_pos", "gamma_neg", "gamma_hc", "cyclical_factor", "label_smoothing") or any(
            cell != _shown(OF_LOSS[key]) for cell in cells
        ):
            rows.append((key, cells))
    return {"titles": list(titles.values()), "rows": rows}


def _environment(summary: Summary) -> list[tuple[str, str]]:
    runs = [run for members in summary.experiment.runs.values() for run in members]
    packages = dict.fromkeys(package for run in runs for package in run.versions)
    seconds = math.fsum(run.seconds for run in runs)
    time = f"{seconds / 3600:.2g} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"
    return [
        ("device", _distinct(run.device for run in runs)),
        ("system", _distinct(run.system or "not recorded" for run in runs)),
        ("processes × threads", _distinct(f"{run.processes} × {run.threads}" for run in runs)),
        ("runs", f"{len(runs)}, {time} in all"),
        ("evaluated weights", _distinct(run.weights for run in runs)),
        *((package, _distinct(run.versions.get(package, "not recorded") for run in runs)) for package in packages),
    ]


def _commands(summary: Summary) -> list[str]:
    runs = [run for members in summary.experiment.runs.values() for run in members]
    return list(dict.fromkeys(run.command for run in runs if run.command))


def _distinct(values: Any) -> str:
    return ", ".join(dict.fromkeys(map(_shown, values)))


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _overview(summaries: Sequence[Summary]) -> dict[str, Any]:
    primary = summaries[0].primary
    tables = [{row.loss: row for row in summary.of_metric(primary)} for summary in summaries]
    losses = list(dict.fromkeys(loss for table in tables for loss in table))
    rows = []
    for place, (summary, table) in enumerate(zip(summaries, tables, strict=True), start=1):
        title = summary.experiment.title
        rows.append(
            (f"experiment-{place}", Cell(title, key=title), [_overview_cell(table.get(loss)) for loss in losses])
        )
    return {"losses": losses, "rows": rows}


def _overview_cell(row: Row | None) -> tuple[Cell, str]:
    if row is None:
        return Cell("–"), ""
    mean = number(row.estimate.mean, row.metric)
    if row.versus is None:
        return Cell(mean, key=row.estimate.mean), ""
    difference = _minus(number(row.versus.difference.estimate.mean, row.metric, sign=True))
    return Cell(mean, difference, row.estimate.mean), row.versus.verdict.replace("too ", "")


def _ranking(ranking: Ranking) -> dict[str, Any]:
    rows = []
    for loss, rank in ranking.ranks.items():
        cells = [Cell("–") if count is None else Cell(str(count), key=count) for count in ranking.counts(loss)]
        rows.append([Cell(loss, key=loss), Cell(f"{rank:.2f}", key=rank), *cells])
    return {
        "rows": rows,
        "svg": charts.critical_difference_diagram(ranking) if ranking.enough else "",
        "findings": ranking_conclusions(ranking),
        "notes": ranking.notes,
        "reference": ranking.reference,
    }
