"""One epoch of training: every batch once, a row of numbers at the end, and a stop where the loss breaks."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cyclofocal.lab.data import Samples
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.batches import Batch, Share, Source, epoch_batches
from cyclofocal.lab.training.learner import Learner
from cyclofocal.lab.training.mixup import Mixer, mix
from cyclofocal.lab.training.optim import set_moment
from cyclofocal.lab.training.progress import Display
from cyclofocal.lab.training.schedule import Moment, moment

if TYPE_CHECKING:
    from accelerate import Accelerator

LOOK_EVERY = 50
"""Steps between two looks for a loss that is not finite, on an accelerator, which has to wait for them."""

NAMED = 5
"""Images of a batch that a message names; the indices it gives of all."""


@dataclass(frozen=True)
class Course:
    """What stays the same from epoch to epoch."""

    recipe: Recipe
    loss: LossSettings
    seed: int
    images: Samples
    source: Source
    mixer: Mixer | None

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        """Indices of every batch of the epoch, in all processes together."""
        return epoch_batches(self.seed, epoch, len(self.images), self.recipe.batch_size)


def run_epoch(learner: Learner, course: Course, epoch: int, display: Display) -> dict[str, Any]:
    """Train for one epoch; means of loss and accuracy as the model went through it, in all processes.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    started, device = time.perf_counter(), learner.accelerator.device
    share = Share(learner.accelerator.process_index, learner.accelerator.num_processes)
    rng.reseed(course.seed, rng.EPOCH, epoch, share.rank)  # for dropout and its like
    batches = course.batches(epoch)
    sums, watch = Sums(device), Watch(course, epoch, device)
    learner.forward.train()
    now = first = moment(course.recipe, course.loss, epoch, 0, len(batches))
    set_moment(first, learner.criterion, learner.optimizer)
    for step, batch in enumerate(course.source.train(batches, share, course.seed, epoch)):
        if step and course.recipe.clock == "step":
            now = moment(course.recipe, course.loss, epoch, step, len(batches))
            set_moment(now, learner.criterion, learner.optimizer)
        images, target = _mixed(course, batch, epoch, step)
        loss, logits = learner.step(batch, images, target, now)
        sums.add(loss, logits, target)
        watch.add(step, now, loss, batch)
        if display.step(batch.total):
            display.show(*sums.means())
    watch.look()
    loss_mean, accuracy = sums.means(learner.accelerator)
    row = {"epoch": epoch, **_values(course.recipe, first), "train_loss": loss_mean, "train_accuracy": accuracy}
    return row | {"seconds": round(time.perf_counter() - started, 3)}


class Sums:
    """Loss and accuracy so far, on the device; of a soft target the accuracy is its share of the predicted class."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.right = torch.zeros((), device=device, dtype=torch.float64)
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """A step of this process: the mean loss of its images."""
        self.images += len(target)
        self.loss.add_(loss, alpha=len(target))
        predicted = logits.argmax(1)
        self.right += (predicted == target if target.ndim == 1 else target.gather(1, predicted[:, None])).sum()

    def means(self, accelerator: "Accelerator | None" = None) -> tuple[float, float]:
        """Mean loss and accuracy; of all processes, if they are given, to be called in each of them."""
        sums = torch.stack([self.loss, self.right, self.loss.new_tensor(self.images)])
        loss, right, images = (sums if accelerator is None else accelerator.reduce(sums, "sum")).tolist()
        return loss / images, right / images


class Watch:
    """Stops a run whose loss is not finite; on an accelerator it looks at many losses at once."""

    def __init__(self, course: Course, epoch: int, device: torch.device) -> None:
        self.course, self.epoch = course, epoch
        self.every = 1 if device.type == "cpu" else LOOK_EVERY
        self.recent: list[tuple[int, Moment, Tensor, Tensor]] = []

    def add(self, step: int, now: Moment, loss: Tensor, batch: Batch) -> None:
        """Take note of a step; :meth:`look` when there are enough."""
        self.recent.append((step, now, loss, batch.indices))
        if len(self.recent) == self.every:
            self.look()

    def look(self) -> None:
        """Raise FloatingPointError for the first loss since the last look that is not finite."""
        if self.recent and not torch.stack([loss for _, _, loss, _ in self.recent]).isfinite().all():
            self._stop()
        self.recent.clear()

    def _stop(self) -> None:
        step, now, loss, indices = next(entry for entry in self.recent if not entry[2].isfinite())
        names = [self.course.images.name(int(index)) for index in indices[:NAMED]]
        more = ", ..." if len(indices) > NAMED else ""
        raise FloatingPointError(
            f"{self.course.loss.title}, seed {self.course.seed}: the training loss is {loss.item()} in epoch"
            f" {self.epoch}, step {step}, at learning rate {now.learning_rate:g}; batch of {', '.join(names)}{more}"
            f" (training images {' '.join(map(str, indices.tolist()))})"
        )


def _mixed(course: Course, batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    if course.mixer is None:
        return batch.images, batch.labels
    return mix(course.mixer, batch.images, batch.labels, course.seed, epoch, step)


def _values(recipe: Recipe, now: Moment) -> dict[str, float | None]:
    """What the clock has set at the beginning of the epoch, as far as it varies."""
    values: dict[str, float | None] = {"eta": now.eta, "learning_rate": now.learning_rate}
    for name in ("weight_decay", "temperature", "clip_norm"):
        if getattr(recipe, f"{name}_range") is not None:
            values[name] = getattr(now, name)
    return values
