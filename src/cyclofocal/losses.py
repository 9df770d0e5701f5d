"""Loss modules: settings, and a clock that follows the progress of training."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from cyclofocal import functional
from cyclofocal.arguments import (
    SigmoidSettings,
    SoftmaxSettings,
    can_read,
    check_gammas,
    check_reduction,
    check_sides,
    check_unit_interval,
    warn_caller,
)
from cyclofocal.clock import Clocked
from cyclofocal.imbalance import (
    Counts,
    WeightScheme,
    binary_counts,
    check_tau,
    class_weights,
    log_prior,
    matched_smoothing,
)
from cyclofocal.kernels.operators import fast_sigmoid, fast_softmax

_PLAIN = {"gamma_pos": 0.0, "gamma_neg": 0.0, "gamma_hc": 0.0}
"""Exponents of eval mode: cross-entropy."""

USUAL = {
    "alpha": None,
    "probability_margin": 0.0,
    "ignore_index": -100,
    "reduction": "mean",
    "label_smoothing": 0.0,
    "weight_start": 0.0,
}
"""Defaults of the settings that a printed loss shows only where they are others."""

MOST_SMOOTHING = 0.1
"""Most label smoothing that follows from odds, the usual one."""

LEAST_ODDS = 2.0
"""Odds of a learnt sample of the most frequent class over the rarest below which a warning says so."""

ROUNDING = 1e-6
"""Tolerance of a comparison with the progress, which is float32."""


class _Loss(Clocked):
    """Settings that both losses share."""

    weight: Tensor | None
    logit_offset: Tensor | None

    def __init__(
        self,
        gammas: dict[str, float],
        weights: dict[str, Tensor | None],
        *,
        weight_start: float,
        logit_offset: Tensor | None,
        reduction: str,
        label_smoothing: float,
        **clock: Any,
    ) -> None:
        check_gammas(**gammas)
        check_reduction(reduction)
        check_unit_interval("label_smoothing", label_smoothing)
        check_unit_interval("weight_start", weight_start)
        if weight_start and not any(weight is not None for weight in weights.values()):
            raise ValueError(f"weight_start is {weight_start}, but there is no {' or '.join(weights)} that could start")
        _check_offset(logit_offset)
        super().__init__(**clock)
        self.gammas = gammas
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.weight_start = weight_start
        for name, weight in weights.items():
            self.register_buffer(name, weight)
        self.register_buffer("logit_offset", logit_offset)
        self._check_smoothing()

    def weight_now(self, name: str = "weight") -> Tensor | None:
        """Return a weight as it applies at the present progress: None, or ones, before ``weight_start``."""
        weight = self._buffers[name]
        if weight is None or not self.weight_start:
            return weight
        now = self._now("progress") - self.weight_start
        if isinstance(now, Tensor):
            return torch.where(now >= -ROUNDING, weight, 1.0)
        return weight if now >= -ROUNDING else None

    def _smoothed(self, odds: float | None) -> Self:
        """Take the label smoothing of ``odds``, if there are any."""
        if odds is not None:
            self.label_smoothing = min(MOST_SMOOTHING, self._smoothing_at(odds))
        return self

    def _smoothing_at(self, odds: float) -> float:
        """Label smoothing that leaves a learnt sample of the most frequent class these odds over the rarest."""
        return matched_smoothing(odds, *self._prior_ratio(), self._target_weight)

    def _check_smoothing(self) -> None:
        """Warn of label smoothing at whose minimum of the loss the rarest class wins, or nearly."""
        if not self.label_smoothing or self.logit_offset is None or not can_read(self.logit_offset):
            return
        ratio, _ = self._prior_ratio()
        if ratio > 1 and self.label_smoothing > (most := self._smoothing_at(LEAST_ODDS)):
            warn_caller(
                f"label_smoothing is {self.label_smoothing:g}, and by tau, or logit_offset, the most frequent class"
                f" counts as {ratio:.3g} times as frequent as the rarest: at the minimum of the loss the rarest is"
                f" predicted, or nearly, for learnt samples of the most frequent; take {most:.1g} or less, or"
                " from_counts(..., smoothing_odds=10)"
            )

    def _prior_ratio(self) -> tuple[float, int]:
        """Ratio of the largest to the smallest prior in the offset, and the number of classes of a decision."""
        raise NotImplementedError

    @property
    def _target_weight(self) -> float:
        """Largest weight of the target of a learnt sample, relative to that of the other classes."""
        return 2.0 ** self.gammas["gamma_hc"]

    def extra_repr(self) -> str:
        buffers = [(name, self._buffers.get(name)) for name in ("weight", "pos_weight", "logit_offset")]
        settings = [f"{name}=Tensor{tuple(tensor.shape)}" for name, tensor in buffers if tensor is not None]
        settings += [f"{name}={value}" for name, value in self.gammas.items()]
        settings += [f"{name}={now!r}" for name, usual in USUAL.items() if (now := getattr(self, name, usual)) != usual]
        return ", ".join([*settings, super().extra_repr()])


def _check_offset(offset: Tensor | None) -> None:
    if offset is None:
        return
    if offset.dim() != 1 or not offset.is_floating_point():
        raise ValueError(
            f"logit_offset is {offset.dtype} of shape {tuple(offset.shape)}; it must be floating-point (C,)"
        )
    if can_read(offset) and not bool(offset.isfinite().all()):
        raise ValueError("logit_offset holds a value that is not finite; for a class without samples see allow_absent")


def _exp(number: Tensor) -> float:
    """Return the exponential in float64, infinite where it is too large."""
    return float(number.double().exp())


def _default_tau(class_weight: WeightScheme | None) -> float:
    """The whole prior, or none where weights favour the rare classes already."""
    return 1.0 if class_weight is None else 0.0


def _joined(settings: dict[str, Any], made: dict[str, Tensor], smoothing_odds: float | None) -> dict[str, Any]:
    """Add what follows from the counts to the settings of a constructor; refuse what does not go with it."""
    if smoothing_odds is not None and "logit_offset" not in made:
        raise ValueError(f"smoothing_odds is {smoothing_odds:g} and tau 0; it depends on the prior: give tau=1")
    if smoothing_odds is not None and "label_smoothing" in settings:
        raise ValueError("label_smoothing is given, and smoothing_odds sets it; leave one of the two out")
    if not made:
        warn_caller(
            "the counts change nothing at tau 0 without class_weight; leave tau out, or give class_weight='sqrt'"
        )
    for name in settings.keys() & made.keys():
        option = "tau" if name == "logit_offset" else "class_weight"
        raise ValueError(f"{name} is given, and {option} makes one from the counts; leave one of the two out")
    return settings | made


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
    back from an accelerator. Steps of eager mode are counted on the host, without an operation of the device, and
    written into the buffers when somebody looks: ``state_dict``, an attribute, ``named_buffers()`` of the loss, a
    copy, a compiled graph. A loss under ``torch.compile`` follows the clock without recompiling; inside
    ``torch.func`` transforms use ``set_progress`` or the function, as no step is counted there.

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
        weight_start: progress in [0, 1] before which all class weights are 1 (deferred re-weighting: 0.8).
        logit_offset: (C,), added to the logits, but not in eval mode; :meth:`from_counts` makes it from the counts.

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
        weight_start: float = 0.0,
        logit_offset: Tensor | None = None,
        total_steps: int | None = None,
        accumulation: int = 1,
        cyclical_in_eval: bool = False,
    ) -> None:
        gammas = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "gamma_hc": gamma_hc}
        super().__init__(
            gammas,
            {"weight": weight},
            weight_start=weight_start,
            logit_offset=logit_offset,
            reduction=reduction,
            label_smoothing=label_smoothing,
            cyclical_factor=cyclical_factor,
            schedule=schedule,
            total_steps=total_steps,
            accumulation=accumulation,
            cyclical_in_eval=cyclical_in_eval,
        )
        self.ignore_index = ignore_index

    @classmethod
    def from_counts(
        cls,
        counts: Counts,
        *,
        class_weight: WeightScheme | None = None,
        tau: float | None = None,
        smoothing_odds: float | None = None,
        beta: float = 0.9999,
        allow_absent: bool = False,
        **settings: Any,
    ) -> Self:
        """Make the loss from the training samples per class.

        Args:
            counts: samples per class (C,): a sequence, array or tensor; see ``imbalance.class_counts``.
            class_weight: None, "balanced", "sqrt" or "effective"; see ``imbalance.class_weights``. Their mean is 1.
            tau: >= 0; ``tau * log(prior)`` is added to the logits in training: 1 makes the model's own logits those of
                equally likely classes (logit adjustment, balanced softmax), 0 leaves them alone. Default: 1, or 0 with
                ``class_weight``.
            smoothing_odds: > 1; sets ``label_smoothing``, see ``imbalance.matched_smoothing``, to at most 0.1: at the
                minimum of the loss learnt samples of the most frequent class have these odds over the rarest. None:
                ``label_smoothing`` is that of the settings.
            beta: of the effective number of samples, in [0, 1).
            allow_absent: accept a class without a sample: its weight is 0, its prior that of one sample.
            settings: of the constructor; ``weight_start=0.8`` defers the class weights.

        With ``tau=0`` and no ``class_weight`` the counts change nothing, which is a warning; so is a label smoothing
        at whose minimum of the loss the rarest class wins over a learnt frequent one.

        Raises:
            ValueError: counts that are no counts, a class without a sample, or a setting out of its range.

        Example:
            >>> criterion = CyclicalFocalLoss.from_counts([900, 100], tau=1.0, total_steps=1000)
            >>> criterion.logit_offset.exp()
            tensor([0.9000, 0.1000])
        """
        tau = _default_tau(class_weight) if tau is None else check_tau(tau)
        made, prior = {}, log_prior(counts, allow_absent=allow_absent)
        if class_weight is not None:
            made["weight"] = class_weights(counts, class_weight, beta=beta, allow_absent=allow_absent).float()
        if tau:
            made["logit_offset"] = (tau * prior).float()
        return cls(**_joined(settings, made, smoothing_odds))._smoothed(smoothing_odds)

    def _prior_ratio(self) -> tuple[float, int]:
        assert self.logit_offset is not None
        return _exp(self.logit_offset.max() - self.logit_offset.min()), len(self.logit_offset)

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of ``logits`` (N, C, ...) against class indices (N, ...) or probabilities (N, C, ...).

        ``sample_weight``: factor per sample (N,), or per element of the unreduced loss.
        """
        buffers = self._buffers
        if self.training and sample_weight is buffers["weight"] is buffers["logit_offset"] is None:
            gamma_pos, gamma_neg, gamma_hc = self.gammas.values()
            settings = SoftmaxSettings(gamma_pos, gamma_neg, gamma_hc, self.ignore_index, self.label_smoothing)
            value = fast_softmax(logits, target, None, 0.0, settings, self.reduction, self)
            if value is not None:
                return value
        training_form = self.training or self.cyclical_in_eval
        loss = functional.cyclical_focal_loss(
            logits,
            target,
            self.weight_now(),
            eta=self._now("eta") if training_form else 0.0,
            **(self.gammas if training_form else _PLAIN),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            logit_offset=self._buffers["logit_offset"] if training_form else None,
            sample_weight=sample_weight,
        )
        self._count(loss)
        return loss


class BinaryCyclicalFocalLoss(_Loss):
    """Cyclical focal loss over sigmoids: a drop-in for ``nn.BCEWithLogitsLoss``.

    For multi-label classification, binary segmentation and dense detection; the mathematics is in
    :func:`cyclofocal.functional.binary_cyclical_focal_loss`. The clock, eval mode (plain binary cross-entropy) and
    the arguments not named here are those of :class:`CyclicalFocalLoss`.

    Args:
        weight, reduction: as in ``nn.BCEWithLogitsLoss``.
        pos_weight: factor of the positive side of each label; deferred by ``weight_start`` like ``weight``.
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
        weight_start: float = 0.0,
        logit_offset: Tensor | None = None,
        total_steps: int | None = None,
        accumulation: int = 1,
        cyclical_in_eval: bool = False,
    ) -> None:
        gammas = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "gamma_hc": gamma_hc}
        super().__init__(
            gammas,
            {"weight": weight, "pos_weight": pos_weight},
            weight_start=weight_start,
            logit_offset=logit_offset,
            reduction=reduction,
            label_smoothing=label_smoothing,
            cyclical_factor=cyclical_factor,
            schedule=schedule,
            total_steps=total_steps,
            accumulation=accumulation,
            cyclical_in_eval=cyclical_in_eval,
        )
        check_sides(alpha, probability_margin)
        self.alpha = alpha
        self.probability_margin = probability_margin

    @classmethod
    def from_counts(
        cls,
        counts: Counts,
        samples: Counts,
        *,
        class_weight: WeightScheme | None = None,
        tau: float | None = None,
        smoothing_odds: float | None = None,
        beta: float = 0.9999,
        allow_absent: bool = False,
        **settings: Any,
    ) -> Self:
        """Make the loss from the positives of every label; see :meth:`CyclicalFocalLoss.from_counts`.

        The two sides of a label are its classes: with ``class_weight`` their weights have mean 1 ("balanced": the
        positives of a label weigh together as much as its negatives), and ``tau`` adds the logarithm of its prior odds.

        Args:
            counts: positive samples of every label (L,).
            samples: all samples of every label: one number, or (L,).
            class_weight, tau, smoothing_odds, beta, allow_absent, settings: as in
                :meth:`CyclicalFocalLoss.from_counts`.

        Example:
            >>> criterion = BinaryCyclicalFocalLoss.from_counts([10, 50], 100, class_weight="balanced", tau=1.0)
            >>> criterion.logit_offset.sigmoid()
            tensor([0.1000, 0.5000])
        """
        tau = _default_tau(class_weight) if tau is None else check_tau(tau)
        made, prior = {}, log_prior(counts, samples=samples, allow_absent=allow_absent)
        both = binary_counts(counts, samples, allow_absent)
        if class_weight is not None:
            negative, positive = class_weights(both, class_weight, beta=beta, allow_absent=allow_absent).unbind(-1)
            weight = torch.where(negative == 0, positive, negative)  # a side without a sample is never weighed
            made = {"weight": weight.float(), "pos_weight": (positive / weight).float()}
        if tau:
            made["logit_offset"] = (tau * prior).float()
        return cls(**_joined(settings, made, smoothing_odds))._smoothed(smoothing_odds)

    def _prior_ratio(self) -> tuple[float, int]:
        assert self.logit_offset is not None
        return _exp(self.logit_offset.abs().max()), 2

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of ``logits`` of any shape against a ``target`` of the same shape, in [0, 1].

        ``sample_weight``: factor per sample (N,), or of the logits' shape.
        """
        buffers = self._buffers
        has_weight = not (sample_weight is buffers["weight"] is buffers["pos_weight"] is None)
        if self.training and not has_weight and buffers["logit_offset"] is None:
            gamma_pos, gamma_neg, gamma_hc = self.gammas.values()
            margin, smoothing = self.probability_margin, self.label_smoothing
            settings = SigmoidSettings(gamma_pos, gamma_neg, gamma_hc, self.alpha, margin, smoothing)
            value = fast_sigmoid(logits, target, 0.0, settings, self.reduction, self)
            if value is not None:
                return value
        training_form = self.training or self.cyclical_in_eval
        loss = functional.binary_cyclical_focal_loss(
            logits,
            target,
            self.weight_now(),
            eta=self._now("eta") if training_form else 0.0,
            **(self.gammas if training_form else _PLAIN),
            pos_weight=self.weight_now("pos_weight"),
            alpha=self.alpha if training_form else None,
            probability_margin=self.probability_margin if training_form else 0.0,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            logit_offset=self._buffers["logit_offset"] if training_form else None,
            sample_weight=sample_weight,
        )
        self._count(loss)
        return loss


class _Focal(_Loss):
    """A loss whose cycle is stopped at eta 0."""

    def __init__(self, weight: Tensor | None = None, **settings: Any) -> None:
        for name in settings.keys() & {"gamma_hc", "cyclical_factor", "schedule"}:
            raise TypeError(f"{name} is a setting of the cycle, which {type(self).__name__} does not have")
        super().__init__(weight, gamma_hc=0.0, schedule=_focal, **settings)  # type: ignore[arg-type]  # of the face

    @property
    def _needs_progress(self) -> bool:  # type: ignore[override]
        return self.weight_start > 0

    @property
    def _target_weight(self) -> float:
        """Without bound if ``gamma_neg`` takes the weight of the other classes away."""
        return math.inf if self.gammas["gamma_neg"] else 1.0


class FocalLoss(_Focal, CyclicalFocalLoss):
    """Focal loss over a softmax: :class:`CyclicalFocalLoss` with its cycle stopped at eta 0.

    Args:
        weight: class weights (C,), as in ``nn.CrossEntropyLoss``.
        settings: those of :class:`CyclicalFocalLoss` but ``gamma_hc``, ``cyclical_factor`` and ``schedule``. The
            progress matters to ``weight_start`` only and need not be set without.

    Raises: a setting of the cycle is a TypeError; otherwise as :class:`CyclicalFocalLoss`.

    Example:
        >>> import torch
        >>> FocalLoss(gamma_pos=2.0)(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
        tensor(0.0041)

    Reference: T.-Y. Lin et al., *Focal Loss for Dense Object Detection*, arXiv 1708.02002.
    """


class BinaryFocalLoss(_Focal, BinaryCyclicalFocalLoss):
    """Focal loss over sigmoids: :class:`BinaryCyclicalFocalLoss` with its cycle stopped at eta 0.

    With ``alpha=0.25`` it is the loss of RetinaNet; with different exponents and ``probability_margin`` it is ASL's.

    Args:
        weight: factor per element, as in ``nn.BCEWithLogitsLoss``.
        settings: those of :class:`BinaryCyclicalFocalLoss` but ``gamma_hc``, ``cyclical_factor`` and ``schedule``.

    Raises: a setting of the cycle is a TypeError; otherwise as :class:`BinaryCyclicalFocalLoss`.

    Example:
        >>> import torch
        >>> BinaryFocalLoss(alpha=0.25)(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        tensor(0.1011)

    Reference: T.-Y. Lin et al., arXiv 1708.02002; E. Ben-Baruch et al., arXiv 2009.14119.
    """


def _focal(progress: Any) -> Any:
    """Return eta 0 at any progress."""
    return progress * 0.0
