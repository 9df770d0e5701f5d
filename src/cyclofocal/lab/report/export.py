"""A summary as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

from cyclofocal.lab.metrics import Metric
from cyclofocal.lab.report.findings import (
    NOT_RANKED,
    conclusions,
    explanations,
    number,
    p_value,
    ranking_conclusions,
    with_interval,
)
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.summary import Row, Summary

CSV_COLUMNS = (
    *("experiment", "recipe", "metric", "class", "role", "unit", "loss", "title", "seeds", "mean", "low", "high"),
    *("difference", "difference_low", "difference_high", "pairs", "p", "corrected_p", "comparisons", "verdict"),
    *("seeds_needed", "epoch_time"),
)
"""Of the rows of :func:`comma_separated`: means and intervals in ``unit``, times relative to the reference.

The role is "primary", "secondary", or "class" of an accuracy of one class, which is only described.
"""

HEADINGS = ("loss", "mean [95 % interval]", "difference [95 % interval]", "p", "verdict")

TEX = str.maketrans(
    {c: rf"\{c}" for c in "#$%&_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": "$<$", ">": "$>$", "|": r"\textbar{}", "–": "--"}
)


def markdown(summaries: Sequence[Summary], ranking: Ranking | None = None, faults: Sequence[str] = ()) -> str:
    """What was left out, ranks, and verdicts and tables of every experiment."""
    parts = ["## Left out", "\n".join(f"* {_md(fault)}" for fault in faults)] if faults else []
    if ranking is not None:
        parts += [f"## {len(ranking.data_sets)} data sets", ranks_markdown(ranking)]
    elif len(summaries) > 1:
        parts.append(NOT_RANKED)
    for summary in summaries:
        parts += [f"## {summary.experiment.title}", verdicts_markdown(summary)]
        parts += [f"**{metric.heading}**\n\n{metric_markdown(summary, metric)}" for metric in summary.metrics]
        if classes := classes_markdown(summary):
            parts.append(f"**accuracy of each class, %**\n\n{classes}")
        parts.append("\n".join(f"* {_md(line)}" for line in explanations(summary)))
    return "\n\n".join(parts) + "\n"


def verdicts_markdown(summary: Summary) -> str:
    """A line per loss."""
    return "\n".join(f"* {line}" for line in conclusions(summary))


def metric_markdown(summary: Summary, metric: Metric) -> str:
    """Every loss in one metric."""
    return _markdown_table(HEADINGS, [_cells(row) for row in summary.of_metric(metric)])


def metrics_markdown(summary: Summary) -> str:
    """Means of every loss in every metric, and the time of an epoch; bold where a difference is shown."""
    names = {row.name: row.loss for row in summary.rows}
    found = {(row.name, row.metric): row for row in summary.rows}
    headings = ["loss", *(metric.heading for metric in summary.metrics), *(["time"] if summary.time else [])]
    rows = []
    for name, title in names.items():
        cells = [_mean(found.get((name, metric))) for metric in summary.metrics]
        time = [f"{summary.time[name]:.2f} x" if name in summary.time else "–"] if summary.time else []
        rows.append([title, *cells, *time])
    return _markdown_table(headings, rows)


def classes_markdown(summary: Summary) -> str:
    """Classes down, losses across: mean accuracy in per cent; "" where the records do not have it."""
    rows = _class_rows(summary)
    return _markdown_table(summary.class_headings, rows) if rows else ""


def overview_markdown(summaries: Sequence[Summary]) -> str:
    """Losses down, experiments across: mean and difference in the primary metric; bold where it is shown."""
    tables = [{row.loss: row for row in summary.of_metric(summary.primary)} for summary in summaries]
    losses = list(dict.fromkeys(loss for table in tables for loss in table))
    headings = [summaries[0].primary.heading, *(summary.experiment.title for summary in summaries)]
    return _markdown_table(headings, [[loss, *(_mean(table.get(loss), True) for table in tables)] for loss in losses])


def ranks_markdown(ranking: Ranking) -> str:
    """Mean ranks, wins, ties, losses, and what they show."""
    headings, rows = _rank_rows(ranking)
    said = "\n".join(f"* {line}" for line in (*ranking_conclusions(ranking), *ranking.notes))
    return f"{_markdown_table(headings, rows)}\n\n{said}"


def comma_separated(summaries: Sequence[Summary]) -> str:
    """One row per experiment, metric and loss, and per class and loss; empty where there is nothing.

    Numbers have 9 digits after the point.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for summary in summaries:
        rows = [*(_csv_row(summary, row) for row in summary.rows), *_csv_classes(summary)]
        writer.writerows([_rounded(cell) for cell in row] for row in rows)
    return text.getvalue()


def latex(summaries: Sequence[Summary], ranking: Ranking | None = None) -> str:
    r"""The ranks; a table per experiment with a block per metric, and one of classes; for ``\usepackage{booktabs}``."""
    parts = [] if ranking is None else [_latex_ranks(ranking)]
    return "\n".join(parts + [table(summary) for summary in summaries for table in (_latex_metrics, _latex_classes)])


def _cells(row: Row, escaped: Callable[[str], str] = str) -> list[str]:
    mean = escaped(with_interval(row.estimate, row.metric))
    if row.versus is None:
        return [escaped(row.loss), mean, "", "", ""]
    difference = escaped(with_interval(row.versus.difference.estimate, row.metric, sign=True))
    return [escaped(row.loss), mean, difference, escaped(p_value(row.versus.corrected_p)), row.versus.verdict]


def _mean(row: Row | None, difference: bool = False) -> str:
    if row is None:
        return "–"
    text = number(row.estimate.mean, row.metric)
    if row.versus is None:
        return text
    if difference:
        text += f" ({number(row.versus.difference.estimate.mean, row.metric, sign=True)})"
    return f"**{text}**" if row.versus.verdict in ("better", "worse") else text


def _class_rows(summary: Summary) -> list[list[str]]:
    return [
        [
            row.title,
            str(row.trained),
            "" if row.tested is None else str(row.tested),
            *(f"{mean:.1f}" for mean in row.accuracy.values()),
        ]
        for row in summary.class_rows
    ]


def _rank_rows(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    rows = []
    for loss, rank in ranking.ranks.items():
        counts = ("–" if count is None else str(count) for count in ranking.counts(loss))
        rows.append([loss, f"{rank:.2f}", *counts])
    return ["loss", "mean rank", "wins", "ties", "losses", "shown better", "shown worse"], rows


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(_md(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def _md(text: str) -> str:
    """Without what would be taken for a tag."""
    return text.replace("<", "&lt;") if re.search(r"<[a-zA-Z/!]", text) else text


def _csv_row(summary: Summary, row: Row) -> list:
    role = "primary" if row.metric == summary.primary else "secondary"
    unit = row.metric.heading.partition(", ")[2]
    low, high = row.estimate.interval or ("", "")
    start = [summary.experiment.title, summary.recipe["name"], row.metric.key, "", role, unit, row.name, row.loss]
    means = [row.estimate.n, row.estimate.mean, low, high]
    time = summary.time.get(row.name, "")
    if row.versus is None:
        return [*start, *means, *[""] * 9, time]
    versus, value = row.versus, row.versus.difference.estimate
    bounds = value.interval or ("", "")
    tested = [value.n, versus.difference.p, versus.corrected_p, versus.comparisons, versus.verdict]
    return [*start, *means, value.mean, *bounds, *tested, "" if versus.needed is None else versus.needed, time]


def _csv_classes(summary: Summary) -> Iterator[list]:
    runs, titles = summary.experiment.runs, summary.experiment.titles
    start = [summary.experiment.title, summary.recipe["name"], "accuracy"]
    for row in summary.class_rows:
        for name, mean in row.accuracy.items():
            seeds = len({run.seed for run in runs[name]})
            cells = [*start, row.title, "class", "%", name, titles[name], seeds, mean]
            yield cells + [""] * (len(CSV_COLUMNS) - len(cells))


def _rounded(cell: object) -> object:
    """Without the digits that rounding leaves."""
    return round(cell, 9) if isinstance(cell, float) else cell


def _latex_metrics(summary: Summary) -> str:
    rows = [" & ".join(_tex(heading) for heading in ("", *HEADINGS[1:])) + r" \\"]
    for metric in summary.metrics:
        rows += [r"\midrule", rf"\multicolumn{{5}}{{l}}{{\emph{{{_tex(metric.heading)}}}}} \\"]
        rows += [" & ".join(_cells(row, _tex)) + r" \\" for row in summary.of_metric(metric)]
    return _latex_table(_caption(summary), "lrrrl", rows)


def _latex_classes(summary: Summary) -> str:
    rows = _class_rows(summary)
    if not rows:
        return ""
    caption = f"{summary.experiment.title}: accuracy of each class, %, mean over seeds."
    return _latex_plain(caption, summary.class_headings, rows)


def _latex_ranks(ranking: Ranking) -> str:
    caption = f"Mean ranks over {len(ranking.data_sets)} data sets by {ranking.metric.title}; 1 is best."
    return _latex_plain(caption, *_rank_rows(ranking))


def _latex_plain(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heading, *lines = (" & ".join(map(_tex, row)) + r" \\" for row in (headings, *rows))
    return _latex_table(caption, "l" + "r" * (len(headings) - 1), [heading, r"\midrule", *lines])


def _latex_table(caption: str, columns: str, rows: Sequence[str]) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    return "\n".join([*lines, r"\toprule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _caption(summary: Summary) -> str:
    return (
        f"{summary.experiment.title}: {summary.seeds} seeds, differences to {summary.reference} paired by seed; 95 %"
        f" t intervals; p of sign-flip tests, Holm-corrected. Primary metric: {summary.primary.title}."
    )


def _tex(text: str) -> str:
    return text.translate(TEX)
