"""``cyclofocal compare``: every loss at every seed of one or more experiments, and what the losses change."""

import os
import threading
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cyclofocal.lab.commands.backends import On, backend_of
from cyclofocal.lab.commands.options import (
    METRIC_KEYS,
    Root,
    Settings,
    at_least_one,
    changed,
    given_command,
    losses_of,
    make_folder,
    metric_key,
    picture_path,
)
from cyclofocal.lab.commands.output import warn_never_focal, warn_of_copies
from cyclofocal.lab.compare.display import Display
from cyclofocal.lab.compare.grid import Backend, BackendError, Cell, CellError, finished, grid
from cyclofocal.lab.metrics import PRIMARY
from cyclofocal.lab.recipes.loss import LOSSES, LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.resolve import check_name, resolve_recipes
from cyclofocal.lab.records import RunRecord


def _two_losses(names: str) -> str:
    if len(losses_of(names)) < 2:
        raise typer.BadParameter(f"{names!r} is one loss; a comparison needs two or more, separated by commas.")
    return names


def _share_of_a_gpu(share: float | None) -> float | None:
    if share is not None and not 0 <= share <= 1:
        raise typer.BadParameter(f"{share} is not in [0, 1]; a run uses one GPU at most.")
    return share


def compare(
    what: Annotated[
        list[str],
        typer.Argument(
            help="Names from `cyclofocal recipes`, tables (.csv, .parquet), folders of images, keel:NAME or keel:all."
        ),
    ],
    losses: Annotated[
        str,
        typer.Option(
            help=f"From {', '.join(loss.name for loss in LOSSES)}, each with settings after a colon, as in"
            " cyclical:gamma_hc=2,cyclical_factor=8; or your own, as in my_loss.py:function. Differences are to ce,"
            " else to the first.",
            callback=_two_losses,
        ),
    ] = "ce,focal,asymmetric,cyclical",
    seeds: Annotated[int, typer.Option(help="Runs of each loss: seeds 0, 1, 2, ...", callback=at_least_one)] = 10,
    target: Annotated[str, typer.Option(help="Column of a table that is to be predicted.")] = "",
    folds: Annotated[int | None, typer.Option(min=2, help="Parts of a cross-validation of each seed.")] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            metavar="TRIALS",
            help="Trainings by which each loss, ce too, chooses its settings first, on validation data.",
            callback=at_least_one,
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(help=f"That verdicts are on, of {', '.join(METRIC_KEYS)}.", callback=metric_key),
    ] = PRIMARY,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.", callback=at_least_one)] = None,
    settings: Settings = None,
    root: Root = Path("data"),
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder; a run lies in OUT/RECIPE/LOSS-seedK-HASH.")
    ] = Path("runs"),
    picture: Annotated[
        Path | None, typer.Option(help="A .png or .svg; default: comparison.png in OUT.", callback=picture_path)
    ] = None,
    on: Annotated[On, typer.Option(help="Where the runs run.")] = On.local,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine; default: cores, 8 at most.", callback=at_least_one)
    ] = None,
    cpus_per_run: Annotated[
        int, typer.Option(help="Threads; more than 1 may change the last digits.", callback=at_least_one)
    ] = 1,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            help="0.25: four runs on a GPU; 0: the CPU. Default: 0.25 on this machine.", callback=_share_of_a_gpu
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For --on slurm, such as partition=gpu or time=60.")
    ] = None,
) -> None:
    """Train every loss at every seed of every experiment, paired by seed, and show what the losses change.

    A run that has ended is kept, and not run again by this or any other command; one that was stopped goes on.
    """
    given = [*(settings or []), *([f"epochs={epochs}"] if epochs else []), *([f"folds={folds}"] if folds else [])]
    recipes = [changed(recipe, given) for recipe in _experiments(what, target, root)]
    chosen = losses_of(losses)
    recipes = [_pinned(recipe, root) if recipe.data.is_custom else recipe for recipe in recipes]
    if any(loss.file for loss in chosen):
        _try_own_losses(recipes, chosen, root)
    if tune:
        chosen = _tuned(chosen, tune, recipes, root)
    backend = backend_of(on, out, workers, cpus_per_run, gpus_per_run, slurm or [])
    picture = picture or out / "comparison.png"
    make_folder(out, "--out")
    make_folder(picture.parent, "--picture")
    cells = grid(recipes, chosen, range(seeds), out, root, given_command(), metric)
    records, failed = _run_with_progress(cells, backend)
    if records:
        from cyclofocal.lab.commands.output import print_comparison

        print_comparison(records, metric=metric, picture=picture)
    typer.echo(f"records  {out}")
    _tell_failed(failed, len(cells))


def _experiments(what: list[str], target: str, root: Path) -> list[Recipe]:
    """Of names separated by spaces or commas; a path may hold a comma."""
    names = [name for given in what for name in ([given] if os.path.exists(given) else given.split(","))]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise typer.BadParameter(f"{repeated[0]!r} is given {names.count(repeated[0])} times; give each once.")
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: _warn(str(message))
        try:
            for name in names:
                check_name(name, root)
            return [recipe for name in names for recipe in resolve_recipes(name, target)]
        except (OSError, ValueError) as error:
            raise typer.BadParameter(str(error), param_hint="WHAT") from None


def _warn(message: str) -> None:
    Console(stderr=True, highlight=False).print(message, style="yellow", markup=False, soft_wrap=True)


def _pinned(recipe: Recipe, root: Path) -> Recipe:
    """The reader's own images, looked through once rather than fail in every run; and what they are trained with."""
    from cyclofocal.lab.training.train import pinned

    try:
        found, data = pinned(recipe, root)
    except (ImportError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="WHAT") from None
    warn_of_copies(data.title, data.splits)
    how = f"{found.model}, {found.image_size} x {found.image_size} pixels, epochs {found.epochs}"
    typer.echo(f"{found.title}: {how}; others by --set model=small-convnet --set image_size=32 --epochs 20", err=True)
    return found


def _try_own_losses(recipes: list[Recipe], losses: list[LossSettings], root: Path) -> None:
    """Losses of the reader's own, called once for each experiment rather than fail in every run."""
    from cyclofocal.lab.training.train import try_own_losses

    try:
        for recipe in recipes:
            try_own_losses(recipe, losses, root)
    except (ImportError, OSError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--losses") from None


def _tuned(losses: list[LossSettings], trials: int, recipes: list[Recipe], root: Path) -> list[LossSettings]:
    """The losses with a budget of trials each, once all can be tuned on all data."""
    from cyclofocal.lab.compare.tuning import check_tuning

    tuned = [replace(x, name=f"{x.name}:tuned", title=f"{x.title}, tuned", trials=trials) for x in losses]
    try:
        for recipe in recipes:
            for loss in tuned:
                check_tuning(recipe, loss, root)
    except (OSError, ModuleNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="--tune") from None
    return tuned


def _run_with_progress(cells: list[Cell], backend: Backend) -> tuple[list[RunRecord], list[CellError]]:
    """Records in the cells' order, and what failed."""
    console = Console(stderr=True, highlight=False)
    done, damaged = finished(cells)
    for error in damaged:
        console.print(f"damaged record, will run again: {error}", style="yellow", markup=False, soft_wrap=True)
    console.print(f"{len(cells)} runs, {len(done)} of them finished before")
    missing, failed = [cell for cell in cells if cell not in done], list[CellError]()
    warn_never_focal((cell.recipe, cell.loss) for cell in missing)
    try:
        with closing(backend(missing)) as outcomes, Display(console, cells, done) as display:
            if missing:
                threading.Thread(target=_import_report, daemon=True).start()
            for cell, outcome in outcomes:
                display.end(cell, outcome)
                if isinstance(outcome, CellError):
                    failed.append(outcome)
                else:
                    done[cell] = outcome
    except (BackendError, KeyboardInterrupt) as error:
        kept = len(finished(cells)[0])
        reason = f"{error}; " if isinstance(error, BackendError) else ""
        said = f"stopped: {reason}{kept} of {len(cells)} runs are kept, the same command continues"
        console.print(said, style="red", markup=False, soft_wrap=True)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    return [done[cell] for cell in cells if cell in done], failed


def _import_report() -> None:
    """Two seconds that would pass at the end, while this process has nothing to do."""
    for name in ("scipy.stats", "matplotlib.backends.backend_agg"):
        import_module(name)


def _tell_failed(failed: Sequence[CellError], cells: int) -> None:
    """One line each, and the exit code."""
    if not failed:
        return
    console = Console(stderr=True, highlight=False)
    for error in failed:
        console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
    console.print(f"{len(failed)} of {cells} runs failed; the same command tries them again", style="red")
    raise typer.Exit(1)
