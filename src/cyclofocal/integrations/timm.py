"""timm: a criterion for its training tasks and for loops like its train.py, and a scheduler of its progress."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cyclofocal.imbalance import Counts, WeightScheme
from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss, check_criterion, set_clock
from cyclofocal.losses import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.ranges import check_at_least

require_host("timm", "1.0.31")


def create_loss(
    *,
    multi_label: bool = False,
    smoothing: float = 0.0,
    soft_targets: bool = False,
    class_weight: WeightScheme | Tensor | Sequence[float] | None = None,
    pos_weight: Tensor | Sequence[float] | float | None = None,
    counts: Counts | None = None,
    samples: Counts | None = None,
    tau: float | None = None,
    **settings: Any,
) -> Loss:
    """Create the loss with the arguments of ``timm.loss.create_classification_loss``, and from class counts.

    With all gammas 0 it is timm's own ``LabelSmoothingCrossEntropy``, ``SoftTargetCrossEntropy`` or, for
    ``multi_label``, ``BinaryCrossEntropy``.

    Args:
        multi_label: True for targets (N, C) in [0, 1], one decision per class: the sigmoid loss; else the softmax loss.
        smoothing: label smoothing in [0, 1]; not applied if ``soft_targets`` is True.
        soft_targets: True for targets of Mixup or CutMix, which already contain the smoothing.
        class_weight: one factor per class; or "balanced", "sqrt" or "effective", which take them from ``counts``.
        pos_weight: factor of the positive side, one or one per class; for ``multi_label`` only.
        counts: training images per class (C,); for ``multi_label`` the positive ones of each class.
        samples: for ``multi_label`` with ``counts``: all training images, one number or one per class.
        tau: >= 0; ``tau * log(prior)`` of ``counts`` is added to the logits in training (1: logit adjustment). Default:
            1 with ``counts``, but 0 with a scheme in ``class_weight``.
        settings: further arguments of :class:`cyclofocal.CyclicalFocalLoss` or, for ``multi_label``,
            :class:`cyclofocal.BinaryCyclicalFocalLoss`: gamma_pos, gamma_hc, weight_start and so on; with ``counts``
            those of its ``from_counts`` too, such as smoothing_odds.

    Returns:
        The criterion, to be moved to the device by timm's task or with ``.to(device)``; its progress is 0, and a
        :class:`LossScheduler` sets it.

    Raises:
        ValueError: pos_weight or samples without multi_label, a scheme or tau without counts, counts that are no
            counts, or a setting out of its range.

    Example:
        >>> create_loss(smoothing=0.1, gamma_hc=2.0)
        CyclicalFocalLoss(gamma_pos=2.0, gamma_neg=2.0, gamma_hc=2.0, label_smoothing=0.1, cyclical_factor=4.0)
        >>> create_loss(class_weight="sqrt", counts=[90, 10]).weight
        tensor([0.5000, 1.5000])
    """
    settings |= {"label_smoothing": smoothing} if smoothing and not soft_targets else {}
    if pos_weight is not None and not multi_label:
        raise ValueError(f"pos_weight is {pos_weight}; it needs multi_label=True; for softmax targets use class_weight")
    smoothing_odds = settings.get("smoothing_odds")
    if smoothing_odds is not None and soft_targets:
        raise ValueError(f"smoothing_odds is {smoothing_odds}, but soft_targets have their smoothing; leave one out")
    scheme = class_weight if isinstance(class_weight, str) else None
    factors = {"weight": None if isinstance(class_weight, str) else class_weight, "pos_weight": pos_weight}
    settings |= {name: _as_weight(value) for name, value in factors.items() if value is not None}
    _check_counts(
        multi_label, counts, class_weight=scheme, tau=tau or None, smoothing_odds=smoothing_odds, samples=samples
    )
    if counts is None:
        return BinaryCyclicalFocalLoss(**settings) if multi_label else CyclicalFocalLoss(**settings)
    settings |= {"class_weight": scheme, "tau": tau}
    if multi_label:
        return BinaryCyclicalFocalLoss.from_counts(counts, samples, **settings)
    return CyclicalFocalLoss.from_counts(counts, **settings)


def _check_counts(multi_label: bool, counts: Counts | None, **needing: Any) -> None:
    """Refuse an option that needs the counts without them, and the samples where they say nothing or are missing."""
    for name, value in needing.items():
        if counts is None and value is not None:
            raise ValueError(f"{name} is {value!r}, but counts is None; give counts, the training images per class")
    if counts is not None and multi_label and needing["samples"] is None:
        raise ValueError("samples is None; with multi_label counts are positives: give samples, all training images")
    if needing["samples"] is not None and not multi_label:
        raise ValueError(f"samples is {needing['samples']!r}; it needs multi_label=True; a softmax takes counts alone")


def _as_weight(weight: Tensor | Sequence[float] | float) -> Tensor:
    return torch.as_tensor(weight, dtype=torch.float32)


class LossScheduler:
    """Replacement of timm's ``lr_scheduler`` in a training loop, which sets the loss's progress too.

    timm calls ``step(epoch)`` after every epoch and on ``--resume``, and ``step_update(num_updates)`` after every
    optimiser step. Progress follows from these counts only, so a resumed training has the right eta although timm's
    checkpoints do not contain the criterion, and gradient accumulation does not count twice.

    Args:
        lr_scheduler: timm's scheduler, which gets every call too, or None.
        criterion: result of :func:`create_loss`.
        num_epochs: epochs of the whole training, as returned by ``create_scheduler_v2`` (cooldown included).
        updates_per_epoch: optimiser steps per epoch, as given to ``create_scheduler_v2``.

    Raises:
        TypeError, ValueError: criterion has no clock or counts steps itself (total_steps), or a count is below 1.

    Example:
        >>> criterion = create_loss()
        >>> scheduler = LossScheduler(None, criterion, num_epochs=3, updates_per_epoch=3)
        >>> scheduler.step(1)  # resumed after one epoch
        >>> criterion.progress.item()
        0.375
        >>> scheduler.step_update(4)
        >>> criterion.progress.item()
        0.5
    """

    def __init__(self, lr_scheduler: Any, criterion: Loss, num_epochs: int, updates_per_epoch: int) -> None:
        check_criterion(criterion)
        check_at_least("num_epochs", num_epochs)
        check_at_least("updates_per_epoch", updates_per_epoch)
        self.lr_scheduler = lr_scheduler
        self.criterion = criterion
        self.num_epochs = num_epochs
        self.updates_per_epoch = updates_per_epoch

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Set the progress after ``epoch`` epochs."""
        if self.lr_scheduler is not None:
            self.lr_scheduler.step(epoch, metric)
        self._set_clock(epoch * self.updates_per_epoch)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the progress after ``num_updates`` optimiser steps since the beginning of the training."""
        if self.lr_scheduler is not None:
            self.lr_scheduler.step_update(num_updates, metric)
        self._set_clock(num_updates)

    def _set_clock(self, num_updates: int) -> None:
        set_clock(self.criterion, num_updates, self.num_epochs * self.updates_per_epoch)

    def __getattr__(self, name: str) -> Any:
        """Look up any other attribute, such as ``t_in_epochs``, in timm's scheduler."""
        if name == "lr_scheduler":  # not set yet, while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.lr_scheduler, name)
