"""Print to the terminal: results, warnings, and errors on one line; from the main process only."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from cyclofocal.lab.data.config import DataConfig, FolderData, path_of
from cyclofocal.lab.messages import preview
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.summary import Summary
from cyclofocal.lab.training.schedule import never_focal

if TYPE_CHECKING:
    from cyclofocal.lab.data import DataSet

MIN_COLUMNS = 80  # a narrower terminal wraps lines, which is better than a table without its last columns
PIPED_COLUMNS = 100
LOOSE_COLUMNS = 110  # narrower results are set without padding
MAX_FULL_TABLES = 3  # experiments shown with all their metrics; more are shown in the primary one alone


def print_comparison(
    records: Sequence[RunRecord],
    reference: str = "",
    metric: str = "",
    picture: Path | None = None,
    margin: float | None = None,
) -> None:
    """Print the tables and findings of a comparison, and draw its differences if a path is given.

    Args:
        records: runs of any number of experiments.
        reference: name of the reference loss; default: "ce", else the first.
        metric: key of the primary metric; default: the one that the runs were started with.
        picture: .png or .svg file to write.
        margin: margin of equivalence; default: the one that the runs were started with.
    """
    from cyclofocal.lab.report.experiment import group_experiments
    from cyclofocal.lab.report.summary import summaries

    found = summaries(group_experiments(records), reference, metric, margin)
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
            reason = one_line(error, picture) if isinstance(error, OSError) else error
            console.print(f"\nno picture: {reason}", markup=False, soft_wrap=True)
        else:
            _print_lines(console, ["", f"picture  {picture}"])


def table_console(columns: int = PIPED_COLUMNS) -> Console:
    """Console for tables: as wide as the terminal, or ``columns`` if the output is not a terminal."""
    console = Console(highlight=False)
    console.width = max(console.width, MIN_COLUMNS) if console.is_terminal else columns
    return console


def _print_full(console: Console, summary: Summary) -> None:
    from cyclofocal.lab.report.findings import adjusted_conclusion, conclusions, explanations
    from cyclofocal.lab.report.result_tables import result_tables
    from cyclofocal.lab.report.table import to_terminal

    comparison = f"; differences to {summary.reference}" if summary.reference else ""
    title, tight = f"{summary.experiment.title}{comparison}", console.width < LOOSE_COLUMNS
    console.print(to_terminal(*result_tables(summary), title=title, tight=tight))
    _print_lines(
        console, ["", *filter(None, (*conclusions(summary), adjusted_conclusion(summary))), "", *explanations(summary)]
    )


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
    """True in the main process."""
    return int(os.environ.get("RANK", "0")) == 0


def warn(message: str, colour: str = "yellow") -> None:
    """Print a message to the standard error, on one line however narrow the terminal is."""
    Console(stderr=True, highlight=False).print(message, style=colour, markup=False, soft_wrap=True)


def warn_never_focal(pairs: Iterable[tuple[Recipe, LossSettings]]) -> None:
    """Warn before training of losses that never reach their focal phase."""
    if is_main():
        for message in dict.fromkeys(never_focal(recipe, loss) for recipe, loss in pairs):
            if message:
                warn(message)


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Report errors on one line; ``folder`` holds the work so far."""
    try:
        yield
    except KeyboardInterrupt:
        warn(f"stopped: {folder} is saved; the same command resumes", "red")
        raise typer.Exit(130) from None
    except (OSError, ValueError, FloatingPointError) as error:
        warn(f"stopped: {one_line(error, folder) if isinstance(error, OSError) else error}", "red")
        raise typer.Exit(1) from None


def warn_of_images(config: DataConfig, data: "DataSet") -> None:
    """Warn, in the main process, of byte-identical images in two splits or classes, and of folders not read."""
    from cyclofocal.lab.data.check import find_copies
    from cyclofocal.lab.data.files import Files

    if not is_main():
        return
    for problem in find_copies(data.splits).problems:
        warn(f"warning: {data.title}: {problem}")
    is_folder = isinstance(config, FolderData) and isinstance(data.train.reader, Files)
    if is_folder and (said := ignored_warning(path_of(config.source))):
        warn(said)


def ignored_warning(folder: Path) -> str:
    """Sentence that names the folders next to the splits that are not read; "" without any."""
    from cyclofocal.lab.data.folders import ignored_folders

    if not (names := ignored_folders(folder)):
        return ""
    return (
        f"warning: {folder}: not read, for their names are no splits: {preview(names)}; call a folder val or test if it"
        " is one"
    )


def one_line(error: OSError, place: Path | None = None) -> str:
    """One-line message of an error: file, reason and remedy; the message alone if it is our own.

    Args:
        error: error of reading or writing.
        place: file or folder to name if the error names none.
    """
    if error.strerror is None:
        return " ".join(str(error).split())
    return f"{error.filename or place or 'a file'}: {error.strerror}; fix this and run the same command again"
