"""Print what will be trained before the first run, the time it will take after it, and ask before very long runs."""

import sys
from collections.abc import Sequence
from datetime import timedelta

import typer

from cyclofocal.lab.commands.output import warn
from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.messages import counted
from cyclofocal.lab.recipes.detection import SMALL_BACKBONE, DetectionRecipe
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.job import Job

LARGE_IMAGE = 128
"""Pixels from which an epoch of a network of timm takes minutes to hours on a CPU."""

MOST_PLANNED = 3
"""Most experiments that a plan describes one by one."""


def plan_lines(jobs: Sequence[Job]) -> list[str]:
    """Describe data, model and epochs of each experiment, and the losses and seeds of all."""
    recipes = list({job.recipe.name: job.recipe for job in jobs}.values())
    described = [_description(recipe) for recipe in recipes[:MOST_PLANNED]]
    if len(recipes) > MOST_PLANNED:
        described = [f"{len(recipes)} experiments, from {recipes[0].title} to {recipes[-1].title}"]
    losses = dict.fromkeys(job.loss.title for job in jobs if not job.loss.estimator)
    references = dict.fromkeys(job.loss.title for job in jobs if job.loss.estimator)
    seeds = {job.seed for job in jobs}
    sides = f"{counted(len(losses), 'loss', 'losses')} ({', '.join(losses)}), "
    if references:
        sides += f"{counted(len(references), 'reference', 'references')} ({', '.join(references)}), "
    sides += counted(len(seeds), "seed", "seeds")
    folds = max(recipe.data.cross_validation[1] if recipe.data.cross_validation else 1 for recipe in recipes)
    return [*described, sides + (f", {folds} folds each" if folds > 1 else "")]


def _description(recipe: Recipe) -> str:
    model, pixels = recipe.model, f", {recipe.image_size} x {recipe.image_size} pixels"
    if isinstance(recipe.data, TableData):
        pixels = ""
    if isinstance(recipe, DetectionRecipe):
        model, pixels = f"{model} on {recipe.backbone}", f", {recipe.image_size} pixels on the longer side"
    epochs = counted(recipe.total_epochs, "epoch", "epochs")
    return f"{recipe.title}: {model}{pixels}, {epochs}{_stopping(recipe)}"


def _stopping(recipe: Recipe) -> str:
    """The rule of early stopping; "" without."""
    if not recipe.early_stopping:
        return ""
    if isinstance(recipe.data, TableData) and not recipe.data.asks_for_validation:
        return ", no early stopping without validation rows"
    return f", or until {counted(recipe.early_stopping, 'epoch', 'epochs')} bring no smaller validation loss"


def time_left(seconds: Sequence[float], left: int) -> str:
    """Time of the runs that are left, at the mean time of those that ended; "" if none is left or none has ended."""
    if not left or not seconds:
        return ""
    about = timedelta(seconds=round(left * sum(seconds) / len(seconds)))
    return f"about {about} for {counted(left, 'run', 'runs')} more"


def confirm_cpu(jobs: Sequence[Job], yes: bool, cpu: bool) -> None:
    """Ask before a network of timm is trained on large images without an accelerator; exit if the answer is no.

    Where nobody can answer, because input or messages are no terminal, it is an error, so that a script neither waits
    for ever nor computes for days unnoticed.

    Args:
        jobs: runs that are still to be trained.
        yes: the user has agreed already.
        cpu: the runs stay on the CPU even if there is an accelerator.
    """
    large = next((job.recipe for job in jobs if is_large(job.recipe)), None)
    if yes or large is None or not (cpu or _without_accelerator()):
        return
    slow = f"{large.title}: {large.model} with {large.image_size} x {large.image_size} pixels is slow on a CPU"
    remedy = "in minutes: --small, a small network on 32 x 32 pixels, or --features of compare, a head alone"
    if isinstance(large, DetectionRecipe):
        remedy = "in minutes: --small, a small backbone on 320 pixels"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter(f"{slow}; give --yes to train it all the same; {remedy}.", param_hint="--yes")
    warn(f"{slow}, hours or days for {counted(len(jobs), 'run', 'runs')}; {remedy}")
    typer.confirm("Train on the CPU?", abort=True, err=True)


def is_large(recipe: Recipe) -> bool:
    """True for a network of timm, or backbone of torchvision, on images of :data:`LARGE_IMAGE` pixels or more."""
    if isinstance(recipe, DetectionRecipe):
        return recipe.backbone != SMALL_BACKBONE and recipe.image_size >= LARGE_IMAGE
    from cyclofocal.lab.training.models import MODELS

    return recipe.image_size >= LARGE_IMAGE and recipe.model not in MODELS and not isinstance(recipe.data, TableData)


def _without_accelerator() -> bool:
    import torch

    return not torch.accelerator.is_available()
