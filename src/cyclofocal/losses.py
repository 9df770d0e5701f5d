"""Loss modules: settings, and a clock that follows the progress of training."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cyclofocal import functional
from cyclofocal.arguments import check_gammas, check_reduction, check_sides, check_unit_interval
from cyclofocal.clock import Clocked

_PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
"""Exponents of eval mode: cross-entropy."""


class _Loss(Clocked):
    """Settings that both losses share."""

    weight: Tensor | None

    def __init__(
        self,
        gammas: dict[str, float],
        weight: Tensor | None,
        reduction: str,
        label_smoothing: float,
        **clock: Any,
    ) -> None:
        check_gammas(**gammas)
        check_reduction(reduction)
        check_unit_interval("label_smoothing", label_smoothing)
        super().__init__(**clock)
        self.gammas = gammas
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)

    def _gammas_now(self) -> dict[str, float]:
        return self.gammas if self._in_training_form() else _PLAIN

    def extra_repr(self) -> str:
        return ", ".join([*(f"{name}={value}" for name, value in self.gammas.items()), super().extra_repr()])


class CyclicalFocalLoss(_Loss):
    """Cyclical focal loss over a softmax: a drop-in for ``nn.CrossEntropyLoss``.

    Easy samples count at the beginning and the end of training, hard ones in between; the mathematics is in
    :func:`cyclofocal.functional.cyclical_focal_loss`.

    The progress of training can be set in two ways:

    * ``criterion.set_progress(p)`` with p in [0, 1], for example ``schedules.epoch_progress(epoch, epochs)`` at the
      start of every epoch, as in the paper; ``criterion.end_training()`` after the last one makes a second training
      that forgets this warn;
    * ``total_steps=n`` at construction: every forward in training mode is then counted when a backward pass reaches
      its loss (at once where there is nothing to differentiate, and in a compiled graph), and progress goes from 0 at
      the first to 1 at the n-th. With gradient accumulation give ``accumulation=k``: k forwards are one step, and n
      counts optimiser steps. Past the end it stays at 1, with a warning (but not from inside a compiled graph).

    The clock lives in the 0-d buffers ``step``, ``progress`` and ``eta``: part of ``state_dict``, moved by ``.to()``,
    float32 even after ``.half()``, initialised by ``to_empty()`` after construction on the meta device, never read
    back from an accelerator. A loss under ``torch.compile`` follows it without recompiling; inside ``torch.func``
    transforms use ``set_progress`` or the function, as no step is counted there.

    A forward that activation checkpointing recomputes has the same eta and is not counted again. Other repeated
    steps are counted: give ``accumulation=2`` for the two backward passes of a SAM step, and use ``set_progress`` with
    LBFGS, whose steps have no fixed number of them, and after warm-up steps that are not part of the training.

    In eval mode the loss is plain cross-entropy with the same weights, ignore_index, reduction and label smoothing,
    and progress does not change; ``cyclical_in_eval=True`` applies the training form there too.

    Args:
        weight, ignore_index, reduction, label_smoothing: as in ``nn.CrossEntropyLoss``.
        gamma_pos, gamma_neg, gamma_hc: exponents of the true class, of the others and of the high-confidence part.
        cyclical_factor: the turn from easy to hard and back is at progress 1/cyclical_factor, >= 1.
        schedule: another function from progress to eta, of floats and of tensors, in place of ``cyclical_eta``.
        total_steps: optimiser steps of the whole training; None: ``set_progress`` sets the progress.
        accumulation: forwards per optimiser step, >= 1.
        cyclical_in_eval: apply the training form in eval mode too.

    Shape: as in ``nn.CrossEntropyLoss``. Raises: what the function raises, at construction where it can be known.

    Example:
        >>> import torch
        >>> model, criterion = torch.nn.Linear(4, 3), CyclicalFocalLoss(total_steps=100)
        >>> criterion(model(torch.randn(8, 4)), torch.randint(3, (8,))).backward()
        >>> round(criterion.progress.item(), 4)
        0.0101

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        gamma_pos: float = 2.0,
        gamma_neg: float = 2.0,
        gamma_hc: float = 3.0,
        cyclical_factor: float = 4.0,
        schedule: Callable[[Any], Any] | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        total_steps: int | None = None,
        accumulation: int = 1,
        cyclical_in_eval: bool = False,
    ) -> None:
        gammas = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "gamma_hc": gamma_hc}
        super().__init__(
            gammas,
            weight,
            reduction,
            label_smoothing,
            cyclical_factor=cyclical_factor,
            schedule=schedule,
            total_steps=total_steps,
            accumulation=accumulation,
            cyclical_in_eval=cyclical_in_eval,
        )
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``logits`` (N, C, ...) against class indices (N, ...) or probabilities (N, C, ...)."""
        eta = self._eta_now()
        loss = functional.cyclical_focal_loss(
            logits,
            target,
            self._buffers["weight"],
            eta=eta,
            **self._gammas_now(),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        self._count(loss)
        return loss


class BinaryCyclicalFocalLoss(_Loss):
    """Cyclical focal loss over sigmoids: a drop-in for ``nn.BCEWithLogitsLoss``.

    For multi-label classification, binary segmentation and dense detection; the mathematics is in
    :func:`cyclofocal.functional.binary_cyclical_focal_loss`. The clock, eval mode (plain binary cross-entropy) and
    the arguments not named here are those of :class:`CyclicalFocalLoss`.

    Args:
        weight, pos_weight, reduction: as in ``nn.BCEWithLogitsLoss``.
        alpha: None, or the share in [0, 1] of the positive side (RetinaNet: 0.25); not applied in eval mode.
        probability_margin: ASL's shift of easy negatives in [0, 1); not applied in eval mode.

    Example:
        >>> import torch
        >>> criterion = BinaryCyclicalFocalLoss(alpha=0.25)
        >>> criterion.set_progress(0.25)  # the turn: eta 0, the focal loss
        >>> criterion(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        tensor(0.1011)
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        gamma_pos: float = 2.0,
        gamma_neg: float = 2.0,
        gamma_hc: float = 3.0,
        alpha: float | None = None,
        pos_weight: Tensor | None = None,
        probability_margin: float = 0.0,
        cyclical_factor: float = 4.0,
        schedule: Callable[[Any], Any] | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        total_steps: int | None = None,
        accumulation: int = 1,
        cyclical_in_eval: bool = False,
    ) -> None:
        gammas = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "gamma_hc": gamma_hc}
        super().__init__(
            gammas,
            weight,
            reduction,
            label_smoothing,
            cyclical_factor=cyclical_factor,
            schedule=schedule,
            total_steps=total_steps,
            accumulation=accumulation,
            cyclical_in_eval=cyclical_in_eval,
        )
        check_sides(alpha, probability_margin)
        self.alpha = alpha
        self.probability_margin = probability_margin
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``logits`` of any shape against a ``target`` of the same shape, in [0, 1]."""
        eta, training_form = self._eta_now(), self._in_training_form()
        loss = functional.binary_cyclical_focal_loss(
            logits,
            target,
            self._buffers["weight"],
            eta=eta,
            **self._gammas_now(),
            pos_weight=self._buffers["pos_weight"],
            alpha=self.alpha if training_form else None,
            probability_margin=self.probability_margin if training_form else 0.0,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        self._count(loss)
        return loss
