"""``cyclofocal compare``: every loss at every seed of one recipe, and what the losses change."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cyclofocal.lab import compare as comparison
from cyclofocal.lab.commands.arguments import (
    Root,
    Settings,
    at_least_one,
    changed,
    given_command,
    loss_names,
    losses_of,
    make_folder,
    picture_path,
    recipe_name,
)
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.recipe import LOSSES, LossSettings
from cyclofocal.lab.records import RunRecord

LEAST_COLUMNS = 80  # a narrower terminal wraps lines, which is better than a table without its last columns
PIPED_COLUMNS = 100
MOST_WORKERS = 8  # by default; each takes some 300 MB


def _two_losses(names: str) -> str:
    chosen = loss_names(names)
    if "," not in chosen:
        raise typer.BadParameter(f"{names!r} is one loss; a comparison needs two or more, separated by commas.")
    return chosen


def compare(
    recipe: Annotated[str, typer.Argument(help="A name from `cyclofocal recipes`.", callback=recipe_name)],
    losses: Annotated[
        str,
        typer.Option(
            help=f"From {', '.join(loss.name for loss in LOSSES)}; differences are to ce, else to the first.",
            callback=_two_losses,
        ),
    ] = "ce,focal,asymmetric,cyclical",
    seeds: Annotated[int, typer.Option(help="Runs of each loss: seeds 0, 1, 2, ...", callback=at_least_one)] = 10,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.", callback=at_least_one)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: cores, 8 at most.", callback=at_least_one)
    ] = None,
    settings: Settings = None,
    root: Root = Path("data"),
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Folder; default: runs/RECIPE.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A .png or .svg; default: comparison.png in the folder.", callback=picture_path)
    ] = None,
) -> None:
    """Train every loss at every seed, paired by seed, and show what the losses change.

    Each finished run is kept as one JSON line in runs/ of the folder; the same command again reuses it.
    """
    experiment = changed(RECIPES[recipe](), [*(settings or []), *([f"epochs={epochs}"] if epochs else [])])
    chosen = losses_of(losses)
    out = out or Path("runs") / recipe
    picture = picture or out / "comparison.png"
    make_folder(out / "runs", "--out")
    make_folder(picture.parent, "--picture")
    cells = comparison.grid(experiment, chosen, range(seeds), out / "runs", root, given_command())
    records = _run_with_progress(cells, workers or default_workers())
    show(records, chosen, picture)
    typer.echo(f"\npicture  {picture}\nrecords  {out / 'runs'}")


def default_workers() -> int:
    """One per core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def _run_with_progress(cells: Sequence[comparison.Cell], workers: int) -> list[RunRecord]:
    console = Console(stderr=True, highlight=False)
    done, damaged = comparison.finished(cells)
    for error in damaged:
        console.print(f"damaged record, will run again: {error}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"{len(cells)} runs, {len(done)} of them finished before")
    missing = [cell for cell in cells if cell not in done]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    try:
        with Progress(TextColumn("training"), *columns, console=console, disable=not missing) as progress:
            task = progress.add_task("training", total=len(cells), completed=len(done))
            done |= comparison.run(missing, workers, lambda record: progress.advance(task))
    except (comparison.CellError, KeyboardInterrupt) as error:
        kept = sum(cell.path.exists() for cell in cells)
        reason = f"{error}; " if isinstance(error, comparison.CellError) else ""
        console.print(
            f"stopped: {reason}{kept} of {len(cells)} runs are kept, the same command continues",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    return [done[cell] for cell in cells]


def show(records: Sequence[RunRecord], losses: Sequence[LossSettings], picture: Path | None) -> None:
    """Print the table of a comparison and its conclusions; draw the picture, if one is wanted."""
    from cyclofocal.lab.report import conclusions, explanations, summarise, table

    summary = summarise(records, reference="ce" if any(loss.name == "ce" for loss in losses) else losses[0].name)
    console = Console(highlight=False)
    console.width = max(console.width, LEAST_COLUMNS) if console.is_terminal else PIPED_COLUMNS
    console.print(table(summary, console.width))
    for line in ("", *conclusions(summary), "", *explanations(summary)):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)
    if picture is not None:
        from cyclofocal.lab.figure import draw

        draw(summary, picture)
