"""Whole reports as Markdown, CSV and LaTeX."""

from collections.abc import Sequence

from cyclofocal.lab.report import table
from cyclofocal.lab.report.findings import NOT_RANKED, conclusions, explanations, ranking_conclusions
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.result_tables import class_table, long_table, rank_table, result_tables
from cyclofocal.lab.report.summary import Summary


def markdown(summaries: Sequence[Summary], ranking: Ranking | None = None, faults: Sequence[str] = ()) -> str:
    """What was left out, ranks, and verdicts and tables of every experiment."""
    parts = ["## Left out", _list(faults)] if faults else []
    if ranking is not None:
        parts += [f"## {len(ranking.data_sets)} data sets", ranks_markdown(ranking)]
    elif len(summaries) > 1:
        parts.append(NOT_RANKED)
    for summary in summaries:
        parts += [f"## {summary.experiment.title}", verdicts_markdown(summary)]
        tables = [*result_tables(summary), class_table(summary)]
        parts += [f"**{entry.title}**\n\n{table.markdown(entry)}" for entry in tables if entry.rows]
        parts.append(_list(explanations(summary)))
    return "\n\n".join(parts) + "\n"


def verdicts_markdown(summary: Summary) -> str:
    """A line per loss."""
    return "\n".join(f"* {line}" for line in conclusions(summary))


def ranks_markdown(ranking: Ranking) -> str:
    """Mean ranks, wins, ties, losses, and what they show."""
    return f"{table.markdown(rank_table(ranking))}\n\n{_list((*ranking_conclusions(ranking), *ranking.notes))}"


def comma_separated(summaries: Sequence[Summary]) -> str:
    """:func:`~cyclofocal.lab.report.result_tables.long_table` as CSV."""
    return table.comma_separated(long_table(summaries))


def latex(summaries: Sequence[Summary], ranking: Ranking | None = None) -> str:
    r"""The ranks; a table per experiment with a block per metric, and one of classes; for ``\usepackage{booktabs}``."""
    parts = []
    if ranking is not None:
        ranks = rank_table(ranking)
        parts.append(table.latex(ranks, caption=f"{ranks.title}."))
    for summary in summaries:
        parts.append(table.latex(*result_tables(summary), caption=_caption(summary)))
        if (classes := class_table(summary)).rows:
            parts.append(table.latex(classes, caption=f"{summary.experiment.title}: {classes.title}."))
    return "\n".join(parts)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"* {table.markdown_text(line)}" for line in lines)


def _caption(summary: Summary) -> str:
    return (
        f"{summary.experiment.title}: {summary.seeds} seeds, differences to {summary.reference} paired by seed; 95 %"
        f" t intervals; p of sign-flip tests, Holm-corrected. Primary metric: {summary.primary.title}."
    )
