"""The optimizer of a run, and the scheduled values of loss and optimizer."""

from typing import Any

import torch
from torch import nn

from cyclofocal.lab.messages import did_you_mean
from cyclofocal.lab.recipes.custom_loss import Criterion
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.schedule import ScheduledValues


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all weights of ``model``: "sgd" and "adamw" are torch's, other names go to timm.

    Raises:
        ValueError: timm does not know the name.
    """
    return optimizer_over(weight_groups(model, recipe), recipe)


def optimizer_over(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over groups of weights."""
    if recipe.optimizer == "sgd":
        nesterov = recipe.nesterov and recipe.momentum > 0
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov, fused=True)
    if recipe.optimizer == "adamw":  # fused, which timm's is not on a CPU, where it takes half a step of a small model
        betas = (recipe.momentum, 0.999)
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)
    from timm.optim import create_optimizer_v2, list_optimizers

    if recipe.optimizer.lower().removeprefix("lookahead_") not in (known := list_optimizers()):
        hint = did_you_mean(recipe.optimizer, ["sgd", *map(str, known)])
        raise ValueError(f"optimizer is {recipe.optimizer!r}; it must be 'sgd', or a name that timm knows.{hint}")
    return create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.learning_rate, momentum=recipe.momentum)


def weight_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """One group, or two: biases and normalisation layers (one dimension or none) without weight decay."""
    weight_decay = recipe.weight_decay if recipe.weight_decay_range is None else recipe.weight_decay_range[1]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if recipe.decay_norms:
        return [_group(weights, weight_decay)]
    return [
        _group([weight for weight in weights if weight.ndim > 1], weight_decay),
        _group([weight for weight in weights if weight.ndim <= 1], 0.0),
    ]


def _group(weights: list[nn.Parameter], weight_decay: float) -> dict[str, Any]:
    return {"params": weights, "weight_decay": weight_decay, "decays": weight_decay > 0}


def apply_schedule(now: ScheduledValues, criterion: Criterion, optimizer: torch.optim.Optimizer) -> None:
    """Set the scheduled values on the loss and the optimizer.

    A group without weight decay stays without; ``lr_scale`` is a group's factor of the learning rate, as in timm.
    """
    if (set_progress := getattr(criterion, "set_progress", None)) is not None:
        set_progress(now.progress)
    for group in optimizer.param_groups:
        group["lr"] = now.learning_rate * group.get("lr_scale", 1.0)
        if group["decays"]:
            group["weight_decay"] = now.weight_decay
