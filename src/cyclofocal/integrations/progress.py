"""Progress of a loss from the optimiser steps that a framework counts."""

import warnings

from cyclofocal.losses import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.ranges import check_at_least

Loss = CyclicalFocalLoss | BinaryCyclicalFocalLoss


def set_clock(criterion: Loss, steps_done: int, total_steps: int) -> float:
    """Set the clock of ``criterion`` for the optimiser step that comes after ``steps_done`` of ``total_steps``.

    The first step is at progress 0, the last at 1. It depends on the two counts only, so resuming needs no state and
    a second call changes nothing. After the last step progress stays at 1 and the training counts as ended; further
    steps raise a warning.

    Args:
        criterion: the loss to set.
        steps_done: optimiser steps taken so far, >= 0.
        total_steps: optimiser steps of the whole training, >= 1.

    Returns:
        Progress in [0, 1].

    Raises:
        ValueError: a count is out of its range.

    Example:
        >>> criterion = CyclicalFocalLoss()
        >>> [set_clock(criterion, steps_done, total_steps=5) for steps_done in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    check_at_least("total_steps", total_steps)
    check_at_least("steps_done", steps_done, 0)
    if steps_done > total_steps:
        message = f"more optimiser steps than total_steps={total_steps}; progress stays at 1"
        warnings.warn(message, stacklevel=3)  # always the same text, so that Python shows it once
    last = max(total_steps - 1, 1)
    progress = min(steps_done, total_steps - 1) / last
    criterion.set_progress(progress)
    if steps_done >= total_steps:
        criterion.end_training()
    return progress


def check_criterion(criterion: Loss, advice: str = "the framework counts the steps") -> None:
    """Refuse an object without a clock, and a loss that counts steps itself: two counts would contradict each other.

    ``advice`` completes the error message: what sets the progress instead.
    """
    if not hasattr(criterion, "set_progress"):
        raise TypeError(
            f"criterion is a {type(criterion).__name__}; it must be a CyclicalFocalLoss or BinaryCyclicalFocalLoss"
        )
    if criterion.total_steps is not None:
        raise ValueError(
            f"criterion has total_steps={criterion.total_steps} and would count steps itself; leave total_steps out,"
            f" {advice}"
        )
