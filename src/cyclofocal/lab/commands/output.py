"""Print to the terminal: results, warnings, and errors on one line; from the main process only."""

import os
import shlex
import warnings
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

if TYPE_CHECKING:
    from cyclofocal.lab.data.dataset import DataSet

MIN_COLUMNS = 80  # a narrower terminal wraps lines, which is better than a table without its last columns
PIPED_COLUMNS = 100
LOOSE_COLUMNS = 110  # narrower results are set without padding
MAX_FULL_TABLES = 3  # experiments shown one by one; of more there are ranks alone
MAX_OVERVIEW = 10  # experiments listed in a line each without being asked for
MAX_CALLS = 4  # settings of tuning shown without being asked for
MORE = "Other metrics, findings and explanations: --all, or `cyclofocal report RUNS -o report.html`."


def print_comparison(
    records: Sequence[RunRecord],
    reference: str = "",
    metric: str = "",
    picture: Path | None = None,
    margin: float | None = None,
    everything: bool = False,
    train: str = "",
) -> None:
    """Print the answer and the primary table of a comparison, and draw its differences if a path is given.

    Args:
        records: runs of any number of experiments.
        reference: name of the reference loss; default: "ce", else the first.
        metric: key of the primary metric; default: the one that the runs were started with.
        picture: .png or .svg file to write.
        margin: margin of equivalence; default: the one that the runs were started with.
        everything: print the tables of all metrics, the findings and the explanations too.
        train: command that trains a model on the one experiment, to be printed with the loss to use.
    """
    from cyclofocal.lab.recipes.parse_losses import spelled_loss
    from cyclofocal.lab.report.answer import recommended
    from cyclofocal.lab.report.constructors import loss_of
    from cyclofocal.lab.report.experiment import group_experiments
    from cyclofocal.lab.report.summary import summaries

    found = summaries(group_experiments(records), reference, metric, margin)
    console = table_console()
    if len(found) > 1:
        _print_overview(console, found, everything)
    if len(found) <= MAX_FULL_TABLES:
        for summary in found:
            _print_lines(console, [""] if len(found) > 1 else [])
            _print_answer(console, summary, everything)
    if train and len(found) == 1:
        (run, *_) = found[0].experiment.runs[recommended(found[0])]
        _print_lines(
            console,
            ["", f"Train the model: {train} --loss {shlex.quote(spelled_loss(loss_of(run), run.is_detection))}"],
        )
    if not everything:
        _print_lines(console, ["", MORE])
    if picture is not None:
        _draw(console, found, picture)


def _draw(console: Console, found: Sequence[Summary], picture: Path) -> None:
    """Draw the differences, or print why not."""
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


def _print_answer(console: Console, summary: Summary, everything: bool) -> None:
    """Print one experiment: its answer, the primary table, and then either the remarks or all there is."""
    from cyclofocal.lab.report.answer import answer, recommended
    from cyclofocal.lab.report.constructors import chosen_settings
    from cyclofocal.lab.report.explanations import remarks
    from cyclofocal.lab.report.result_tables import metric_table, threshold_table
    from cyclofocal.lab.report.table import to_terminal

    table = metric_table(summary, summary.primary)
    notes = [*table.notes, *([f"differences to {summary.reference}"] if summary.reference else [])]
    console.print(summary.experiment.title, style="bold", markup=False)
    _print_lines(console, [*answer(summary), ""])
    title, tight = f"{table.title} ({'; '.join(notes)})", console.width < LOOSE_COLUMNS
    console.print(to_terminal(table, title=title, tight=tight))
    if (thresholds := threshold_table(summary)).rows:
        console.print()
        console.print(to_terminal(thresholds, tight=True))
    if everything:
        _print_rest(console, summary)
        return
    chosen = chosen_settings(summary, name := recommended(summary))
    if chosen:
        more = [f"... and {len(chosen) - MAX_CALLS} more, with --all"] if len(chosen) > MAX_CALLS else []
        title = f"Settings chosen for {summary.experiment.titles[name]}:"
        _print_lines(console, ["", title, *chosen[:MAX_CALLS], *more])
    if notes := remarks(summary):
        _print_lines(console, ["", *notes])


def _print_rest(console: Console, summary: Summary) -> None:
    """Print the tables of the other metrics, the findings, all tuned settings and the explanations."""
    from cyclofocal.lab.report.constructors import chosen_settings
    from cyclofocal.lab.report.explanations import explanations
    from cyclofocal.lab.report.findings import adjusted_conclusion, conclusions
    from cyclofocal.lab.report.result_tables import result_tables
    from cyclofocal.lab.report.table import to_terminal

    _, *others = result_tables(summary)
    if others:
        console.print()
        console.print(to_terminal(*others, title="Other metrics", tight=console.width < LOOSE_COLUMNS))
    chosen = [call for name in summary.experiment.runs for call in chosen_settings(summary, name)]
    findings = [*filter(None, (*conclusions(summary), adjusted_conclusion(summary)))]
    for lines in (findings, chosen, explanations(summary)):
        if lines:
            _print_lines(console, ["", *lines])


def _print_overview(console: Console, found: Sequence[Summary], everything: bool) -> None:
    """Print several experiments: the answer over all, their ranks, and a line for each of a few."""
    from cyclofocal.lab.report.answer import answer_over
    from cyclofocal.lab.report.findings import NOT_RANKED, ranking_conclusions
    from cyclofocal.lab.report.ranking import ranking
    from cyclofocal.lab.report.result_tables import means_over, overview_table, rank_table
    from cyclofocal.lab.report.table import to_terminal

    ranked = ranking(found)
    _print_lines(console, [*answer_over(found, ranked), ""])
    if ranked is not None:
        console.print(to_terminal(rank_table(ranked)))
        _print_lines(console, ["", *ranked.notes] if ranked.notes else [])
    if (means := means_over(found)).rows:
        console.print()
        console.print(to_terminal(means))
    if everything or len(found) <= MAX_OVERVIEW:
        console.print()
        console.print(to_terminal(overview_table(found, references=False), details=False))
        _print_lines(console, ["", "+ and -: significantly better and significantly worse than the reference."])
    if everything:
        _print_lines(console, ["", *(ranking_conclusions(ranked) if ranked else [NOT_RANKED])])
        if len(found) > MAX_FULL_TABLES:
            _print_remarks(console, found)


def _print_remarks(console: Console, found: Sequence[Summary]) -> None:
    from cyclofocal.lab.report.explanations import remarks

    _print_lines(console, [f"{summary.experiment.title}: {note}" for summary in found for note in remarks(summary)])


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def is_main() -> bool:
    """True in the main process."""
    return int(os.environ.get("RANK", "0")) == 0


def warn(message: str, colour: str = "yellow") -> None:
    """Print a message to the standard error, on one line however narrow the terminal is."""
    Console(stderr=True, highlight=False).print(message, style=colour, markup=False, soft_wrap=True)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """Print each UserWarning on one line, in the main process; those of leaks in red."""
    from cyclofocal.lab.data.check_table import LeakWarning

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if is_main():
            warn(str(message), "bold red" if issubclass(category, LeakWarning) else "yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def warn_of_rows(data: "DataSet") -> None:
    """Warn, in the main process, of rows of a table that equal a training row."""
    from cyclofocal.lab.data.check_table import shared_rows

    if is_main():
        for sentence in shared_rows(data):
            warn(f"warning: {sentence}")


def warn_never_focal(pairs: Iterable[tuple[Recipe, LossSettings]]) -> None:
    """Warn before training of losses that never reach their focal phase."""
    from cyclofocal.lab.training.schedule import never_focal

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
    for problem in find_copies(data.splits, classes=data.classes).problems:
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
