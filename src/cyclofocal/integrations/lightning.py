"""Lightning: a callback that sets the clock before every batch, and other values that cycle with it."""

import math
from typing import Any

from torch import Tensor

from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss, check_criterion, set_clock
from cyclofocal.losses import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.ranges import check_at_least
from cyclofocal.schedules import interpolate

require_host("lightning", "2.5", never=("2.6.2", "2.6.3"))  # before the import: these two are malware

from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging  # noqa: E402

_Range = tuple[float, float]


def _is_range(ends: object) -> bool:
    return isinstance(ends, tuple | list) and len(ends) == 2 and all(0 < end < math.inf for end in ends)


class CyclicalFocalCallback(Callback):
    """Callback that sets the clock of every cyclical loss in a LightningModule before each batch.

    Progress follows the trainer's count of optimiser steps, so it is right under resume, gradient accumulation,
    max_steps, max_epochs and several processes, and the callback needs no state. Weight averaging averages buffers too,
    those of the clock included; they are restored in validation, after training and, if this callback is listed after
    it, in checkpoints. Eta is logged as ``eta`` at the trainer's ``log_every_n_steps``.

    The same eta can drive general cyclical training, each range given as (value at eta 1, value at eta 0), both > 0:

    * ``weight_decay`` of the parameter groups that have one; groups at 0 stay there;
    * ``temperature``: fills the module's tensor ``temperature``, by which ``training_step`` divides the logits; outside
      of training it is 1;
    * ``gradient_clip_val`` of the trainer.

    Args:
        total_steps: optimiser steps of the whole training, as counted by ``trainer.global_step``. Needed with manual
            optimisation or GradientAccumulationScheduler only; otherwise the trainer knows it.
        weight_decay, temperature, gradient_clip_val: None, or a range to cycle in. Of several losses with
            different schedules, the first one's eta is used.

    Raises:
        ValueError: a range is not positive; at the start of training: no loss in the module, a loss that counts
            steps itself, an unknown number of steps, or nothing to apply a range to.

    Example:
        >>> CyclicalFocalCallback(weight_decay=(1e-5, 8e-5)).weight_decay
        (1e-05, 8e-05)

    Reference: L. N. Smith, arXiv 2202.08978 (the loss) and 2202.08835 (other cyclical values).
    """

    def __init__(
        self,
        *,
        total_steps: int | None = None,
        weight_decay: _Range | None = None,
        temperature: _Range | None = None,
        gradient_clip_val: _Range | None = None,
    ) -> None:
        check_at_least("total_steps", total_steps)
        ranges = {"weight_decay": weight_decay, "temperature": temperature, "gradient_clip_val": gradient_clip_val}
        for name, ends in ranges.items():
            if ends is not None and not _is_range(ends):
                raise ValueError(f"{name} is {ends}; it must be (value at eta 1, value at eta 0), both > 0")
        self.total_steps = total_steps
        self.weight_decay = weight_decay
        self.temperature = temperature
        self.gradient_clip_val = gradient_clip_val
        self._losses: list[Loss] = []
        self._total_steps = 0
        self._progress = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = _losses_in(pl_module)
        self._total_steps = self.total_steps or _total_steps(trainer, pl_module)
        if self.temperature:
            _set_temperature(pl_module, 1.0)
        self._check_driven(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for loss in self._losses:
            self._progress = set_clock(loss, trainer.global_step, self._total_steps)
        eta = self._losses[0].schedule(self._progress)
        pl_module.log("eta", eta, on_step=True, on_epoch=False)
        if self.weight_decay:
            for group in _decayed_groups(trainer):
                group["weight_decay"] = interpolate(eta, *self.weight_decay)
        if self.temperature:
            _set_temperature(pl_module, interpolate(eta, *self.temperature))
        if self.gradient_clip_val:
            trainer.gradient_clip_val = interpolate(eta, *self.gradient_clip_val)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Restore the clock here, as weight averaging applies its averages after the start of validation."""
        self._restore(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the clock here, as weight averaging applies its averages at the end of training."""
        self._restore(pl_module)
        for loss in self._losses:
            loss.end_training()
        self._losses = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        for name, module in pl_module.named_modules():
            if module in self._losses:
                clock = {f"{name}.progress": self._progress, f"{name}.eta": module.schedule(self._progress)}
                state |= {key: state[key].new_tensor(value) for key, value in clock.items() if key in state}

    def _restore(self, pl_module: LightningModule) -> None:
        """Set the clock as at the last batch, and temperature 1."""
        for loss in self._losses:
            loss.set_progress(self._progress)
        if self.temperature:
            _set_temperature(pl_module, 1.0)

    def _check_driven(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a range for a value that does not exist or is not used."""
        if self.weight_decay and not _decayed_groups(trainer):
            raise ValueError(
                f"weight_decay is {self.weight_decay}, but no parameter group has a weight_decay > 0 to replace; give"
                " the optimizer one"
            )
        if self.gradient_clip_val and not pl_module.automatic_optimization:
            raise ValueError(
                f"gradient_clip_val is {self.gradient_clip_val}, but with manual optimization Lightning clips nothing"
            )


def _losses_in(pl_module: LightningModule) -> list[Loss]:
    losses = [m for m in pl_module.modules() if isinstance(m, (CyclicalFocalLoss, BinaryCyclicalFocalLoss))]
    if not losses:
        raise ValueError(
            "there is no CyclicalFocalLoss or BinaryCyclicalFocalLoss in the LightningModule; assign it in __init__, as"
            " in self.criterion = CyclicalFocalLoss()"
        )
    for loss in losses:
        check_criterion(loss)
    return losses


def _total_steps(trainer: Any, pl_module: LightningModule) -> int:
    """Return the value of ``trainer.global_step`` at the end of training."""
    if not pl_module.automatic_optimization:
        raise ValueError("total_steps is None; give it, as the trainer does not count it with manual optimization")
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        raise ValueError(
            "total_steps is None; give it, as the trainer does not know it with GradientAccumulationScheduler"
        )
    total = trainer.estimated_stepping_batches
    if not 0 < total < math.inf:  # -1 for a loader without length
        raise ValueError("total_steps is None, and this training has no known end; set max_steps or give total_steps")
    for callback in trainer.callbacks:  # with batch norm it appends an epoch that has no steps
        if isinstance(callback, StochasticWeightAveraging) and callback.swa_end + 1 < trainer.max_epochs:
            per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
            total = min(total, per_epoch * (callback.swa_end + 1))
    return int(total)


def _decayed_groups(trainer: Trainer) -> list[dict[str, Any]]:
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return [group for group in groups if group.get("weight_decay", 0) > 0]


def _set_temperature(pl_module: LightningModule, value: float) -> None:
    temperature = getattr(pl_module, "temperature", None)
    if not isinstance(temperature, Tensor):
        raise ValueError(
            "temperature has a range, but the LightningModule has no tensor of that name; call"
            ' register_buffer("temperature", torch.ones(()), persistent=False) and divide the logits by it'
        )
    temperature.fill_(value)
