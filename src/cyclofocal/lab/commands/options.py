"""Options that several commands share, and their checks."""

import csv
import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cyclofocal.lab.commands.output import warn
from cyclofocal.lab.data.config import PREFIXES, SHARDS, is_table
from cyclofocal.lab.messages import did_you_mean
from cyclofocal.lab.metrics import BOX_METRICS, EVERY_METRIC, METRICS
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.detection import SMALL_DETECTOR, DetectionRecipe
from cyclofocal.lab.recipes.image_folder import SMALL_NETWORK
from cyclofocal.lab.recipes.loss import LIGHTGBM, LossSettings
from cyclofocal.lab.recipes.parse_losses import losses_in
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.settings import AnyRecipe, settings_of, with_settings

FIELDS = "fields="
"""Value of ``--set`` that lists all fields."""

METRIC_KEYS = [metric.key for metric in EVERY_METRIC]


def at_least_one(count: int | None) -> int | None:
    """Refuse counts below 1."""
    if count is not None and count < 1:
        raise typer.BadParameter(f"{count} is too few; it must be 1 or more.")
    return count


Root = Annotated[Path, typer.Option(file_okay=False, help="Folder that contains the data sets.")]
Out = Annotated[
    Path, typer.Option(file_okay=False, help="Output folder; a run is stored in OUT/RECIPE/LOSS-seedK-HASH.")
]
Lists = Annotated[Path | None, typer.Option(file_okay=False, help="Folder of the published list files.")]
Images = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder that the paths in list files or COCO files are relative to; default: that of the files.",
    ),
]
DataWorkers = Annotated[
    int,
    typer.Option("--data-workers", min=0, help="Number of processes that read images from disk."),
]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs; overrides the recipe's.", callback=at_least_one)]
Yes = Annotated[
    bool,
    typer.Option(
        "--yes",
        "-y",
        help="Train a large network on large images on the CPU without asking. Without it, and without a terminal to"
        " ask at, that is an error.",
    ),
]
Cpu = Annotated[bool, typer.Option("--cpu", help="Use the CPU even if a GPU is available.")]
Everything = Annotated[
    bool, typer.Option("--all", help="Print the tables of all metrics, the findings and the explanations as well.")
]
KeepModels = Annotated[
    bool, typer.Option(help="Store the model at the end, for `cyclofocal predict`, `export` and `lab.load`.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a field of the recipe, such as batch_size=64; repeatable. `--set fields=` lists all of them.",
    ),
]
Small = Annotated[
    bool,
    typer.Option(
        "--small",
        help="Train a small network on images of 32 x 32 pixels, of boxes 320, in minutes on a CPU; --set and --epochs"
        " still count.",
    ),
]
Drop = Annotated[
    str, typer.Option("--drop", metavar="COLUMN,...", help="Columns of a table to leave out, separated by commas.")
]
Group = Annotated[
    str,
    typer.Option(
        "--group", metavar="COLUMN", help="Column of a table whose rows of equal value stay on one side of every split."
    ),
]
Time = Annotated[
    str,
    typer.Option(
        "--time",
        metavar="COLUMN",
        help="Column of dates or numbers of a table: the latest rows are the test set, those before them validation.",
    ),
]
Identifier = Annotated[str, typer.Option("--id", metavar="COLUMN", help="Column of a table that names its rows.")]


def role_fields(drop: str, group: str, time: str, identifier: str) -> dict[str, Any]:
    """Fields of the data of a table from ``--drop``, ``--group``, ``--time`` and ``--id``, as far as they are given."""
    dropped = tuple(name.strip() for name in next(csv.reader([drop], skipinitialspace=True), []) if name.strip())
    fields = {"drop_columns": dropped, "group_column": group, "time_column": time, "id_column": identifier}
    return {name: value for name, value in fields.items() if value}


@contextmanager
def refused(option: str | None = None, *errors: type[Exception]) -> Iterator[None]:
    """Report a ValueError, or one of ``errors``, as what is wrong with the value of an option."""
    kinds: tuple[type[Exception], ...] = (ValueError, *errors)
    try:
        yield
    except kinds as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def recipe_or_path(name: str | None) -> str | None:
    """Refuse a name that is neither a recipe nor a source of data."""
    if name is None or is_table(name, "") or name.startswith((*PREFIXES, SHARDS)) or os.path.lexists(name):
        return name
    if Path(name).suffix:
        raise typer.BadParameter(f"{name}: no such file, and no recipe.{did_you_mean(name, RECIPES)}")
    return check_choice(name, list(RECIPES), "recipe")


def experiment_name(name: str) -> str:
    """Refuse a name that is neither a recipe nor a two-stage experiment."""
    return check_choice(name, [*RECIPES, *TWO_STAGES], "recipe")


def losses_of(names: str, boxes: bool = False, option: str = "--losses") -> list[LossSettings]:
    """Parse a list of losses, in order; see :func:`~cyclofocal.lab.recipes.parse_losses.losses_in`.

    Args:
        names: losses, separated by commas.
        boxes: True for losses of detectors.
        option: option that the messages name.

    Raises:
        typer.BadParameter: a loss is unknown or unusable.
    """
    with refused(option):
        return losses_in(names, boxes)


def trained_losses(names: str, boxes: bool = False, option: str = "--losses") -> list[LossSettings]:
    """Losses of networks, as :func:`losses_of`, without references.

    Raises:
        typer.BadParameter: a loss is unknown or unusable, or a reference.
    """
    losses = losses_of(names, boxes, option)
    for loss in losses:
        if loss.estimator:
            raise typer.BadParameter(
                f"{loss.name} is no loss but a reference, which is compared and not stored: `cyclofocal compare DATA"
                f" --losses ce,{loss.name}` shows its result; for a model to keep, fit it with"
                f" {'LightGBM' if loss.estimator == LIGHTGBM.estimator else 'scikit-learn'} itself.",
                param_hint=option,
            )
    return losses


def check_source(source: str, option: str, root: Path = Path("data")) -> None:
    """Refuse a source whose name is ambiguous, or warn; see :func:`~cyclofocal.lab.recipes.resolve.check_name`."""
    from cyclofocal.lab.recipes.resolve import check_name  # which imports torch, as readers of data do

    with warnings.catch_warnings(record=True) as said, refused(option):
        warnings.simplefilter("always", UserWarning)
        check_name(source, root)
    for warning in said:
        warn(str(warning.message))


def all_settings(settings: Sequence[str] | None, **options: int | Path | None) -> list[str]:
    """``--set`` together with options for single fields, such as ``--epochs``, which count last."""
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    return [*(settings or []), *given]


def check_set_sources(settings: Sequence[str]) -> None:
    """Apply :func:`check_source` to ``--set source=``, also with the prefix of a stage."""
    for setting in settings:
        field, _, value = setting.partition("=")
        if field.rpartition(":")[2] == "source":
            check_source(value, "--set")


def apply_settings(recipe: AnyRecipe, settings: list[str] | None, small: bool = False) -> AnyRecipe:
    """Apply ``--small`` and then ``--set`` to the recipe, or list its fields.

    Raises:
        typer.BadParameter: a setting that the recipe refuses, or ``--small`` for anything but a user's images.
    """
    if small and not recipe.data.is_custom:
        raise typer.BadParameter(f"{recipe.title} is no folder or list of images; leave it out.", param_hint="--small")
    list_fields(settings or [], recipe)
    check_set_sources(settings or [])
    network = SMALL_DETECTOR if isinstance(recipe, DetectionRecipe) else SMALL_NETWORK
    with refused("--set"):
        return with_settings(recipe, [*(network if small else ()), *(settings or [])])


def list_fields(settings: Sequence[str], *recipes: Recipe) -> None:
    """End the command with the fields of the recipes as settings, if ``fields=`` is among those given."""
    if FIELDS not in settings:
        return
    for recipe in recipes:
        typer.echo(f"{recipe.title}:")
        for setting in settings_of(recipe):
            typer.echo(f"  {setting}")
    raise typer.Exit


def check_choice(given: str, allowed: list[str], what: str, option: str | None = None) -> str:
    """Return ``given`` if it is allowed; otherwise raise an error that suggests the closest name."""
    if given in allowed:
        return given
    hint = did_you_mean(given, allowed)
    raise typer.BadParameter(f"{given!r} is not a {what}; allowed: {', '.join(allowed)}.{hint}", param_hint=option)


def metric_key(key: str) -> str:
    """Refuse a key that is not a metric."""
    return check_choice(key, METRIC_KEYS, "metric")


def check_metric_kind(metric: str, boxes: bool) -> None:
    """Refuse a metric of boxes for runs of classes, and the reverse."""
    known = [found.key for found in (BOX_METRICS if boxes else METRICS)]
    if metric and metric not in known:
        raise typer.BadParameter(
            f"{metric} is no metric of {'boxes' if boxes else 'classes'}; allowed: {', '.join(known)}.",
            param_hint="--metric",
        )


def margin_of(margin: float | None) -> float | None:
    """Refuse a margin of equivalence that is not a finite number above 0."""
    if margin is not None and not 0 < margin < math.inf:
        raise typer.BadParameter(f"{margin} is no margin; it must be a finite number above 0, such as 0.5.")
    return margin


def make_folder(folder: Path, option: str) -> None:
    """Create a writable folder, or refuse the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{str(folder)!r} cannot be created: {error.strerror}.", param_hint=option) from None
    if not os.access(folder, os.W_OK):
        raise typer.BadParameter(f"{str(folder)!r} is not writable.", param_hint=option)


def picture_path(path: Path | None) -> Path | None:
    """Refuse a figure in an unsupported format."""
    if path is not None and path.suffix.lower() not in (".png", ".svg"):
        raise typer.BadParameter(f"{str(path)!r} must end in .png or .svg.")
    return path


def command_line() -> str:
    """The command line, for records."""
    return shlex.join(["cyclofocal", *sys.argv[1:]])
