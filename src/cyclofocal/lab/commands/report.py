"""``cyclofocal report``: stored records as HTML, Markdown, CSV, LaTeX or a terminal table."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cyclofocal.lab.commands.options import (
    Everything,
    Root,
    check_choice,
    check_metric_kind,
    make_folder,
    margin_of,
    metric_key,
    picture_path,
    refused,
)
from cyclofocal.lab.commands.output import print_comparison, warn
from cyclofocal.lab.data.tables import SUFFIXES
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.documents import EVIDENCE, has_place

if TYPE_CHECKING:
    from cyclofocal.lab.report.html import SampleSource
    from cyclofocal.lab.report.load import StoredRuns

FORMATS = (".html", ".md", ".csv", ".tex")


def _outputs(paths: list[Path] | None) -> list[Path] | None:
    for path in paths or ():
        if path.suffix.lower() not in FORMATS:
            raise typer.BadParameter(f"{str(path)!r} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
        if path.suffix.lower() == ".md" and has_place(path, EVIDENCE):
            raise typer.BadParameter(
                f"{str(path)!r} is a page with places for evidence, which would be overwritten; update them with"
                " `python -m cyclofocal.lab.report.documents`."
            )
    return paths


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS", help="Record files (.jsonl), or folders to search for them.")
    ],
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Output file: .html, .md, .csv or .tex; repeatable. Default: the terminal.",
            callback=_outputs,
        ),
    ] = None,
    reference: Annotated[
        str, typer.Option(metavar="LOSS", help="Reference loss of all comparisons; default: ce, or else the first.")
    ] = "",
    metric: Annotated[
        str,
        typer.Option(
            metavar="METRIC",
            help="Primary metric; default: the one given when the runs were started.",
            callback=lambda key: key and metric_key(key),
        ),
    ] = "",
    margin: Annotated[
        float | None,
        typer.Option(
            help="Margin of equivalence in the primary metric; default: the one given when the runs were started, else"
            " 0.5 points, or 0.005 if it is no percentage.",
            callback=margin_of,
        ),
    ] = None,
    everything: Everything = False,
    confusion: Annotated[
        Path | None,
        typer.Option(help="Figure of the confusion matrices to write, .png or .svg.", callback=picture_path),
    ] = None,
    root: Root = Path("data"),
    samples: Annotated[
        bool, typer.Option(help="Show on the HTML page the test images or rows that were most confidently wrong.")
    ] = True,
) -> None:
    """Report stored runs as HTML, Markdown, CSV, LaTeX or a terminal table.

    Damaged records are listed and left out.
    """
    for path in out or ():
        make_folder(path.parent, "--output")
    if confusion:
        make_folder(confusion.parent, "--confusion")
    with _no_garbage_collection():
        stored = _read(runs)
        records = stored.records
        if reference:
            _check_reference(records, reference)
        for boxes in {record.is_detection for record in records}:
            check_metric_kind(metric, boxes)
        if confusion:
            _draw_confusion(records, confusion)
        if not out:
            print_comparison(records, reference, metric, margin=margin, everything=everything)
            return
        from cyclofocal.lab.report.html import SampleSource
        from cyclofocal.lab.report.run_predictions import PredictionFiles

        source = SampleSource(PredictionFiles(stored), root, samples)
        makers = _makers(stored, reference, metric, margin, source)
        for path in out:
            path.write_text(makers[path.suffix.lower()](), encoding="utf-8")
            typer.echo(f"report  {path}")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which takes a third of the time of reading records."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _read(runs: list[Path]) -> "StoredRuns":
    from cyclofocal.lab.report.load import read_stored_runs

    if tables := [path for path in runs if path.suffix.lower() in SUFFIXES]:
        message = f"{str(tables[0])!r} is a table, not records of runs"
        remedy = f"`cyclofocal compare {tables[0]} --target COLUMN` makes some."
        raise typer.BadParameter(f"{message}; {remedy}", param_hint="RUNS")
    with refused("RUNS", FileNotFoundError):
        found = read_stored_runs(runs)
    for problem in found.problems:
        warn(problem)
    if not found.records:
        warn(f"no record of a finished run in {', '.join(map(str, runs))}", "red")
        raise typer.Exit(1)
    return found


def _check_reference(records: list[RunRecord], reference: str) -> None:
    from cyclofocal.lab.report.experiment import group_experiments

    names = {name for experiment in group_experiments(records) for name in experiment.runs}
    check_choice(reference, sorted(names), "loss of these runs", "--reference")


def _draw_confusion(records: list[RunRecord], path: Path) -> None:
    from cyclofocal.lab.report.experiment import group_experiments
    from cyclofocal.lab.report.figure import draw_confusion

    found = group_experiments(records)
    if len(found) > 1:
        reason = f"these are records of {len(found)} experiments; confusion matrices are drawn of one"
        raise typer.BadParameter(f"{reason}, so give its records alone.", param_hint="--confusion")
    try:
        draw_confusion(found[0], path)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--confusion") from None
    typer.echo(f"picture  {path}")


def _makers(
    stored: "StoredRuns", reference: str, metric: str, margin: float | None, samples: "SampleSource"
) -> dict[str, Callable[[], str]]:
    from cyclofocal.lab.report.experiment import group_experiments
    from cyclofocal.lab.report.export import csv_report, latex_report, markdown_report
    from cyclofocal.lab.report.html import page
    from cyclofocal.lab.report.ranking import ranking
    from cyclofocal.lab.report.summary import summaries

    found = summaries(group_experiments(stored.records), reference, metric, margin)
    ranked = ranking(found)
    return {
        ".html": lambda: page(found, ranked, stored.problems, samples),
        ".md": lambda: markdown_report(found, ranked, stored.problems),
        ".csv": lambda: csv_report(found),
        ".tex": lambda: latex_report(found, ranked),
    }
