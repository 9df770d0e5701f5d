"""Arguments that several commands share, and what is wrong with them in words."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cyclofocal.lab.messages import did_you_mean
from cyclofocal.lab.metrics import METRICS
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.parse_losses import losses_in
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.resolve import check_name
from cyclofocal.lab.recipes.settings import SettingError, with_settings

METRIC_KEYS = [metric.key for metric in METRICS]

Root = Annotated[Path, typer.Option(file_okay=False, help="Folder where data sets are looked for.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Instead of the recipe's; may be repeated.")
]


def recipe_name(name: str | None) -> str | None:
    """Refuse a name that is no recipe's."""
    return None if name is None else check_choice(name, list(RECIPES), "recipe")


def experiment_name(name: str) -> str:
    """Refuse a name that is no recipe's, nor that of an experiment in two stages."""
    return check_choice(name, [*RECIPES, *TWO_STAGES], "recipe")


def loss_names(names: str) -> str:
    """Refuse what is not one or more different losses, separated by commas; see :func:`losses_of`."""
    losses_of(names)
    return names


def losses_of(names: str) -> list[LossSettings]:
    """The losses of a list, in their order; see :func:`~cyclofocal.lab.recipes.parse_losses.losses_in`.

    Raises:
        typer.BadParameter: one that cannot be used.
    """
    try:
        return losses_in(names)
    except SettingError as error:
        raise typer.BadParameter(str(error)) from None


def own_source(source: str, option: str, root: Path = Path("data")) -> None:
    """Refuse a source that two things have the name of; see :func:`~cyclofocal.lab.recipes.resolve.check_name`."""
    try:
        check_name(source, root)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def check_set_sources(settings: Sequence[str]) -> None:
    """Refuse what :func:`own_source` refuses in ``--set source=``, of a stage too."""
    for setting in settings:
        field, _, value = setting.partition("=")
        if field.rpartition(":")[2] == "source":
            own_source(value, "--set")


def apply_settings(recipe: Recipe, settings: list[str] | None) -> Recipe:
    """The recipe with ``--set`` applied."""
    check_set_sources(settings or [])
    try:
        return with_settings(recipe, settings or [])
    except SettingError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None


def at_least_one(count: int | None) -> int | None:
    """Refuse counts below 1."""
    if count is not None and count < 1:
        raise typer.BadParameter(f"{count} is too few; it must be 1 or more.")
    return count


def check_choice(given: str, allowed: list[str], what: str) -> str:
    """``given``, if it is allowed; else the nearest that is, in the message."""
    if given in allowed:
        return given
    hint = did_you_mean(given, allowed)
    raise typer.BadParameter(f"{given!r} is not a {what}; allowed: {', '.join(allowed)}.{hint}")


def metric_key(key: str) -> str:
    """Refuse a key that is no metric's."""
    return check_choice(key, METRIC_KEYS, "metric")


def make_folder(folder: Path, option: str) -> None:
    """Make a folder that can be written to, or say why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{str(folder)!r} cannot be made: {error.strerror}.", param_hint=option) from None
    if not os.access(folder, os.W_OK):
        raise typer.BadParameter(f"{str(folder)!r} cannot be written to.", param_hint=option)


def picture_path(path: Path | None) -> Path | None:
    """Refuse a picture in a format that is not drawn."""
    if path is not None and path.suffix.lower() not in (".png", ".svg"):
        raise typer.BadParameter(f"{str(path)!r} must end in .png or .svg.")
    return path


def command_line() -> str:
    """The command as it was given, for records."""
    return shlex.join(["cyclofocal", *sys.argv[1:]])
