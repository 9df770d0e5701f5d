"""Learning rate, eta and all else that varies over training, as a pure function of the time."""

import bisect
import math
from dataclasses import dataclass

from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.schedules import cyclical_eta, epoch_progress, interpolate

CYCLICAL_FACTOR = 4.0
"""Factor of the cycle where the loss has none."""


@dataclass(frozen=True)
class ScheduledValues:
    """The values of one epoch or step.

    Attributes:
        progress: of the training, in [0, 1].
        eta: of the loss and of all that cycles, in [0, 1]; None where nothing does.
        learning_rate: of parameter groups without a separate factor.
        weight_decay, temperature: never None.
        clip_norm: None where gradients are not clipped.
    """

    progress: float
    eta: float | None
    learning_rate: float
    weight_decay: float
    temperature: float
    clip_norm: float | None


def scheduled_values(recipe: Recipe, loss: LossSettings, epoch: int, step: int, steps: int) -> ScheduledValues:
    """Compute the values at ``step`` (from 0, of ``steps``) of ``epoch`` (from 0, of the recipe's total).

    With ``recipe.clock`` "epoch" the step changes nothing: the last epoch is at progress 1, as published. With
    "step" the last step of the last epoch is.
    """
    if recipe.clock == "epoch":
        progress, time = epoch_progress(epoch, recipe.total_epochs), float(epoch)
    else:
        progress = epoch_progress(epoch * steps + step, recipe.total_epochs * steps)
        time = epoch + step / steps
    eta = _eta(recipe, loss, progress)
    return ScheduledValues(
        progress=progress,
        eta=eta,
        learning_rate=loss.learning_rate_scale * learning_rate(recipe, time),
        weight_decay=_cycled(eta, recipe.weight_decay_range, recipe.weight_decay),
        temperature=_cycled(eta, recipe.temperature_range, 1.0),
        clip_norm=_cycled(eta, recipe.clip_norm_range, recipe.clip_norm),
    )


def never_focal(recipe: Recipe, loss: LossSettings, steps: int = 0) -> str:
    """Say that eta is 1 from the beginning to the end, so that nothing cycles; "" if it falls, or nothing would cycle.

    Args:
        recipe, loss: of the run.
        steps: of an epoch, which decide where ``recipe.clock`` is "step"; 0: not known, and then nothing is said.

    Example:
        >>> from cyclofocal.lab.data.config import data_config
        >>> recipe = Recipe("r", "a title", data_config("digits"), epochs=2, learning_rate=1.0)
        >>> never_focal(recipe, LossSettings("c", "cyclical", cyclical_factor=4.0))
        'cyclical on r: eta is 1 in both epochs, so its focal phase is never met; it takes 3 or more, or clock=step'
    """
    unit, count = ("epoch", 1) if recipe.clock == "epoch" else ("step", steps)
    count *= recipe.total_epochs
    if not 1 <= count <= 2:  # of three or more the middle ones have an eta below 1, whatever the factor
        return ""
    if any(_eta(recipe, loss, epoch_progress(time, count)) != 1 for time in range(count)):
        return ""
    what = "its focal phase is never met" if loss.cyclical_factor else "what cycles with it never moves"
    when = f"the only {unit}" if count == 1 else f"both {unit}s"
    remedy = "3 or more, or clock=step" if unit == "epoch" else "3 or more"
    return f"{loss.title} on {recipe.name}: eta is 1 in {when}, so {what}; it takes {remedy}"


def learning_rate(recipe: Recipe, time: float) -> float:
    r"""Learning rate at ``time`` in epochs: linear warm-up times the schedule, then the cooldown's constant.

    .. math:: lr_{min} + (lr - lr_{min}) \, w(t) \, s(t), \qquad s = (1 + \cos(\pi t / epochs)) / 2 \text{ for "cosine"}

    Example:
        >>> from cyclofocal.lab.data.config import data_config
        >>> recipe = Recipe("r", "a title", data_config("digits"), epochs=4, learning_rate=1.0)
        >>> [round(learning_rate(recipe, epoch), 3) for epoch in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    least = recipe.min_learning_rate
    if time >= recipe.epochs:
        return least if recipe.schedule != "step" else recipe.learning_rate * _step(recipe, time)
    return least + (recipe.learning_rate - least) * _warmup(recipe, time) * _shape(recipe, time)


def _warmup(recipe: Recipe, time: float) -> float:
    if time >= recipe.warmup_epochs:
        return 1.0
    if recipe.warmup_learning_rate is None:
        return (time + 1) / (recipe.warmup_epochs + 1)
    begin = recipe.warmup_learning_rate / recipe.learning_rate
    return begin + (1 - begin) * time / recipe.warmup_epochs


def _shape(recipe: Recipe, time: float) -> float:
    match recipe.schedule:
        case "cosine":
            return (1 + math.cos(math.pi * time / recipe.epochs)) / 2
        case "linear":
            return 1 - time / recipe.epochs
        case "step":
            return _step(recipe, time)


def _step(recipe: Recipe, time: float) -> float:
    return recipe.decay ** bisect.bisect_right(recipe.milestones, time)


def _eta(recipe: Recipe, loss: LossSettings, progress: float) -> float | None:
    ranges = (recipe.weight_decay_range, recipe.temperature_range, recipe.clip_norm_range)
    if loss.cyclical_factor is None and not any(ranges):
        return None
    return cyclical_eta(progress, loss.cyclical_factor or CYCLICAL_FACTOR)


def _cycled(eta, bounds, constant):  # type: ignore[no-untyped-def]
    """Value of a quantity: cycling within ``bounds`` where it has any, else constant."""
    return constant if bounds is None else interpolate(eta, *bounds)
