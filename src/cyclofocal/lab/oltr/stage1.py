"""The first stage: its network, and its weights at the end, which a second stage or another classifier begins with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal.lab.oltr.backbone import Narrowed
from cyclofocal.lab.oltr.stage_recipe import StageRecipe
from cyclofocal.lab.oltr.weights import load_weights
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.learner import initial_model
from cyclofocal.lab.training.run_folder import DamagedRunError, OtherRunError, Run, stored_identity


class FirstStageError(ValueError):
    """No stage 1 to begin with, or another one; the message says which is needed."""


def first_model(recipe: Recipe, classes: int, seed: int) -> nn.Module:
    """The network of stage 1 at its beginning, with the weights of ``weights_file`` and features of ``feature_length``.

    Raises:
        MissingDataError, ValueError: weights that are not there, or of another network.
    """
    assert isinstance(recipe, StageRecipe)
    model = initial_model(recipe, classes, seed)
    if recipe.weights_file:
        load_weights(model, Path(recipe.weights_file))
    if not recipe.feature_length:
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Narrowed(model, recipe.feature_length, classes)


def trained_model(recipe: StageRecipe, classes: int, seed: int, weights: dict[str, Tensor]) -> nn.Module:
    """The network of stage 1 with the weights that it ended with."""
    model = first_model(replace(recipe, pretrained=False, weights_file=""), classes, seed)
    model.load_state_dict(weights)
    return model


def first_weights(folder: Path, wanted: dict[str, Any]) -> dict[str, Tensor]:
    """Weights at the end of the one stage 1 that a stage 2 may begin with.

    Args:
        folder: of the run of stage 1.
        wanted: its :func:`~cyclofocal.lab.training.run_folder.identity`.

    Raises:
        FirstStageError: there is none, it has not ended, or it is another.
    """
    loss, seed = wanted["loss"]["title"], wanted["seed"]
    needed = f"stage 2 of {loss}, seed {seed}, begins with the stage 1 of the same loss and seed"
    try:
        if not (folder / "run.json").exists():
            raise FirstStageError(f"{folder}: no run there")
        Run(folder, wanted, writes=False)
        return last_weights(folder)
    except (FirstStageError, OtherRunError, DamagedRunError) as error:
        raise FirstStageError(f"{error}; {needed}") from None


def last_weights(folder: Path) -> dict[str, Tensor]:
    """Weights of a run that has ended: the moving average where there is one.

    Raises:
        FirstStageError: the run has not ended, or its last checkpoint is damaged.
        OtherRunError, DamagedRunError: the folder holds what is not its own.
    """
    run = Run(folder, stored_identity(folder), writes=False)
    if run.finished() is None:
        raise FirstStageError(f"{folder}: this run has not ended; let it end first")
    content, damaged = run.newest(("model", "average"))
    if damaged:
        raise FirstStageError(f"{damaged[0]}; remove the folder and run it again")
    if content is None:
        raise FirstStageError(
            f"{folder}: no checkpoint, and so no weights; `cyclofocal compare` leaves none. Run it again by `cyclofocal"
            " train` or `cyclofocal reproduce`, which do, with the same settings and another --out"
        )
    average = content["average"]  # of timm, which wraps the model
    return {name.removeprefix("module."): value for name, value in average.items()} if average else content["model"]
