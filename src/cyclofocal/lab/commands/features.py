"""``--features``: train only a head, on features that a frozen network gives once."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cyclofocal.lab.commands.options import apply_settings, refused
from cyclofocal.lab.commands.output import one_line_errors, warn_of_images
from cyclofocal.lab.compare.grid import finished
from cyclofocal.lab.compare.local import cores, gpus
from cyclofocal.lab.oltr.frozen import FrozenBackbone, find_backbone
from cyclofocal.lab.recipes.head import HeadRecipe, head_recipe
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.features import features_digest, store_features
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.train import load_data, with_data_digest

FOLDER = "features"
"""Subfolder of the output folder."""

READERS_PER_GPU = 8
"""Most processes that decode images for a GPU; a CPU is slower than one process that decodes."""


def backbone_of(given: str) -> FrozenBackbone:
    """The frozen network that ``--features`` names."""
    with refused("--features", OSError):
        return find_backbone(given)


@dataclass(frozen=True)
class FrozenFeatures:
    """The frozen network of a comparison, and where its features are stored.

    Attributes:
        backbone: the network.
        settings: of ``--set``, for the head and the data.
        root, out: folders of data sets and of runs.
    """

    backbone: FrozenBackbone
    settings: list[str]
    root: Path
    out: Path

    def head(self, recipe: Recipe) -> HeadRecipe:
        """The recipe of a head on the features of a recipe's images, fixed to the content of these images."""
        frozen = self.backbone
        with refused("--features"):
            head = head_recipe(recipe, **frozen.fields)
        head = apply_settings(head, self.settings)
        if head.channels != (channels := frozen.preparation["channels"]):
            raise typer.BadParameter(
                f"channels is {head.channels}, but {frozen.title} takes {channels}; leave it out.", param_hint="--set"
            )
        with refused("--set"):
            frozen.check_size(head.image_size)
        if head.data.is_custom:
            head, data = with_data_digest(head, self.root)
            warn_of_images(head.data, data)
        else:
            data = load_data(head, self.root, 0)
        found = features_digest(data, head)
        size = f"{head.image_size} x {head.image_size} pixels"
        typer.echo(f"{head.title}: {head.model}, epochs {head.epochs}; {size} for {frozen.title}", err=True)
        return replace(head, features_digest=found, features_folder=str((self.out / FOLDER / found).resolve()))

    def compute(self, jobs: Sequence[Job], gpus_per_run: float | None) -> None:
        """Store the features of all jobs that have not finished, as far as they are not stored."""
        done = finished(jobs)[0]
        on_cpu = gpus_per_run == 0 or not gpus()
        options = RunOptions(self.root, 0 if on_cpu else min(cores(), READERS_PER_GPU), on_cpu)
        for recipe in dict.fromkeys(job.recipe for job in jobs if job not in done):
            assert isinstance(recipe, HeadRecipe)
            with one_line_errors(Path(recipe.features_folder)):
                _compute(recipe, self.backbone, options)


def _compute(recipe: HeadRecipe, backbone: FrozenBackbone, options: RunOptions) -> None:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("features"), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    data = load_data(recipe, options.root, 0)
    with closing(store_features(backbone.network, data, recipe, options)) as stored:
        n_images = next(stored)
        console.print(f"features of {n_images} images to compute" if n_images else "features stored before are used")
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=n_images)
            for count in stored:
                bar.advance(task, count)
