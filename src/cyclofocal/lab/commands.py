"""What ``cyclofocal`` can do: one function per command, its arguments checked before any work."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cyclofocal.lab import compare as comparison
from cyclofocal.lab.bench.command import bench
from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.recipes.recipe import LOSSES, LossSettings
from cyclofocal.lab.records import RunRecord

app = typer.Typer(
    help="Train with the cyclical focal loss and its relatives, and compare them honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RECIPES = {"digits": digits}
LEAST_COLUMNS = 80  # a narrower terminal wraps lines, which is better than a table without its last columns
PIPED_COLUMNS = 100
MOST_WORKERS = 8  # by default; each takes some 300 MB


app.command()(bench)


def _recipe_name(name: str) -> str:
    return _one_of(name, list(RECIPES), "recipe")


def _loss_names(names: str) -> str:
    allowed = [loss.name for loss in LOSSES]
    chosen = [_one_of(name.strip(), allowed, "loss") for name in names.split(",")]
    if repeated := [name for name in allowed if chosen.count(name) > 1]:
        raise typer.BadParameter(f"{repeated[0]!r} is given {chosen.count(repeated[0])} times; give each loss once.")
    if len(chosen) < 2:
        raise typer.BadParameter(f"{names!r} is one loss; a comparison needs two or more, separated by commas.")
    return ",".join(chosen)


def _at_least_one(count: int | None) -> int | None:
    if count is not None and count < 1:
        raise typer.BadParameter(f"{count} is too few; it must be 1 or more.")
    return count


def _picture_path(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in (".png", ".svg"):
        raise typer.BadParameter(f"{str(path)!r} must end in .png or .svg.")
    return path


@app.command()
def compare(
    recipe: Annotated[str, typer.Argument(help=f"One of: {', '.join(RECIPES)}.", callback=_recipe_name)],
    losses: Annotated[
        str,
        typer.Option(
            help=f"From {', '.join(loss.name for loss in LOSSES)}; differences are to ce, else to the first.",
            callback=_loss_names,
        ),
    ] = "ce,focal,asymmetric,cyclical",
    seeds: Annotated[int, typer.Option(help="Runs of each loss: seeds 0, 1, 2, ...", callback=_at_least_one)] = 10,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.", callback=_at_least_one)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: cores, 8 at most.", callback=_at_least_one)
    ] = None,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Folder; default: runs/RECIPE.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="A .png or .svg; default: comparison.png in the folder.", callback=_picture_path)
    ] = None,
) -> None:
    """Train every loss at every seed, paired by seed, and show what the losses change.

    Each finished run is kept as one JSON line in runs/ of the folder; the same command again reuses it.
    """
    experiment = RECIPES[recipe]()
    experiment = replace(experiment, epochs=epochs or experiment.epochs)
    chosen = [loss for name in losses.split(",") for loss in LOSSES if loss.name == name]
    out = out or Path("runs") / recipe
    picture = picture or out / "comparison.png"
    _make_folder(out / "runs", "--out")
    _make_folder(picture.parent, "--picture")
    cells = comparison.grid(experiment, chosen, range(seeds), out / "runs")
    records = _run_with_progress(cells, workers or default_workers())
    _show(records, chosen, picture)
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


def _show(records: Sequence[RunRecord], losses: Sequence[LossSettings], picture: Path) -> None:
    from cyclofocal.lab.figure import draw
    from cyclofocal.lab.report import conclusions, explanations, summarise, table

    summary = summarise(records, reference="ce" if any(loss.name == "ce" for loss in losses) else losses[0].name)
    console = Console(highlight=False)
    console.width = max(console.width, LEAST_COLUMNS) if console.is_terminal else PIPED_COLUMNS
    console.print(table(summary, console.width))
    for line in ("", *conclusions(summary), "", *explanations(summary)):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)
    draw(summary, picture)


def _one_of(given: str, allowed: list[str], what: str) -> str:
    if given in allowed:
        return given
    nearest = difflib.get_close_matches(given, allowed, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise typer.BadParameter(f"{given!r} is not a {what}; allowed: {', '.join(allowed)}.{hint}")


def _make_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{str(folder)!r} cannot be made: {error.strerror}.", param_hint=option) from None
    if not os.access(folder, os.W_OK):
        raise typer.BadParameter(f"{str(folder)!r} cannot be written to.", param_hint=option)
