"""Write a report as one self-contained HTML page: findings, tables, charts, settings and commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cyclofocal.lab.report import charts
from cyclofocal.lab.report.answer import answer, answer_over
from cyclofocal.lab.report.constructors import tuned_calls
from cyclofocal.lab.report.findings import (
    adjusted_conclusion,
    conclusions,
    explanations,
    ranking_conclusions,
)
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.result_tables import (
    adjusted_table,
    class_table,
    column_encoding,
    commands,
    environment,
    loss_settings,
    metric_table,
    overview_table,
    primary_table,
    rank_table,
    recipe_settings,
    secondary_table,
)
from cyclofocal.lab.report.summary import Summary


@dataclass(frozen=True)
class Figure:
    """Picture and caption; without a picture, the reason as caption."""

    title: str
    svg: str
    caption: str


def page(summaries: Sequence[Summary], ranking: Ranking | None = None, problems: Sequence[str] = ()) -> str:
    """HTML of a page that needs no other file and no network.

    Args:
        summaries: at least one.
        ranking: ranks of the losses over the experiments.
        problems: problems with the files that were read.
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
        "classes": class_table(summary),
        "columns": column_encoding(summary),
        "explanations": explanations(summary),
        "losses": loss_settings(summary),
        "recipe": recipe_settings(summary),
        "environment": environment(summary),
        "commands": commands(summary),
    }


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
    band = "mean over seeds, band: 95 % t interval"
    drawn = (
        (
            "Learning curves",
            charts.learning_curves(summary),
            band,
            "the records do not contain the accuracy of each epoch",
        ),
        (
            "Accuracy by class frequency",
            charts.class_accuracy(summary),
            band,
            "the records do not contain the accuracy of each class",
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
