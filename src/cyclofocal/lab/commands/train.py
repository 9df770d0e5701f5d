"""``cyclofocal reproduce`` and ``cyclofocal train``: runs that keep all they need to go on after a kill."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.commands.options import (
    Root,
    Settings,
    at_least_one,
    changed,
    experiment_name,
    given_command,
    loss_names,
    losses_of,
    make_folder,
    one_of,
    own_source,
    recipe_name,
)
from cyclofocal.lab.commands.output import is_main, one_line_errors, warn_never_focal, warn_of_copies
from cyclofocal.lab.commands.two_stage import reproduce_stages, stages_of
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.image_folder import image_recipe
from cyclofocal.lab.recipes.loss import LOSSES, LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import RunRecord

Out = Annotated[Path, typer.Option(file_okay=False, help="Folder; a run lies in OUT/RECIPE/LOSS-seedK-HASH.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images from disk.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's files into the run's folder.")]
Trackers = Annotated[
    list[str] | None, typer.Option("--tracker", help="Another tracker that Accelerate knows, such as wandb or mlflow.")
]


def reproduce(
    name: Annotated[str, typer.Argument(help="A name from `cyclofocal recipes`.", callback=experiment_name)],
    loss: Annotated[
        str, typer.Option(help=f"From {', '.join(entry.name for entry in LOSSES)}.", callback=loss_names)
    ] = "ce,cyclical",
    seeds: Annotated[int, typer.Option(help="Runs of each loss: seeds 0, 1, 2, ...", callback=at_least_one)] = 1,
    stage: Annotated[int | None, typer.Option(min=1, max=2, help="Of an experiment in two stages; both.")] = None,
    lists: Annotated[Path | None, typer.Option(file_okay=False, help="Folder of published list files.")] = None,
    images: Annotated[Path | None, typer.Option(file_okay=False, help="Folder that their paths begin in.")] = None,
    settings: Settings = None,
    root: Root = Path("data"),
    out: Out = Path("runs"),
    workers: Workers = 0,
    cpu: Cpu = False,
    tensorboard: TensorBoard = False,
    tracker: Trackers = None,
) -> None:
    """Run a published or built-in experiment, loss by loss and seed by seed, and compare the losses.

    A run that was stopped goes on with the same command; one that has ended is not run again. Under
    `accelerate launch` or torchrun it uses all their processes.
    """
    if name in TWO_STAGES:
        from cyclofocal.lab.training.train import Setup

        stages = stages_of(name, settings or [], lists, images)
        setup = Setup(root, None, workers, cpu, True, _trackers(tensorboard, tracker), given_command())
        records = reproduce_stages(stages, loss, range(seeds), stage, out, setup)
        _compare(records, losses_of(loss))
        return
    if stage is not None or lists is not None or images is not None:
        raise typer.BadParameter(f"{name} has one stage and no lists.", param_hint="--stage, --lists, --images")
    recipe = changed(RECIPES[name](), settings)
    _run_all(recipe, losses_of(loss), range(seeds), root, out, workers, cpu, _trackers(tensorboard, tracker))


def train(
    name: Annotated[
        str | None, typer.Argument(help="A name from `cyclofocal recipes`; or give --data.", callback=recipe_name)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images of your own: a folder (train/ with test/ or val/ beside it, or classes alone and --set"
            " test_fraction=0.2), a list file (and --set image_root=, validation_list=, test_list=), torch/, hfds/,"
            " wds/ or tfds/NAME."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="One of ours, or any name that timm knows.")] = None,
    loss: Annotated[
        str, typer.Option(help=f"One of {', '.join(entry.name for entry in LOSSES)}.", callback=loss_names)
    ] = "cyclical",
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    settings: Settings = None,
    root: Root = Path("data"),
    out: Out = Path("runs"),
    workers: Workers = 0,
    cpu: Cpu = False,
    tensorboard: TensorBoard = False,
    tracker: Trackers = None,
) -> None:
    """Train one model, on a recipe's data or your own, and evaluate it once after the last epoch."""
    if (name is None) == (data is None):
        raise typer.BadParameter("give either the name of a recipe or --data, and not both.", param_hint="NAME")
    if data is not None:
        own_source(data, "--data", root)
    recipe = image_recipe(data) if data is not None else RECIPES[name or ""]()
    recipe = changed(recipe, settings)
    if model is not None:
        recipe = replace(recipe, model=model, width=0 if not _has(settings, "width") else recipe.width)
    if data is not None:
        from cyclofocal.lab.training.train import pinned

        with one_line_errors(out):
            recipe, images = pinned(recipe, root)
            warn_of_copies(images.title, images.splits)
    _run_all(recipe, losses_of(loss), [seed], root, out, workers, cpu, _trackers(tensorboard, tracker))


def _run_all(
    recipe: Recipe,
    losses: list[LossSettings],
    seeds: range | list[int],
    root: Path,
    out: Path,
    workers: int,
    cpu: bool,
    trackers: tuple[str, ...],
) -> None:
    """Every loss at every seed, one after the other; what went wrong is told in one line."""
    from cyclofocal.lab.training.run_folder import locked, run_folder
    from cyclofocal.lab.training.train import Setup, try_own_losses
    from cyclofocal.lab.training.train import train as train_one

    make_folder(out, "--out")
    runs = [(loss, seed, run_folder(out, recipe, loss, seed)) for seed in seeds for loss in losses]
    warn_never_focal((recipe, loss) for loss, _, folder in runs if not (folder / "record.jsonl").exists())
    with one_line_errors(out):
        try_own_losses(recipe, losses, root)
    records = []
    for loss, seed, folder in runs:
        setup = Setup(root, folder, workers, cpu, True, trackers, given_command())
        with one_line_errors(folder), locked(folder) if is_main() else nullcontext():
            again = is_main() and _ended_before(folder / "record.jsonl")
            records.append(train_one(recipe, loss, seed, setup))
        if is_main():
            typer.echo(_told(records[-1], folder) + (" (ended before, not run again)" if again else ""))
    _compare(records, losses)


def _ended_before(path: Path) -> bool:
    """True if there is a whole record; report what is wrong with a damaged one."""
    from cyclofocal.lab.training.run_folder import stored_record

    record, damaged = stored_record(path)
    for error in damaged:
        typer.echo(f"damaged record, will run again: {error}", err=True)
    return record is not None


def _compare(records: list[RunRecord], losses: list[LossSettings]) -> None:
    """The table of a comparison, where there is more than one loss."""
    if len(losses) > 1 and is_main():
        from cyclofocal.lab.commands.output import print_comparison

        print_comparison(records)


def _told(record: RunRecord, folder: Path) -> str:
    accuracy, nll, ece = (record.metrics.get(key) for key in ("accuracy", "nll", "ece"))
    return (
        f"{record.loss['title']}, seed {record.seed}: accuracy {_percent(accuracy)},"
        f" NLL {'none' if nll is None else f'{nll:.4f}'}, ECE {_percent(ece)}, {record.seconds:.0f} s, {folder}"
    )


def _percent(fraction: float | None) -> str:
    return "none" if fraction is None else f"{100 * fraction:.2f} %"


def _trackers(tensorboard: bool, others: list[str] | None) -> tuple[str, ...]:
    """Names of trackers, checked."""
    chosen = (*(["tensorboard"] if tensorboard else []), *(others or []))
    if chosen:
        from accelerate.utils import LoggerType

        allowed = [kind.value for kind in LoggerType if kind.value != "all"]
        for name in chosen:
            one_of(name, allowed, "tracker")
    return chosen


def _has(settings: list[str] | None, field: str) -> bool:
    return any(setting.split("=")[0] == field for setting in settings or [])
