"""The validation loss by which training stops early: the same measure in every epoch, and fair to every loss."""

import math
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.recipes.criterion import validation_criterion
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import VALIDATION_LOSS
from cyclofocal.lab.training.accelerator import from_main
from cyclofocal.lab.training.job import Job

SCALES = (0.05, 20.0)
"""Smallest and largest factor of the logits that is tried."""

SCALE_TOLERANCE = 0.01
"""Tolerance of the logarithm of the best factor."""

Measure = Callable[[Tensor, str], dict[str, float]]
"""Field of an epoch's row, from the logits of the validation set and a title for messages."""


def check_early_stopping(recipe: Recipe, data: DataSet) -> None:
    """Refuse early stopping of images without validation data; a table, where it is the default, trains all epochs.

    Raises:
        ValueError: no validation images.
    """
    if recipe.early_stopping and data.validation is None and not isinstance(recipe.data, TableData):
        raise ValueError(
            f"early_stopping is {recipe.early_stopping}, and {data.title} has no validation images to stop by: set"
            f" {recipe.data.validation_field}, or early_stopping=0"
        )


def build_measure(job: Job, class_counts: Sequence[int], target: Tensor) -> Measure:
    """Make the measure of a job; it gives nothing if the job does not stop early.

    It is the smallest :func:`~cyclofocal.lab.recipes.criterion.validation_criterion` of the logits times a factor in
    :data:`SCALES`, the loss after temperature scaling. Without the factor the loss of confident predictions would
    decide: at eta 1 a cyclical loss makes them confident from the first epoch on, so its first epochs would be the
    best, with hardly anything learnt; a focal loss makes the opposite. On a CPU, in float32.

    Args:
        job: of the run.
        class_counts: training samples per class.
        target: (N,) class indices of the validation set.

    Raises:
        MissingDataError, ValueError: a custom loss that cannot be used.
        FloatingPointError: when called, if the loss is not finite.
    """
    if not job.recipe.early_stopping:
        return lambda logits, title: {}
    criterion = validation_criterion(job.loss, class_counts)
    if job.loss.file and (job.recipe.mixup or job.recipe.cutmix):  # then it may take nothing but probabilities
        target = F.one_hot(target, len(class_counts)).float()

    @torch.no_grad()
    def measure(logits: Tensor, title: str) -> dict[str, float]:
        loss = float(criterion(logits, target))
        if not math.isfinite(loss):
            raise FloatingPointError(f"{title}: the loss of the validation set is {loss}; early stopping needs it")
        scaled = _smallest(lambda scale: float(criterion(logits * scale, target)))
        return {VALIDATION_LOSS: from_main(min(loss, scaled))}  # so that all processes stop at the same epoch

    return measure


def _smallest(loss_at: Callable[[float], float]) -> float:
    """Smallest loss over the factors; one that is not finite counts as very large."""
    from scipy.optimize import minimize_scalar

    def at(log_scale: float) -> float:
        loss = loss_at(math.exp(log_scale))
        return loss if math.isfinite(loss) else sys.float_info.max

    bounds = [math.log(scale) for scale in SCALES]
    return float(minimize_scalar(at, bounds=bounds, method="bounded", options={"xatol": SCALE_TOLERANCE}).fun)
