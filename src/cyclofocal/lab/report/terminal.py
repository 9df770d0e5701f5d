"""A summary on the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from cyclofocal.lab.report.findings import number, p_value, with_interval
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.summary import Row, Summary

STYLES = {"better": "bold green", "worse": "bold red", "unclear": "dim", "too few": "dim"}
MARKS = {"better": "+", "worse": "-", "unclear": "", "too few": ""}


def table(summary: Summary, columns: int) -> Table:
    """The rows as a table that fits 90 columns, set tighter to fit 80 where there are fewer."""
    padding = (0, 1) if columns >= 90 else (0, 0)
    title = escape(summary.experiment.title)
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=padding, title=title)
    shown.title_style, shown.title_justify = "bold", "left"
    shown.add_column("")  # a long name takes more lines, so that the numbers are whole
    for heading in ("mean [95 % interval]", f"minus {summary.reference}" if summary.reference else "", "p"):
        shown.add_column(escape(heading), justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for metric in summary.metrics:
        arrow = "higher is better" if metric.higher_is_better else "lower is better"
        primary = "[dim]primary metric[/]" if metric == summary.primary else ""
        shown.add_row(f"[bold]{metric.heading}[/]", f"[dim]{arrow}[/]", primary)
        rows = summary.of_metric(metric)
        for row in rows:
            shown.add_row(*_cells(row), end_section=row is rows[-1])
    return shown


def overview(summaries: Sequence[Summary]) -> Table:
    """Many data sets: the primary metric's mean of every loss; ``+`` and ``-`` where a difference is shown."""
    primary = summaries[0].primary
    losses = list(dict.fromkeys(row.loss for summary in summaries for row in summary.of_metric(primary)))
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title=primary.heading)
    shown.title_style, shown.title_justify = "bold", "left"
    shown.add_column("", overflow="fold")
    for loss in losses:
        shown.add_column(escape(loss), justify="right", overflow="fold")
    for summary in summaries:
        found = {row.loss: row for row in summary.of_metric(primary)}
        shown.add_row(escape(summary.experiment.title), *(_marked(found.get(loss)) for loss in losses))
    return shown


def ranks(found: Ranking) -> Table:
    """Mean ranks, and wins, ties and losses against the reference."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title=f"{len(found.data_sets)} data sets")
    shown.title_style, shown.title_justify = "bold", "left"
    shown.add_column("")
    for heading in ("mean rank", "wins", "ties", "losses", "shown better", "shown worse"):
        shown.add_column(heading, justify="right")
    for loss, rank in found.ranks.items():
        counts = ("" if count is None else str(count) for count in found.counts(loss))
        shown.add_row(escape(loss), f"{rank:.2f}", *counts)
    return shown


def _marked(row: Row | None) -> str:
    if row is None:
        return "-"
    verdict = row.versus.verdict if row.versus else "unclear"
    text = f"{number(row.estimate.mean, row.metric)}{MARKS[verdict]}"
    return f"[{STYLES[verdict]}]{text}[/]" if MARKS[verdict] else text


def _cells(row: Row) -> tuple[str | Padding, ...]:
    loss = Padding.indent(escape(row.loss), 2)
    mean = escape(with_interval(row.estimate, row.metric))
    if row.versus is None:
        return loss, mean
    difference = escape(with_interval(row.versus.difference.estimate, row.metric, sign=True))
    style = STYLES[row.versus.verdict]
    return (
        loss,
        mean,
        difference,
        p_value(row.versus.corrected_p),
        f"[{style}]{row.versus.verdict}[/]",
    )
