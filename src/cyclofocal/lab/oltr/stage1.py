"""The first stage: its network, and its weights at the end, which a second stage or another classifier begins with."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cyclofocal.lab.oltr.backbone import BottleneckHead
from cyclofocal.lab.oltr.stage_recipe import StageRecipe
from cyclofocal.lab.oltr.weights import load_weights
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import checkpoint
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.run_folder import (
    DamagedRunError,
    RunFolder,
    RunMismatchError,
    check_folder,
    check_same,
    identity_of,
    stored_identity,
    stored_record,
)
from cyclofocal.lab.training.train_state import initial_model


class Stage1Error(ValueError):
    """No stage 1 to begin with, or another one; the message says which is needed."""


class LastWeights(NamedTuple):
    """Weights at the end of a run, and the checkpoint they are from."""

    path: Path
    weights: dict[str, Tensor]


def stage1_model(recipe: Recipe, classes: int, seed: int) -> nn.Module:
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
        return BottleneckHead(model, recipe.feature_length, classes)


def trained_model(recipe: StageRecipe, classes: int, seed: int, last: LastWeights) -> nn.Module:
    """The network of stage 1 with the weights that it ended with.

    Raises:
        Stage1Error: they are of another network.
    """
    model = stage1_model(replace(recipe, pretrained=False, weights_file=""), classes, seed)
    try:
        model.load_state_dict(last.weights)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise Stage1Error(
            f"{last.path}: of another model ({said}); {_remedy(last.path, last.path.with_name('record.jsonl'))}"
        ) from None
    return model


def stage1_weights(job: Job) -> LastWeights:
    """Weights at the end of the one stage 1 that a stage 2 may begin with.

    Args:
        job: of stage 1.

    Raises:
        Stage1Error: there is none, it has not ended, or it is another.
    """
    try:
        assert job.folder is not None
        if not check_folder(job.folder, job.identity):
            raise Stage1Error(f"{job.folder}: no run there")
        return last_weights(job.folder)
    except (Stage1Error, RunMismatchError, DamagedRunError) as error:
        needed = f"stage 2 of {job.loss.title}, seed {job.seed}, begins with the stage 1 of the same loss and seed"
        raise Stage1Error(f"{error}; {needed}") from None


def last_weights(folder: Path) -> LastWeights:
    """Weights of a run that has ended: those of the best epoch with early stopping, or else the moving average, if any.

    Raises:
        Stage1Error: the run has not ended, or its record or last checkpoint is damaged.
        RunMismatchError, DamagedRunError: the folder holds what is not its own.
    """
    run = RunFolder(folder, stored_identity(folder), writes=False)
    record, damaged_lines = stored_record(run.record_path)
    if record is None and damaged_lines:
        raise Stage1Error(f"{damaged_lines[0]}; run it again")
    if record is None:
        raise Stage1Error(f"{folder}: this run has not ended; let it end first")
    check_same(run.record_path, identity_of(record), run.identity)
    content, damaged = run.load_latest(("model", "average"))
    if content is None and damaged:
        raise Stage1Error(f"{damaged[0]}; {_remedy(run.record_path)}")
    if content is None:
        raise Stage1Error(
            f"{folder}: no checkpoint, and so no weights; `cyclofocal compare` leaves none. Run it again by `cyclofocal"
            " train` or `cyclofocal reproduce`, which do, with the same settings and another --out"
        )
    path = checkpoint.checkpoints(folder)[len(damaged)]
    if (found := checkpoint.epoch_of(path)) != (last := len(record.epochs) - 1):
        fault = f"{damaged[0]}; " if damaged else ""
        raise Stage1Error(
            f"{fault}{path}: the newest whole checkpoint is of epoch {found}, and that of epoch {last}, the last, is"
            f" missing; {_remedy(run.record_path)}"
        )
    for error in damaged:
        print(f"damaged checkpoint, the one before is used: {error}", file=sys.stderr)
    if best := content.get("best"):
        return LastWeights(path, best)
    average = content["average"]  # of timm, which wraps the model
    values = {name.removeprefix("module."): value for name, value in average.items()} if average else content["model"]
    return LastWeights(path, values)


def _remedy(*files: Path) -> str:
    return f"remove {' and '.join(map(str, files))}, and run the same command again, which trains the missing epochs"
