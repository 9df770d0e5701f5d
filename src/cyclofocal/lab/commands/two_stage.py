"""Experiments in two stages, for ``cyclofocal reproduce``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cyclofocal.lab.commands.options import check_set_sources, make_folder, one_of
from cyclofocal.lab.commands.output import is_main, one_line_errors, warn_never_focal, warn_of_copies
from cyclofocal.lab.data.config import ListData
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.recipes.settings import with_settings
from cyclofocal.lab.records import RunRecord

if TYPE_CHECKING:
    from cyclofocal.lab.training.train import Setup

LISTS = ("source", "validation_list", "test_list")


def stages_of(name: str, settings: Sequence[str], lists: Path | None, images: Path | None) -> TwoStages:
    """The experiment with ``--lists``, ``--images`` and ``--set`` applied, in this order.

    Args:
        name: from TWO_STAGES.
        settings: ``FIELD=VALUE`` of both stages; ``1:FIELD=VALUE`` or ``2:FIELD=VALUE`` of one.
        lists: folder of the published lists, in place of the recipe's.
        images: folder that the lists' paths begin in; without it, that of the lists.
    """
    stages = TWO_STAGES[name]()
    check_set_sources(settings)
    changes = []
    if lists is not None or images is not None:
        if not isinstance(stages.first.data, ListData):
            raise typer.BadParameter(
                f"{name} is not read from published lists; --set source=PATH is a folder or list of your own.",
                param_hint="--lists, --images",
            )
        if lists is not None:
            changes = [f"{field}={lists / Path(getattr(stages.first.data, field)).name}" for field in LISTS]
        changes.append(f"image_root={images or lists}")
    try:
        first, second = (
            with_settings(recipe, [*changes, *_of_stage(settings, recipe.stage)])
            for recipe in (stages.first, stages.second)
        )
        return replace(stages, first=first, second=second)
    except ValueError as error:  # a SettingError, too
        raise typer.BadParameter(str(error), param_hint="--set") from None


def reproduce_stages(
    stages: TwoStages, losses: str, seeds: range, stage: int | None, out: Path, setup: "Setup"
) -> list[RunRecord]:
    """Both stages, or one, of every loss at every seed; returns the records of the last stage that was run."""
    from cyclofocal.lab.oltr.stages import load_open, train_first, train_second

    pairs = {first.name: (first, second) for first, second in stages.losses}
    chosen = [pairs[one_of(name, list(pairs), "loss")] for name in losses.split(",")]
    make_folder(out, "--out")
    runs = (run for pair in chosen for run in zip((stages.first, stages.second), pair, strict=True))
    warn_never_focal(run for run in runs if stage in (None, run[0].stage))
    records = []
    with one_line_errors(out):
        if stages.custom_images:  # `data check` is for published ones
            data = load_open(stages.first, setup.root, 0)
            warn_of_copies(data.known.title, data.splits)
        for seed in seeds:
            for pair in chosen:
                if stage != 2:
                    records.append(train_first(stages, pair, seed, out, setup))
                    _tell(records[-1])
                if stage != 1:
                    records.append(train_second(stages, pair, seed, out, setup))
                    _tell(records[-1])
    return [record for record in records if record.recipe["stage"] == (stage or 2)]


def _of_stage(settings: Sequence[str], stage: int) -> list[str]:
    """Settings of both stages and of this one, without their prefix."""
    kept = [setting.removeprefix(f"{stage}:") for setting in settings]
    return [setting for setting in kept if not setting.startswith(("1:", "2:"))]


def _tell(record: RunRecord) -> None:
    if not is_main():
        return
    found = {name: f"{100 * value:.1f}" for name, value in record.metrics.items() if value is not None}
    groups = "/".join(found.get(name, "none") for name in ("many", "medium", "few", "accuracy"))
    line = f"{record.recipe['title']}, {record.loss['title']}, seed {record.seed}: many/medium/few/all {groups} %"
    if "f_oltr" in record.metrics:
        line += f", open set: F (oltr) {found.get('f_oltr', 'none')} %, AUROC {found.get('auroc', 'none')} %"
    typer.echo(f"{line}, {record.seconds:.0f} s")
