"""The loss of a run, built from its settings and from the training samples per class."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from cyclofocal import BinaryCyclicalFocalLoss, BinaryFocalLoss, CyclicalFocalLoss, FocalLoss
from cyclofocal.imbalance import checked_counts, class_weights
from cyclofocal.lab.recipes.custom_loss import Criterion, load_loss
from cyclofocal.lab.recipes.loss import COSINE_SCALE, LossSettings


def build_criterion(loss: LossSettings, class_counts: Sequence[int]) -> Criterion:
    """The loss as something to call on logits and target; a cyclical one has a clock to set, a custom one may have.

    Targets are class indices (N,) or, after mixup, probabilities (N, C).

    Args:
        loss: its settings.
        class_counts: samples per class that the loss depends on: those of the training data.

    Raises:
        MissingDataError, ValueError: a custom loss that cannot be used, a class without samples for a loss that
            depends on them, or class frequencies that are corrected twice.
    """
    check_sampler(loss)
    if loss.file:
        return load_loss(loss.file, loss.digest, class_counts)
    if loss.is_cross_entropy:
        return nn.CrossEntropyLoss(label_smoothing=loss.label_smoothing)
    names = ("gamma_pos", "gamma_neg", "gamma_hc", "label_smoothing")
    settings: dict[str, Any] = {name: getattr(loss, name) for name in names}
    kind: type[CyclicalFocalLoss] = CyclicalFocalLoss
    if loss.cyclical_factor is None:
        kind = FocalLoss
        del settings["gamma_hc"]
    else:
        settings["cyclical_factor"] = loss.cyclical_factor
    settings["weight_start"] = loss.weight_start
    if loss.class_weight or loss.tau or loss.smoothing_odds:
        scheme: Any = loss.class_weight or None
        if loss.smoothing_odds:
            del settings["label_smoothing"]
            settings["smoothing_odds"] = loss.smoothing_odds
        criterion = kind.from_counts(class_counts, class_weight=scheme, tau=loss.tau, **settings)
    else:
        criterion = kind(**settings)
    if not (loss.max_margin or loss.vs_gamma):
        return criterion
    return ScaledMarginLoss(criterion, class_counts, loss.vs_gamma, loss.max_margin)


def build_box_criterion(loss: LossSettings, class_counts: Sequence[int]) -> Criterion:
    """The loss as something to call on logits (anchors, C) and targets of that shape, 0 or 1; it gives their sum.

    The head of the detector divides the sum by the number of foreground anchors of the image.

    Args:
        loss: its settings.
        class_counts: training boxes per class, on which class weights depend.

    Raises:
        MissingDataError, ValueError: a custom loss that cannot be used, or a class without boxes for class weights.
    """
    if loss.file:
        return load_loss(loss.file, loss.digest, class_counts)
    if loss.is_cross_entropy and loss.alpha is None and not loss.label_smoothing:
        return nn.BCEWithLogitsLoss(reduction="sum")
    names = ("gamma_pos", "gamma_neg", "alpha", "label_smoothing", "weight_start")
    settings: dict[str, Any] = {"reduction": "sum"} | {name: getattr(loss, name) for name in names}
    if loss.class_weight:
        scheme: Any = loss.class_weight
        settings["pos_weight"] = class_weights(class_counts, scheme).float()
    if loss.cyclical_factor is None:
        return BinaryFocalLoss(**settings)
    return BinaryCyclicalFocalLoss(gamma_hc=loss.gamma_hc, cyclical_factor=loss.cyclical_factor, **settings)


def validation_criterion(loss: LossSettings, class_counts: Sequence[int]) -> Criterion:
    """The loss as a measure that is the same in every epoch, for early stopping.

    It has neither exponents nor clock, which would make epochs of a smaller eta look better: it is cross-entropy with
    the label smoothing, class weights, prior, margins and factors of the loss, the weights from the first epoch on. A
    custom loss is in eval mode, at progress 1.

    Args:
        loss: settings of the training loss.
        class_counts: training samples per class.

    Raises:
        MissingDataError, ValueError: as :func:`build_criterion`.
    """
    if not loss.file:
        still = replace(loss, gamma_pos=0.0, gamma_neg=0.0, gamma_hc=0.0, cyclical_factor=None, weight_start=0.0)
        return build_criterion(still, class_counts)
    criterion = copy.deepcopy(build_criterion(loss, class_counts))  # a file may define an object, which is in training
    if isinstance(criterion, nn.Module):
        criterion.eval()
    if (set_progress := getattr(criterion, "set_progress", None)) is not None:
        set_progress(1.0)
    return criterion


def check_sampler(loss: LossSettings) -> None:
    """Refuse a loss that corrects for class frequencies which class-balanced batches do not have.

    The margins of LDAM and the factors of vector scaling stay: they follow from how well a class is known, so from the
    samples it has, however often these are drawn.

    Raises:
        ValueError: a sampler with ``tau`` or class weights.
    """
    if not loss.sampler:
        return
    balanced = f"with sampler={loss.sampler} every class is as frequent as any other in training"
    if loss.tau:
        raise ValueError(
            f"tau is {loss.tau:g}, and {balanced}, so there is no prior to adjust; set tau=0 or no sampler"
        )
    if loss.class_weight:
        raise ValueError(
            f"class_weight is {loss.class_weight!r}, and {balanced}, so class weights would correct for the frequencies"
            " a second time; set class_weight=none or no sampler"
        )


class ScaledMarginLoss(nn.Module):
    r"""Loss of logits with a factor per class, and a margin at the target:
    :math:`L(\Delta_c z_c - m_t [c = t], t)`.

    .. math:: \Delta_c = (n_c / n_{max})^\gamma, \qquad m_c = s \, m_{max} (n_{min} / n_c)^{1/4}

    Args:
        criterion: L, which may add the class prior to its logits, and has a clock.
        class_counts: training samples per class n_c, at least 1.
        vs_gamma: gamma >= 0; 0 leaves the logits as they are.
        max_margin: largest margin of a cosine m_max >= 0; s is :data:`COSINE_SCALE`.

    Reference: Kini et al., NeurIPS 2021, for the factor; Cao et al., NeurIPS 2019, for the margin.
    """

    factor: Tensor
    margin: Tensor

    def __init__(
        self, criterion: CyclicalFocalLoss, class_counts: Sequence[int], vs_gamma: float, max_margin: float
    ) -> None:
        super().__init__()
        self.criterion = criterion
        n = checked_counts(class_counts)
        self.register_buffer("factor", ((n / n.max()) ** vs_gamma).float())
        self.register_buffer("margin", (COSINE_SCALE * max_margin * (n.min() / n) ** 0.25).float())

    def set_progress(self, progress: float) -> None:
        """Set the clock of the criterion."""
        self.criterion.set_progress(progress)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of ``logits`` (N, C) against class indices (N,) or probabilities (N, C)."""
        logits = logits.to(self.factor.dtype) * self.factor
        if target.is_floating_point():
            return self.criterion(logits - target * self.margin, target)
        index = target.unsqueeze(1)
        return self.criterion(logits.scatter_add(1, index, -self.margin[index]), target)
