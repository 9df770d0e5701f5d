"""Write whole reports as Markdown, CSV and LaTeX."""

from collections.abc import Sequence

from cyclofocal.lab.report.answer import answer, answer_over
from cyclofocal.lab.report.constructors import tuned_calls
from cyclofocal.lab.report.explanations import explanations
from cyclofocal.lab.report.findings import adjusted_conclusion, conclusions, ranking_conclusions
from cyclofocal.lab.report.ranking import Ranking
from cyclofocal.lab.report.result_tables import (
    adjusted_table,
    class_table,
    column_encoding,
    long_table,
    means_over,
    precision_table,
    rank_table,
    result_tables,
    threshold_table,
)
from cyclofocal.lab.report.summary import Summary
from cyclofocal.lab.report.table import escape_markdown, to_csv, to_latex, to_markdown


def markdown_report(summaries: Sequence[Summary], ranking: Ranking | None = None, problems: Sequence[str] = ()) -> str:
    """Answers, problems, ranks, and the findings and tables of every experiment."""
    parts = [_list(answer_over(summaries, ranking))] if len(summaries) > 1 else []
    parts += ["## Left out", _list(problems)] if problems else []
    if ranking is not None:
        parts += [f"## {len(ranking.data_sets)} data sets", ranks_markdown(ranking)]
    if (means := means_over(summaries)).rows:
        parts.append(f"**{means.title}**\n\n{to_markdown(means)}")
    for summary in summaries:
        parts += [f"## {summary.experiment.title}", _list(answer(summary))]
        parts += ["**Each loss**", verdicts_markdown(summary)]
        primary, *others = result_tables(summary)
        tables = [primary, threshold_table(summary), *others, adjusted_table(summary), class_table(summary)]
        tables.append(precision_table(summary))
        parts += [f"**{entry.title}**\n\n{to_markdown(entry)}" for entry in tables if entry.rows]
        if calls := tuned_calls(summary):
            parts += ["**Settings chosen by tuning**", "```python\n" + "\n".join(calls) + "\n```"]
        encoding = column_encoding(summary)
        if encoding.rows:
            lines = [f"{name.text}: {how.text}" for name, how in encoding.rows]
            parts.append(f"**{encoding.title}**\n\n{_list(lines)}")
        parts.append(_list(explanations(summary)))
    return "\n\n".join(parts) + "\n"


def verdicts_markdown(summary: Summary) -> str:
    """List with one finding per loss, and one on post-hoc adjusted logits where there are some."""
    return "\n".join(f"* {line}" for line in filter(None, (*conclusions(summary), adjusted_conclusion(summary))))


def ranks_markdown(ranking: Ranking) -> str:
    """Mean ranks, wins, ties and losses, with their findings."""
    return f"{to_markdown(rank_table(ranking))}\n\n{_list((*ranking_conclusions(ranking), *ranking.notes))}"


def csv_report(summaries: Sequence[Summary]) -> str:
    """:func:`~cyclofocal.lab.report.result_tables.long_table` as CSV."""
    return to_csv(long_table(summaries))


def latex_report(summaries: Sequence[Summary], ranking: Ranking | None = None) -> str:
    r"""Tables of ranks, of experiments with a section per metric, and of classes; for ``\usepackage{booktabs}``."""
    parts = []
    if ranking is not None:
        ranks = rank_table(ranking)
        parts.append(to_latex(ranks, caption=f"{ranks.title}."))
    for summary in summaries:
        parts.append(to_latex(*result_tables(summary), caption=_caption(summary)))
        for classes in (table for table in (class_table(summary), precision_table(summary)) if table.rows):
            parts.append(to_latex(classes, caption=f"{summary.experiment.title}: {classes.title}."))
    return "\n".join(parts)


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"* {escape_markdown(line)}" for line in lines)


def _caption(summary: Summary) -> str:
    overlap = summary.experiment.overlap
    test = "t tests, corrected for the overlap of folds (Nadeau and Bengio 2003)" if overlap else "sign-flip tests"
    return (
        f"{summary.experiment.title}: {summary.seeds} seeds, differences to {summary.reference} paired by seed; 95 %"
        f" t intervals; effect: mean over standard deviation; p of {test}, Holm-corrected; equivalent: within"
        f" {summary.margin:g}. Primary metric: {summary.primary.title}."
    )
