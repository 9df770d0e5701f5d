"""Training state: model, optimizer, loss and moving average (EMA), prepared by Accelerate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cyclofocal.lab.recipes.criterion import build_criterion
from cyclofocal.lab.recipes.custom_loss import Criterion, try_loss
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.batches import Batch
from cyclofocal.lab.training.batchnorm import sync_batch_norm
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.models import build_model, use_cosine_classifier
from cyclofocal.lab.training.optim import build_optimizer
from cyclofocal.lab.training.schedule import ScheduledValues

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class TrainState:
    """One model in training.

    Attributes:
        model: whose weights are trained and stored.
        wrapped_model: the same as Accelerate prepared it, for precision and processes.
        ema: moving average of the weights (timm's ``ModelEmaV3``), or None.
        best: weights of ``eval_model`` in the best epoch so far; empty without early stopping.
    """

    accelerator: "Accelerator"
    model: nn.Module
    wrapped_model: nn.Module
    optimizer: Any
    criterion: Criterion
    ema: Any
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def eval_model(self) -> nn.Module:
        """The model whose predictions count: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def step(self, batch: Batch, images: Tensor, target: Tensor, now: ScheduledValues) -> tuple[Tensor, Tensor | None]:
        """One step of the optimiser; loss of this process's share, detached, and its logits, if there are any.

        The loss is weighed so that the mean over the processes is the mean over the whole batch.
        """
        loss, logits = self.loss(images, target, now)
        share = len(batch.labels) * self.accelerator.num_processes / batch.total
        for group in self.optimizer.param_groups:  # three times as fast as zero_grad, for a small model
            for weight in group["params"]:
                weight.grad = None
        self._backward(loss if share == 1 else loss * share)
        if now.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), now.clip_norm)
        self._optimizer_step()
        if self.ema is not None:
            self.ema.update(self.model)
        return loss.detach(), None if logits is None else logits.detach()

    def loss(self, images: Tensor, target: Tensor, now: ScheduledValues) -> tuple[Tensor, Tensor | None]:
        """Mean loss of this process's share, and its logits, if there are any."""
        logits = self.wrapped_model(images)
        return self.criterion(logits if now.temperature == 1 else logits / now.temperature, target), logits

    def _backward(self, loss: Tensor) -> None:
        if self.accelerator.scaler is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def _optimizer_step(self) -> None:
        if self.accelerator.scaler is None:
            self.optimizer.optimizer.step()  # Accelerate's wrapper looks for packages on the disk at every step
        else:
            self.optimizer.step()

    def keep_best(self) -> None:
        """Copy the present weights of the evaluated model, as those of the best epoch."""
        self.best = {name: value.clone() for name, value in self.eval_model.state_dict().items()}

    def restore_best(self) -> None:
        """Give the evaluated model the weights of the best epoch, if there are any."""
        if self.best:
            self.eval_model.load_state_dict(self.best)

    def state_dict(self) -> dict[str, Any]:
        """Weights, those of the best epoch, optimiser, clock, moving average and loss scaler."""
        scaler = self.accelerator.scaler
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "criterion": self.criterion.state_dict() if isinstance(self.criterion, nn.Module) else {},
            "average": self.ema.state_dict() if self.ema is not None else {},
            "scaler": scaler.state_dict() if scaler is not None else {},
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.criterion, nn.Module):
            self.criterion.load_state_dict(state["criterion"])
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        own, best = self.eval_model.state_dict(), state.get("best", {})
        if best and {name: value.shape for name, value in own.items()} != {n: v.shape for n, v in best.items()}:
            raise ValueError("best holds weights of another model")
        self.best = {name: value.to(own[name].device) for name, value in best.items()}


def initial_model(recipe: Recipe, classes: int, seed: int, inputs: int = 0, cosine_scale: float = 0.0) -> nn.Module:
    """The untrained model of a seed; the caller's random state is left as it was.

    Args:
        recipe, classes, inputs: as for :func:`~cyclofocal.lab.training.models.build_model`.
        seed: of the initialisation.
        cosine_scale: scale of a cosine classifier that replaces the last layer; 0 keeps the layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(recipe, classes, inputs)
        return use_cosine_classifier(model, cosine_scale) if cosine_scale else model


def try_custom_loss(recipe: Recipe, loss: LossSettings, class_counts: Sequence[int]) -> None:
    """Call a custom loss on targets as the recipe has them; others are not called.

    Raises:
        MissingDataError, ValueError: of :func:`~cyclofocal.lab.recipes.custom_loss.try_loss`.
    """
    if loss.file:
        soft, boxes = recipe.mixup > 0 or recipe.cutmix > 0, isinstance(recipe, DetectionRecipe)
        try_loss(loss.file, loss.digest, class_counts, soft, boxes)


def build_state(
    job: Job,
    model: nn.Module,
    accelerator: "Accelerator",
    class_counts: Sequence[int],
    make_optimizer: Callable[[nn.Module, Recipe], torch.optim.Optimizer] = build_optimizer,
    make_learner: Callable[..., TrainState] = TrainState,
    make_criterion: Callable[[LossSettings, Sequence[int]], Criterion] = build_criterion,
) -> TrainState:
    """The state at the beginning, with ``model`` on the accelerator's device.

    ``class_counts`` are the samples per class that the loss depends on.
    """
    recipe, device = job.recipe, accelerator.device
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    model = model.to(device).to(memory_format=layout)
    average = None
    if recipe.ema_decay:
        from timm.utils import ModelEmaV3

        average = ModelEmaV3(model, decay=recipe.ema_decay)  # before anything wraps the model
    if recipe.sync_batch_norm and accelerator.num_processes > 1:
        model = sync_batch_norm(model)
    criterion = make_criterion(job.loss, class_counts)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    forward, optimizer = accelerator.prepare(model, make_optimizer(model, recipe))
    return make_learner(accelerator, model, forward, optimizer, criterion, average)
