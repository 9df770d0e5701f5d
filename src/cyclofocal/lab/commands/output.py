"""Print to the terminal: results, warnings, and errors on one line; from the main process only."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.summary import Summary
from cyclofocal.lab.training.schedule import never_focal

if TYPE_CHECKING:
    from cyclofocal.lab.data import Images

MIN_COLUMNS = 80  # a narrower terminal wraps lines, which is better than a table without its last columns
PIPED_COLUMNS = 100
LOOSE_COLUMNS = 100  # narrower results are set without padding
MAX_FULL_TABLES = 3  # so many experiments are shown with all their metrics; more, in the primary one


def print_comparison(
    records: Sequence[RunRecord], reference: str = "", metric: str = "", picture: Path | None = None
) -> None:
    """Print the tables of a comparison and its findings; draw the picture, if one is wanted, and say where it is.

    Args:
        records: of any number of experiments.
        reference: name of the loss that others are compared with; "": "ce", or the first where there is none.
        metric: key of the primary metric; "": the one that the runs were started with.
        picture: a .png or .svg.
    """
    from cyclofocal.lab.report.experiment import group_experiments
    from cyclofocal.lab.report.summary import summaries

    found = summaries(group_experiments(records), reference, metric)
    console = table_console()
    if len(found) <= MAX_FULL_TABLES:
        for summary in found:
            _print_full(console, summary)
    if len(found) > 1:
        _print_overview(console, found)
    if picture is not None:
        from cyclofocal.lab.report.figure import draw_differences

        try:
            draw_differences(found, picture)
        except (OSError, ValueError) as error:
            said = one_line(error, picture) if isinstance(error, OSError) else error
            console.print(f"\nno picture: {said}", markup=False, soft_wrap=True)
        else:
            _print_lines(console, ["", f"picture  {picture}"])


def table_console(columns: int = PIPED_COLUMNS) -> Console:
    """Console for tables: as wide as the terminal, or ``columns`` where the output is no terminal."""
    console = Console(highlight=False)
    console.width = max(console.width, MIN_COLUMNS) if console.is_terminal else columns
    return console


def _print_full(console: Console, summary: Summary) -> None:
    from cyclofocal.lab.report.findings import conclusions, explanations
    from cyclofocal.lab.report.result_tables import result_tables
    from cyclofocal.lab.report.table import to_terminal

    comparison = f"; differences to {summary.reference}" if summary.reference else ""
    title, tight = f"{summary.experiment.title}{comparison}", console.width < LOOSE_COLUMNS
    console.print(to_terminal(*result_tables(summary), title=title, tight=tight))
    _print_lines(console, ["", *conclusions(summary), "", *explanations(summary)])


def _print_overview(console: Console, found: Sequence[Summary]) -> None:
    from cyclofocal.lab.report.findings import NOT_RANKED, ranking_conclusions
    from cyclofocal.lab.report.ranking import ranking
    from cyclofocal.lab.report.result_tables import overview_table, rank_table
    from cyclofocal.lab.report.table import to_terminal

    console.print(to_terminal(overview_table(found), details=False))
    ranked = ranking(found)
    if ranked is None:
        _print_lines(console, ["", NOT_RANKED])
    else:
        console.print()
        console.print(to_terminal(rank_table(ranked)))
        _print_lines(console, ["", *ranking_conclusions(ranked), *ranked.notes])
    _print_lines(console, ["", "+ and -: significantly better and significantly worse than the reference."])
    if len(found) > MAX_FULL_TABLES:
        _print_lines(console, [f"{summary.experiment.title}: {note}" for summary in found for note in summary.notes])


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def is_main() -> bool:
    """Whether this process speaks for all of them."""
    return int(os.environ.get("RANK", "0")) == 0


def warn_never_focal(pairs: Iterable[tuple[Recipe, LossSettings]]) -> None:
    """Say before any training which losses will not meet their focal phase."""
    if is_main():
        for said in dict.fromkeys(never_focal(recipe, loss) for recipe, loss in pairs):
            if said:
                Console(stderr=True, highlight=False).print(said, style="yellow", markup=False, soft_wrap=True)


@contextmanager
def one_line_errors(kept: Path) -> Iterator[None]:
    """What goes wrong is told in one line; ``kept`` is where the work so far lies."""
    console = Console(stderr=True, highlight=False)
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped: {kept} is kept, the same command continues", style="red", markup=False)
        raise typer.Exit(130) from None
    except OSError as error:
        console.print(f"stopped: {one_line(error, kept)}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except (ValueError, FloatingPointError) as error:
        console.print(f"stopped: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def warn_of_copies(title: str, splits: Mapping[str, "Images | None"]) -> None:
    """Warn, in the main process, of images that are equal byte for byte in two splits or two classes."""
    from cyclofocal.lab.data.check import copies

    if is_main():
        console = Console(stderr=True, highlight=False)
        for fault in copies(splits).faults:
            console.print(f"warning: {title}: {fault}", style="yellow", markup=False, soft_wrap=True)


def one_line(error: OSError, place: Path | None = None) -> str:
    """The file, what the system says of it, and what to do; the message alone where it is our own.

    Args:
        error: of reading or writing.
        place: what is named where the system names no file.
    """
    if error.strerror is None:
        return " ".join(str(error).split())
    return f"{error.filename or place or 'a file'}: {error.strerror}; mend that and give the same command again"
