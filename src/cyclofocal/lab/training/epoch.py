"""Train one epoch, return its metrics, and raise if the loss is not finite."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.batches import Batch, BatchLoader, Shard
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.mixup import Mixer, mix
from cyclofocal.lab.training.optim import apply_schedule
from cyclofocal.lab.training.progress import RunProgress
from cyclofocal.lab.training.schedule import ScheduledValues, scheduled_values
from cyclofocal.lab.training.train_state import TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator

CHECK_EVERY = 50
"""Steps between two checks for a loss that is not finite, on an accelerator, which has to wait for them."""

NAMED = 5
"""Number of images of a batch named in a message, which gives the indices of all."""


@dataclass(frozen=True)
class TrainContext:
    """The values that stay the same from epoch to epoch.

    Attributes:
        job: recipe, loss and seed.
        images: training images.
        source: where their batches come from.
        mixer: mixup and its like; None: there is none.
        batches: gives the indices of every batch of an epoch, in all processes together.
    """

    job: Job
    images: Samples
    source: BatchLoader
    mixer: Mixer | None
    batches: Callable[[int], tuple[Tensor, ...]]


def run_epoch(state: TrainState, context: TrainContext, epoch: int, display: RunProgress) -> dict[str, Any]:
    """Train for one epoch; means of loss and accuracy as the model went through it, in all processes.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    started, job, device = time.perf_counter(), context.job, state.accelerator.device
    recipe = job.recipe
    share = Shard(state.accelerator.process_index, state.accelerator.num_processes)
    rng.reseed(job.seed, rng.EPOCH, epoch, share.rank)  # for dropout and its like
    batches = context.batches(epoch)
    metrics, guard = EpochMetrics(device), NonFiniteGuard(context, epoch, device)
    state.wrapped_model.train()
    now = first = scheduled_values(recipe, job.loss, epoch, 0, len(batches))
    apply_schedule(first, state.criterion, state.optimizer)
    loaded = TimedBatches(context.source.train(batches, share, job.seed, epoch))
    for step, batch in enumerate(loaded):
        if step and recipe.clock == "step":
            now = scheduled_values(recipe, job.loss, epoch, step, len(batches))
            apply_schedule(now, state.criterion, state.optimizer)
        images, target = _mixed(context, batch, epoch, step)
        loss, logits = state.step(batch, images, target, now)
        metrics.add(loss, logits, target)
        guard.add(step, now, loss, batch)
        if display.step(batch.total):
            display.show(*metrics.means())
    guard.check()
    loss_mean, accuracy = metrics.means(state.accelerator)
    row = {"epoch": epoch, **_values(recipe, first), "train_loss": loss_mean}
    if accuracy is not None:
        row["train_accuracy"] = accuracy
    return row | {"data_seconds": round(loaded.seconds, 3), "seconds": round(time.perf_counter() - started, 3)}


class TimedBatches:
    """Iterate over batches, and add up the time in seconds that they take to be there."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches, self.seconds = iter(batches), 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.perf_counter() - started


class EpochMetrics:
    """Loss and accuracy so far, on the device; of a soft target the accuracy is its share of the predicted class.

    Where a step gives no logits there is no accuracy.
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.right = torch.zeros((), device=device, dtype=torch.float64)
        self.n_images, self.has_logits = 0, True

    def add(self, loss: Tensor, logits: Tensor | None, target: Tensor) -> None:
        """A step of this process: the mean loss of its images."""
        self.n_images += len(target)
        self.loss.add_(loss, alpha=len(target))
        if logits is None:
            self.has_logits = False
            return
        predicted = logits.argmax(1)
        self.right += (predicted == target if target.ndim == 1 else target.gather(1, predicted[:, None])).sum()

    def means(self, accelerator: "Accelerator | None" = None) -> tuple[float, float | None]:
        """Mean loss and accuracy; of all processes, if they are given, to be called in each of them."""
        metrics = torch.stack([self.loss, self.right, self.loss.new_tensor(self.n_images)])
        loss, right, n_images = (metrics if accelerator is None else accelerator.reduce(metrics, "sum")).tolist()
        return loss / n_images, right / n_images if self.has_logits else None


class NonFiniteGuard:
    """Raise where the loss is not finite; on an accelerator many losses are checked at once."""

    def __init__(self, context: TrainContext, epoch: int, device: torch.device) -> None:
        self.context, self.epoch = context, epoch
        self.every = 1 if device.type == "cpu" else CHECK_EVERY
        self.recent: list[tuple[int, ScheduledValues, Tensor, Tensor]] = []

    def add(self, step: int, now: ScheduledValues, loss: Tensor, batch: Batch) -> None:
        """Record a step, and :meth:`check` when there are enough."""
        self.recent.append((step, now, loss, batch.indices))
        if len(self.recent) == self.every:
            self.check()

    def check(self) -> None:
        """Raise FloatingPointError for the first loss since the last check that is not finite."""
        losses = [loss for _, _, loss, _ in self.recent]
        if self.every == 1:
            finite = all(math.isfinite(loss) for loss in losses)  # of one number, four times as fast as torch
        else:
            finite = not losses or bool(torch.stack(losses).isfinite().all())
        if not finite:
            self._stop()
        self.recent.clear()

    def _stop(self) -> None:
        step, now, loss, indices = next(entry for entry in self.recent if not entry[2].isfinite())
        names = [self.context.images.name(int(index)) for index in indices[:NAMED]]
        more = ", ..." if len(indices) > NAMED else ""
        raise FloatingPointError(
            f"{self.context.job.loss.title}, seed {self.context.job.seed}: the training loss is {loss.item()} in epoch"
            f" {self.epoch}, step {step}, at learning rate {now.learning_rate:g}; batch of {', '.join(names)}{more}"
            f" (training images {' '.join(map(str, indices.tolist()))})"
        )


def _mixed(context: TrainContext, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    if context.mixer is None:
        return batch.images, batch.labels
    return mix(context.mixer, batch.images, batch.labels, context.job.seed, epoch, step)


def _values(recipe: Recipe, now: ScheduledValues) -> dict[str, float | None]:
    """Values at the beginning of the epoch that vary over training."""
    values: dict[str, float | None] = {"eta": now.eta, "learning_rate": now.learning_rate}
    for name in ("weight_decay", "temperature", "clip_norm"):
        if getattr(recipe, f"{name}_range") is not None:
            values[name] = getattr(now, name)
    return values
