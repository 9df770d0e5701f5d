"""What a comparison says at its end: tables, findings, and the picture."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report import Summary

LEAST_COLUMNS = 80  # a narrower terminal wraps lines, which is better than a table without its last columns
PIPED_COLUMNS = 100
WHOLE = 3  # so many experiments are shown with all their metrics; more, in the primary one


def show(records: Sequence[RunRecord], reference: str = "", metric: str = "", picture: Path | None = None) -> None:
    """Print the tables of a comparison and its findings; draw the picture, if one is wanted, and say where it is.

    Args:
        records: of any number of experiments.
        reference: name of the loss that others are compared with; "": "ce", or the first where there is none.
        metric: key of the primary metric; "": the one that the runs were begun with.
        picture: a .png or .svg.
    """
    from cyclofocal.lab.report.experiment import experiments
    from cyclofocal.lab.report.summary import summaries

    found = summaries(experiments(records), reference, metric)
    console = Console(highlight=False)
    console.width = max(console.width, LEAST_COLUMNS) if console.is_terminal else PIPED_COLUMNS
    if len(found) <= WHOLE:
        for summary in found:
            _show_whole(console, summary)
    if len(found) > 1:
        _show_many(console, found)
    if picture is not None:
        from cyclofocal.lab.figure import draw

        try:
            draw(found, picture)
        except ValueError as error:
            console.print(f"\nno picture: {error}", markup=False)
        else:
            _say(console, ["", f"picture  {picture}"])


def _show_whole(console: Console, summary: Summary) -> None:
    from cyclofocal.lab.report.terminal import table
    from cyclofocal.lab.report.words import conclusions, explanations

    console.print(table(summary, console.width))
    _say(console, ["", *conclusions(summary), "", *explanations(summary)])


def _show_many(console: Console, found: Sequence[Summary]) -> None:
    from cyclofocal.lab.report.ranking import ranking
    from cyclofocal.lab.report.terminal import overview, ranks
    from cyclofocal.lab.report.words import NOT_RANKED, ranking_conclusions

    console.print(overview(found))
    ranked = ranking(found)
    if ranked is None:
        _say(console, ["", NOT_RANKED])
    else:
        console.print()
        console.print(ranks(ranked))
        _say(console, ["", *ranking_conclusions(ranked), *ranked.notes])
    _say(console, ["", "+ and -: a difference to the reference is shown."])
    if len(found) > WHOLE:
        _say(console, [f"{summary.experiment.title}: {note}" for summary in found for note in summary.notes])


def _say(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)
