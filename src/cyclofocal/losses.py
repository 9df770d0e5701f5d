"""The losses as modules: settings, and a clock that tells how far training has come."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cyclofocal import functional
from cyclofocal.arguments import check_gammas, check_reduction, check_sides, check_unit_interval
from cyclofocal.schedules import cyclical_eta

CLOCK = ("step", "progress", "eta")
UNTOLD_STEPS = 100
"""So many training steps with a clock that nobody has moved are taken for a mistake."""


class _Clocked(nn.Module):
    """A loss whose eta follows the clock; see :class:`CyclicalFocalLoss` for how to tell the time."""

    step: Tensor
    progress: Tensor
    eta: Tensor
    weight: Tensor | None

    def __init__(
        self,
        gammas: dict[str, float],
        cyclical_factor: float,
        schedule: Callable[[Any], Any] | None,
        weight: Tensor | None,
        reduction: str,
        label_smoothing: float,
        total_steps: int | None,
        accumulation: int,
        cyclical_in_eval: bool,
    ) -> None:
        super().__init__()
        check_gammas(**gammas)
        check_reduction(reduction)
        check_unit_interval("label_smoothing", label_smoothing)
        for name, count in (("total_steps", total_steps), ("accumulation", accumulation)):
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}; it must be at least 1")
        self.gammas = gammas
        self.cyclical_factor = cyclical_factor
        self.schedule = schedule or functools.partial(cyclical_eta, cyclical_factor=cyclical_factor)
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.total_steps = total_steps
        self.accumulation = accumulation
        self.cyclical_in_eval = cyclical_in_eval
        self.register_buffer("weight", weight)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("progress", torch.zeros((), dtype=torch.float32))
        self.register_buffer("eta", torch.full((), self.schedule(0.0), dtype=torch.float32))
        self._calls = 0  # training forwards seen by Python: for the two warnings only, the buffers are the clock
        self._told = False

    def set_progress(self, progress: float) -> None:
        """Set the clock to ``progress`` in [0, 1]; with ``total_steps`` counting goes on from there.

        Raises:
            ValueError: progress outside [0, 1].
        """
        progress = float(progress)
        eta = self.schedule(progress)  # raises before anything has moved
        self.progress.fill_(progress)
        self.eta.fill_(eta)
        self._told = True
        if self.total_steps is not None:
            self._calls = round(progress * (self.total_steps - 1)) * self.accumulation
            self.step.fill_(self._calls)

    def extra_repr(self) -> str:
        settings = [f"{name}={value}" for name, value in self.gammas.items()]
        settings.append(f"cyclical_factor={self.cyclical_factor}")
        if self.total_steps is not None:
            settings.append(f"total_steps={self.total_steps}")
        return ", ".join(settings)

    def _now(self) -> tuple[Tensor | float, dict[str, float]]:
        """Eta and gammas of this forward."""
        if self.training or self.cyclical_in_eval:
            return self.eta.clone(), self.gammas  # a copy: the buffer moves on before backward
        return 0.0, dict.fromkeys(self.gammas, 0.0)

    def _advance(self) -> None:
        """Count a training forward; on a device or compiled as tensors, so that there is no stall or recompilation."""
        if not (self.training and torch.is_grad_enabled()):
            return
        if not torch.compiler.is_compiling():
            self._calls += 1
            self._warn()
        if self.total_steps is None:
            return
        last = self.total_steps - 1
        if self.step.is_cpu and not torch.compiler.is_compiling():  # floats are quicker than tensors by a whole loss
            step = int(self.step) + 1
            progress = min(step // self.accumulation, last) / max(last, 1)
            for buffer, value in ((self.step, step), (self.progress, progress), (self.eta, self.schedule(progress))):
                buffer.fill_(value)
            return
        self.step += 1
        done = torch.div(self.step, self.accumulation, rounding_mode="floor").clamp(max=last)
        self.progress.copy_(done / max(last, 1))
        self.eta.copy_(self.schedule(self.progress))

    def _warn(self) -> None:
        if self.total_steps is None:
            if self._calls == UNTOLD_STEPS and not self._told:
                warnings.warn(
                    f"{UNTOLD_STEPS} training steps and the clock has not moved: the loss stays at its beginning. Call"
                    " set_progress every epoch, or give total_steps at construction",
                    stacklevel=4,
                )
        elif self._calls == self.total_steps * self.accumulation + 1:
            warnings.warn(
                f"more training steps than total_steps={self.total_steps} (accumulation={self.accumulation}); the"
                " clock stays at progress 1",
                stacklevel=4,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Clocked":
        """Move the clock with the module, but never round it: .half() is for weights."""
        exact = {name: getattr(self, name) for name in CLOCK}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._calls = int(self.step)
        self._told = True


class CyclicalFocalLoss(_Clocked):
    """Cyclical focal loss over a softmax: a drop-in for ``nn.CrossEntropyLoss``.

    Easy samples count at the beginning and the end of training, hard ones in between; the mathematics is in
    :func:`cyclofocal.functional.cyclical_focal_loss`.

    The clock can be told in two ways:

    * ``criterion.set_progress(p)`` with p in [0, 1], for example ``schedules.epoch_progress(epoch, epochs)`` at the
      start of every epoch, as in the paper;
    * ``total_steps=n`` at construction: every forward in training mode with gradients enabled then advances it by
      one, from 0 at the first to 1 at the n-th. With gradient accumulation give ``accumulation=k``: every k-th
      forward advances it, and n counts optimiser steps. Past the end it stays at 1 and says so once (not from
      inside a compiled graph).

    It lives in the 0-d buffers ``step``, ``progress`` and ``eta``: part of ``state_dict``, moved by ``.to()``, kept
    in float32 by ``.half()``, never read back from the device. A loss under ``torch.compile`` follows it without
    recompiling; inside ``torch.func`` transforms use ``set_progress`` or the function, as nothing can advance there.

    In eval mode the loss is plain cross-entropy with the same weights, ignore_index, reduction and label smoothing,
    and nothing advances; ``cyclical_in_eval=True`` keeps the training form.

    Args:
        weight, ignore_index, reduction, label_smoothing: as in ``nn.CrossEntropyLoss``.
        gamma_pos, gamma_neg, gamma_hc: exponents of the true class, of the others and of the high-confidence part.
        cyclical_factor: the turn from easy to hard and back is at progress 1/cyclical_factor, >= 1.
        schedule: another function from progress to eta, on floats and tensors, in place of ``cyclical_eta``.
        total_steps: optimiser steps of the whole training; None: ``set_progress`` tells the time.
        accumulation: forwards per optimiser step, >= 1.
        cyclical_in_eval: keep the training form in eval mode.

    Shape: as in ``nn.CrossEntropyLoss``. Raises: what the function raises, at construction where it can be known.

    Example:
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
            cyclical_factor,
            schedule,
            weight,
            reduction,
            label_smoothing,
            total_steps,
            accumulation,
            cyclical_in_eval,
        )
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of ``logits`` (N, C, ...) against class indices (N, ...) or probabilities (N, C, ...)."""
        eta, gammas = self._now()
        loss = functional.cyclical_focal_loss(
            logits,
            target,
            self.weight,
            eta=eta,
            **gammas,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        self._advance()
        return loss


class BinaryCyclicalFocalLoss(_Clocked):
    """Cyclical focal loss over sigmoids: a drop-in for ``nn.BCEWithLogitsLoss``.

    For multi-label classification, binary segmentation and dense detection; the mathematics is in
    :func:`cyclofocal.functional.binary_cyclical_focal_loss`. The clock, eval mode (plain binary cross-entropy) and
    the arguments not named here are those of :class:`CyclicalFocalLoss`.

    Args:
        weight, pos_weight, reduction: as in ``nn.BCEWithLogitsLoss``.
        alpha: None, or the share in [0, 1] of the positive side (RetinaNet: 0.25); not applied in eval mode.
        probability_margin: ASL's shift of easy negatives in [0, 1); not applied in eval mode.

    Example:
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
            cyclical_factor,
            schedule,
            weight,
            reduction,
            label_smoothing,
            total_steps,
            accumulation,
            cyclical_in_eval,
        )
        check_sides(alpha, probability_margin)
        self.alpha = alpha
        self.probability_margin = probability_margin
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of ``logits`` of any shape against a ``target`` of the same shape, in [0, 1]."""
        eta, gammas = self._now()
        training_form = self.training or self.cyclical_in_eval
        loss = functional.binary_cyclical_focal_loss(
            logits,
            target,
            self.weight,
            eta=eta,
            **gammas,
            pos_weight=self.pos_weight,
            alpha=self.alpha if training_form else None,
            probability_margin=self.probability_margin if training_form else 0.0,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        self._advance()
        return loss
