"""Experiments in two stages, for ``cyclofocal reproduce`` and ``cyclofocal compare``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from cyclofocal.lab.commands.options import check_set_sources, list_fields, refused
from cyclofocal.lab.commands.output import warn_of_images
from cyclofocal.lab.data.config import ListData
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.recipes.settings import with_settings
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.training.job import Job

LISTS = ("source", "validation_list", "test_list")


def stages_of(name: str, settings: Sequence[str], lists: Path | None = None, images: Path | None = None) -> TwoStages:
    """The experiment with ``--lists``, ``--images`` and ``--set`` applied, in this order.

    Args:
        name: from TWO_STAGES.
        settings: ``FIELD=VALUE`` of both stages; ``1:FIELD=VALUE`` or ``2:FIELD=VALUE`` of one.
        lists: folder of the published lists, in place of the recipe's.
        images: folder that the lists' paths begin in; without it, that of the lists.
    """
    stages = TWO_STAGES[name]()
    list_fields(settings, stages.first, stages.second)
    check_set_sources(settings)
    changes = []
    if lists is not None or images is not None:
        if not isinstance(stages.first.data, ListData):
            raise typer.BadParameter(
                f"{name} is not read from published lists; give your own folder or list as --set source=PATH.",
                param_hint="--lists, --images",
            )
        if lists is not None:
            changes = [f"{field}={lists / Path(getattr(stages.first.data, field)).name}" for field in LISTS]
        changes.append(f"image_root={images or lists}")
    with refused("--set"):
        first, second = (
            with_settings(recipe, [*changes, *_of_stage(settings, recipe.stage)])
            for recipe in (stages.first, stages.second)
        )
        return replace(stages, first=first, second=second)


def jobs_of_stages(jobs: Sequence[Job], stage: int | None) -> list[Job]:
    """Jobs of one stage, or of both in their order.

    Args:
        jobs: of stage 2, each with its stage 1.
        stage: 1, 2, or None for both.
    """
    stages = [(job.stage1, job) for job in jobs]
    return [job for pair in stages for job in pair if job is not None and stage in (None, 2 if job.stage1 else 1)]


def check_stage1(jobs: Sequence[Job]) -> None:
    """Refuse jobs of stage 2 alone whose stage 1 has not ended.

    Raises:
        Stage1Error: says which is needed.
    """
    from cyclofocal.lab.oltr.stage1 import stage1_weights

    for job in jobs:
        if job.stage1 is not None:
            stage1_weights(job.stage1)


def warn_of_images_of(stages: TwoStages, root: Path) -> None:
    """Apply :func:`warn_of_images` to a user's images; ``data check`` is for published ones."""
    from cyclofocal.lab.oltr.stages import load_open

    if stages.custom_images:
        warn_of_images(stages.first.data, load_open(stages.first, root, 0))


def stage_line(record: RunRecord) -> str:
    """The result of a stage in one line."""
    found = {name: f"{100 * value:.1f}" for name, value in record.metrics.items() if value is not None}
    groups = "/".join(found.get(name, "none") for name in ("many", "medium", "few", "accuracy"))
    line = f"{record.recipe['title']}, {record.loss['title']}, seed {record.seed}: many/medium/few/all {groups} %"
    if "f_oltr" in record.metrics:
        line += f", open set: F (oltr) {found.get('f_oltr', 'none')} %, AUROC {found.get('auroc', 'none')} %"
    return f"{line}, {record.seconds:.0f} s"


def _of_stage(settings: Sequence[str], stage: int) -> list[str]:
    """Settings of both stages and of this one, without their prefix."""
    found = [setting.removeprefix(f"{stage}:") for setting in settings]
    return [setting for setting in found if not setting.startswith(("1:", "2:"))]
