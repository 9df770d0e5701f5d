"""Accelerate: progress by optimiser steps, under gradient accumulation and in its checkpoints."""

from typing import TYPE_CHECKING, Any

from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss, check_criterion, set_clock
from cyclofocal.ranges import check_at_least

if TYPE_CHECKING:
    from accelerate import Accelerator

require_host("accelerate", "1.2")


class LossScheduler:
    """Scheduler of a loss's progress: call ``step()`` in every batch, inside ``accumulate``.

    It counts the batches at which the accelerator lets the optimiser step, so an accumulation window that the end of
    the data cuts short counts once too. It registers itself for checkpointing: ``save_state`` saves the count,
    ``load_state`` sets the clock by it.

    Args:
        accelerator: the accelerator of the training.
        criterion: the loss; it is moved to the accelerator's device.
        total_steps: optimiser steps of the whole training, ``epochs * ceil(len(loader) / accumulation)`` with the
            prepared loader.

    Raises:
        TypeError, ValueError: criterion has no clock or counts itself (total_steps), or total_steps < 1.

    Example:
        >>> from accelerate import Accelerator
        >>> from cyclofocal import CyclicalFocalLoss
        >>> accelerator, criterion = Accelerator(cpu=True, gradient_accumulation_steps=2), CyclicalFocalLoss()
        >>> scheduler = LossScheduler(accelerator, criterion, total_steps=3)
        >>> for batch in range(4):
        ...     with accelerator.accumulate():
        ...         scheduler.step()
        >>> criterion.progress.item()
        1.0
    """

    def __init__(self, accelerator: "Accelerator", criterion: Loss, total_steps: int) -> None:
        check_criterion(criterion)
        check_at_least("total_steps", total_steps)
        self.accelerator = accelerator
        self.criterion = criterion.to(accelerator.device)
        self.total_steps = total_steps
        self.steps_done = 0
        accelerator.register_for_checkpointing(self)

    def step(self) -> None:
        """Count a finished batch; the clock advances if the optimiser stepped at it."""
        if self.accelerator.sync_gradients:
            self.steps_done += 1
            set_clock(self.criterion, self.steps_done, self.total_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_done = state["steps_done"]
        set_clock(self.criterion, self.steps_done, self.total_steps)
