"""The losses as pure functions: drop-in for ``torch.nn.functional.cross_entropy`` and its sigmoid sibling."""

import torch
from torch import Tensor

from cyclofocal.arguments import (
    SigmoidSettings,
    SoftmaxSettings,
    add_offset,
    check_reduction,
    check_sample_weight,
    check_sigmoid_call,
    check_softmax_call,
    compute_dtype,
    without_subclass,
)
from cyclofocal.equation import softmax_denominator
from cyclofocal.kernels.operators import SIGMOID, SOFTMAX, fast_sigmoid, fast_softmax, loss


def cyclical_focal_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    eta: float | Tensor,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_offset: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Cyclical focal loss over a softmax: one class per sample, or a distribution over classes.

    With p the softmax of the logits, t the true class, C classes and label smoothing e:

    .. math::
        L = -\sum_j q_j w_j \log p_j, \qquad q_j = (1-e)[j=t] + e/C

        w_t = (1-\eta)(1-p_t)^{\gamma_{pos}} + \eta(1+p_t)^{\gamma_{hc}}, \qquad
        w_j = (1-\eta)p_j^{\gamma_{neg}} + \eta \;\; (j \neq t)

    A distribution s as target gives the expectation of L over t drawn from s. Class weights multiply each term of
    the sum, as in torch.

    Limits: all gammas 0 is ``F.cross_entropy``; eta 0 the (asymmetric) focal loss; eta 1 the high-confidence loss.
    ``gamma_neg`` acts through label smoothing only.

    Args:
        logits: (C,), (N, C) or (N, C, d1, ...), float16, bfloat16, float32 or float64; half precision is computed in
            float32.
        target: class indices of the logits' shape without C, in [0, C) or ``ignore_index``; or probabilities of the
            logits' shape (mixup, cutmix, distillation), which need not sum to one.
        weight: class weights (C,), any sign.
        eta: mixing weight in [0, 1], a float or a 0-d tensor; see ``schedules.cyclical_eta``.
        gamma_pos: focal exponent of the true class, >= 0.
        gamma_neg: focal exponent of the other classes, >= 0.
        gamma_hc: high-confidence exponent, >= 0. Above 3.59 the loss is not monotone, and a warning says so once.
        ignore_index: index targets of this value add nothing to loss, gradient or denominator.
        reduction: "mean" (divided by the weights of the targets that count; by N * d1 * ... for probabilities),
            "sum" or "none".
        label_smoothing: e in [0, 1].
        logit_offset: (C,), added to the logits: tau times ``imbalance.log_prior(counts)`` is logit adjustment.
        sample_weight: factor >= 0 per sample (N,), or of the shape of the loss without reduction; the mean is divided
            by the weights of the samples that count.

    Returns:
        A scalar, or for "none" the logits' shape without C; float64 for float64 logits, otherwise float32 (also for
        half precision: the value of a confident loss underflows in float16, a sum overflows).

    Raises:
        ValueError, TypeError, IndexError: an argument does not fit; nothing has been computed. Values on an
            accelerator are not read: there an index outside [0, C) is an error of the device or gives nan.

    Example:
        >>> logits, target = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
        >>> cyclical_focal_loss(logits, target, eta=0.0)  # hard: this easy sample hardly counts
        tensor(0.0041)
        >>> cyclical_focal_loss(logits, target, eta=1.0)  # easy: it counts more than in cross-entropy (0.1698)
        tensor(1.0646)

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978; A. K. Menon et al., arXiv 2007.07314 (offset).
    """
    settings = SoftmaxSettings(gamma_pos, gamma_neg, gamma_hc, ignore_index, label_smoothing)
    if logit_offset is not None:
        logits = add_offset(without_subclass(logits), without_subclass(logit_offset), min(logits.dim() - 1, 1))
    if sample_weight is not None:
        return _weighted_softmax(logits, target, weight, without_subclass(sample_weight), eta, settings, reduction)
    value = fast_softmax(logits, target, weight, eta, settings, reduction)
    if value is not None:
        return value
    logits, target, weight = without_subclass(logits), without_subclass(target), without_subclass(weight)
    eta = without_subclass(eta)
    check_softmax_call(logits, target, weight, eta, settings, reduction)
    dtype = compute_dtype(logits.dtype)
    target = target.to(dtype if target.is_floating_point() else torch.int64)
    weight = None if weight is None else weight.to(dtype)
    if logits.dim() > 1:
        return loss(SOFTMAX, (logits, target, weight), eta, settings, reduction)
    rows = target.unsqueeze(0) if target.is_floating_point() else target.view(1)  # a batch of one
    value = loss(SOFTMAX, (logits.unsqueeze(0), rows, weight), eta, settings, reduction)
    return value.view(()) if target.is_floating_point() else value.view(target.shape if reduction == "none" else ())


def binary_cyclical_focal_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    eta: float | Tensor,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    alpha: float | None = None,
    pos_weight: Tensor | None = None,
    probability_margin: float = 0.0,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_offset: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Cyclical focal loss over sigmoids: multi-label, binary segmentation, dense detection.

    Each logit is a binary decision. With p its sigmoid, y the target, p_t the probability of the true side:

    .. math::
        L = -y\,w(p, \gamma_{pos})\log p - (1-y)\,w(1-p, \gamma_{neg})\log(1-p), \qquad
        w(p_t, \gamma) = (1-\eta)(1-p_t)^\gamma + \eta(1+p_t)^{\gamma_{hc}}

    A y between 0 and 1 gives the expectation over both sides.

    Limits: all gammas 0 is ``F.binary_cross_entropy_with_logits``; eta 0 with gamma_pos = gamma_neg and ``alpha``
    is ``torchvision.ops.sigmoid_focal_loss``; eta 0 with ``probability_margin`` is ASL's multi-label loss.

    Args:
        logits: any shape, float16, bfloat16, float32 or float64; half precision is computed in float32.
        target: the logits' shape, values in [0, 1] (0/1 labels of any dtype, or soft).
        weight: factor per element, broadcast to the logits' shape.
        eta: mixing weight in [0, 1], a float or a 0-d tensor; see ``schedules.cyclical_eta``.
        gamma_pos: focal exponent of the positive side (y = 1), >= 0.
        gamma_neg: focal exponent of the negative side (y = 0), >= 0.
        gamma_hc: high-confidence exponent of both sides, >= 0; a warning says once why not above 3.59.
        alpha: None, or in [0, 1]: the positive side times alpha, the negative times 1 - alpha (RetinaNet: 0.25).
        pos_weight: factor of the positive side, broadcast to the logits' shape (usually one per class, last
            dimension).
        probability_margin: in [0, 1); p of the negative side is lowered by it, to 0 at least, so that easy
            negatives drop out (ASL: 0.05).
        reduction: "mean" over all elements, "sum" or "none".
        label_smoothing: e in [0, 1]; y becomes y * (1 - e) + e / 2.
        logit_offset: (C,), one number per entry of the last dimension, or a single one (1,), added to the logits:
            tau times ``imbalance.log_prior(positives, samples=n)`` is logit adjustment.
        sample_weight: factor >= 0 per sample (N,), or of the logits' shape; the mean is divided by the sum of the
            weights of all elements.

    Returns:
        A scalar, or for "none" the logits' shape; float64 for float64 logits, otherwise float32.

    Raises:
        ValueError, TypeError: an argument does not fit; nothing has been computed.

    Example:
        >>> logits, target = torch.tensor([[3.0, -3.0], [0.5, -0.5]]), torch.tensor([[1, 0], [1, 0]])
        >>> binary_cyclical_focal_loss(logits, target, eta=0.0, reduction="none")
        tensor([[0.0001, 0.0001],
                [0.0676, 0.0676]])

    Reference: T.-Y. Lin et al., arXiv 1708.02002 (focal); E. Ben-Baruch et al., arXiv 2009.14119 (ASL);
    L. N. Smith, arXiv 2202.08978 (the cycle).
    """
    settings = SigmoidSettings(gamma_pos, gamma_neg, gamma_hc, alpha, probability_margin, label_smoothing)
    if weight is pos_weight is logit_offset is sample_weight is None:
        value = fast_sigmoid(logits, target, eta, settings, reduction)
        if value is not None:
            return value
    logits, target, weight = without_subclass(logits), without_subclass(target), without_subclass(weight)
    pos_weight, eta = without_subclass(pos_weight), without_subclass(eta)
    if logit_offset is not None:
        logits = add_offset(logits, without_subclass(logit_offset), -1)
    check_sigmoid_call(logits, target, weight, pos_weight, eta, settings, reduction)
    dtype = compute_dtype(logits.dtype)
    weight = None if weight is None else weight.to(dtype)
    pos_weight = None if pos_weight is None else pos_weight.to(dtype)
    if sample_weight is None:
        return loss(SIGMOID, (logits, target.to(dtype), weight, pos_weight), eta, settings, reduction)
    factors = check_sample_weight(without_subclass(sample_weight), logits.device, logits.shape).to(dtype)
    elements = loss(SIGMOID, (logits, target.to(dtype), weight, pos_weight), eta, settings, "none") * factors
    return elements if reduction == "none" else elements.sum() / (factors.sum() if reduction == "mean" else 1)


def _weighted_softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor,
    eta: float | Tensor,
    settings: SoftmaxSettings,
    reduction: str,
) -> Tensor:
    """Softmax loss with a factor per sample."""
    check_reduction(reduction)
    rows = cyclical_focal_loss(logits, target, weight, eta=eta, **settings._asdict(), reduction="none")
    factors = check_sample_weight(sample_weight, logits.device, rows.shape).to(rows.dtype)
    rows = rows * factors
    if reduction == "mean":
        weight = None if weight is None else weight.to(rows.dtype)
        batch = target.unsqueeze(0) if logits.dim() == 1 else target
        batch = batch if batch.is_floating_point() else batch.to(torch.int64)
        return rows.sum() / softmax_denominator(batch, weight, settings.ignore_index, factors)
    return rows if reduction == "none" else rows.sum()
