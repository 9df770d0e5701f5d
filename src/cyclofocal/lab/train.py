"""The one training loop: a recipe, a loss and a seed in, a record out."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal import CyclicalFocalLoss, cyclical_focal_loss
from cyclofocal.lab.data import Split, load_digits, long_tailed_split
from cyclofocal.lab.longtail import exponential_counts
from cyclofocal.lab.metrics import evaluate
from cyclofocal.lab.models import SmallConvNet
from cyclofocal.lab.recipes.recipe import LossSettings, Recipe
from cyclofocal.lab.records import RunRecord, versions
from cyclofocal.schedules import epoch_progress

Criterion = Callable[[Tensor, Tensor], Tensor]


def train(recipe: Recipe, loss: LossSettings, seed: int) -> RunRecord:
    """Train one model and evaluate it once, on the test set, after the last epoch.

    Split, long tail, initialisation and data order follow from the seed alone, so the runs of two losses at one seed
    are a pair.

    Raises:
        FloatingPointError: the training loss is no longer finite.
    """
    started = time.perf_counter()
    counts = exponential_counts(recipe.head_images, recipe.imbalance, recipe.classes)
    split = long_tailed_split(*load_digits(), recipe.test_per_class, counts, seed)
    model = initial_model(recipe, seed)
    rows = fit(model, split, recipe, loss, seed)
    return RunRecord(
        recipe=asdict(recipe),
        loss=asdict(loss),
        seed=seed,
        versions=versions(),
        device="cpu",
        train_counts=list(split.train_counts),
        epochs=rows,
        metrics=evaluate(
            predict(model, split.test_images).numpy(), split.test_labels.numpy(), split.train_counts, recipe.groups
        ),
        seconds=round(time.perf_counter() - started, 3),
    )


def initial_model(recipe: Recipe, seed: int) -> SmallConvNet:
    """The untrained model of a seed; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallConvNet(recipe.classes, recipe.width)


def batches(split: Split, recipe: Recipe, seed: int, epoch: int) -> list[Tensor]:
    """Indices of every batch of an epoch: a fresh permutation that follows from seed and epoch alone."""
    order = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return list(torch.randperm(len(split.train_labels), generator=order).split(recipe.batch_size))


def fit(model: nn.Module, split: Split, recipe: Recipe, loss: LossSettings, seed: int) -> list[dict[str, Any]]:
    """Train ``model`` for all epochs of the recipe; one row per epoch."""
    criterion = build_criterion(loss)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    rows = []
    model.train()
    for epoch in range(recipe.epochs):
        row: dict[str, Any] = {"epoch": epoch, "eta": None, "learning_rate": learning_rate(recipe, epoch)}
        if isinstance(criterion, CyclicalFocalLoss):
            criterion.set_progress(epoch_progress(epoch, recipe.epochs))
            row["eta"] = criterion.eta.item()
        for group in optimizer.param_groups:
            group["lr"] = row["learning_rate"]
        row |= fit_epoch(model, criterion, optimizer, split, batches(split, recipe, seed, epoch))
        if not math.isfinite(row["train_loss"]):
            raise FloatingPointError(
                f"{loss.title}, seed {seed}: the training loss is {row['train_loss']} in epoch {epoch} at learning rate"
                f" {row['learning_rate']:g}"
            )
        rows.append(row)
    return rows


def fit_epoch(
    model: nn.Module, criterion: Criterion, optimizer: torch.optim.Optimizer, split: Split, order: list[Tensor]
) -> dict[str, float]:
    """One pass over the training set; means of loss and accuracy as the model went through it."""
    total_loss, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for indices in order:
        images, labels = split.train_images[indices], split.train_labels[indices]
        logits = model(images)
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
    samples = len(split.train_labels)
    return {"train_loss": total_loss.item() / samples, "train_accuracy": correct.item() / samples}


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of ``images`` in eval mode."""
    return model.eval()(images)


def build_criterion(loss: LossSettings) -> Criterion:
    """The loss as something to call on logits and labels; only the cyclical one has a clock to set."""
    if loss.is_cross_entropy:
        return nn.CrossEntropyLoss(label_smoothing=loss.label_smoothing)
    names = ("gamma_pos", "gamma_neg", "gamma_hc", "label_smoothing")
    settings: dict[str, Any] = {name: getattr(loss, name) for name in names}
    if loss.cyclical_factor is None:
        return functools.partial(cyclical_focal_loss, eta=0.0, **settings)
    return CyclicalFocalLoss(**settings, cyclical_factor=loss.cyclical_factor)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Linear warm-up, then half a cosine to 0 after the last epoch; constant within an epoch."""
    warmup = min(1.0, (epoch + 1) / (recipe.warmup_epochs + 1))
    return recipe.learning_rate * warmup * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
