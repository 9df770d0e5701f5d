"""Class counts, and what follows from them: class weights, class priors, and logits without the prior."""

import numbers
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cyclofocal.arguments import check_floating
from cyclofocal.ranges import check_at_least

Counts = Sequence[float] | Tensor | Any  # the last is a numpy array, which the library does not import
WeightScheme = Literal["balanced", "sqrt", "effective"]
SCHEMES: tuple[str, ...] = get_args(WeightScheme)


def class_counts(labels: Any, classes: int | None = None, *, ignore_index: int = -100) -> Tensor:
    """Count the samples, pixels or tokens of every class.

    Args:
        labels: class indices of any shape, as a tensor, array or sequence; or an iterable of such, for example
            ``(target for _, target in loader)``, which is read once.
        classes: number of classes C; None takes the largest label plus one.
        ignore_index: label that is not counted.

    Returns:
        (C,), int64, on the CPU.

    Raises:
        TypeError: labels are not integers.
        ValueError: a label outside [0, C), or no label at all while ``classes`` is None.

    Example:
        >>> class_counts([0, 0, 2, -100], classes=4)
        tensor([2, 0, 1, 0])
        >>> class_counts(batch for batch in (torch.tensor([0, 1]), torch.tensor([1])))
        tensor([1, 2])
    """
    total = torch.zeros(classes or 0, dtype=torch.int64)
    for part in _label_parts(labels):
        kept = part[part != ignore_index].flatten().to("cpu", torch.int64)
        if len(kept) and not (kept.min() >= 0 and (classes is None or kept.max() < classes)):
            bounds = "at least 0" if classes is None else f"in [0, {classes - 1}]"
            raise ValueError(
                f"labels are from {kept.min()} to {kept.max()}; they must be {bounds}, or ignore_index ({ignore_index})"
            )
        found = kept.bincount(minlength=len(total))
        total = found + torch.nn.functional.pad(total, (0, len(found) - len(total)))
    if not len(total):
        raise ValueError("labels are empty; give classes, the number of classes")
    return total


def class_weights(
    counts: Counts, scheme: WeightScheme = "balanced", *, beta: float = 0.9999, allow_absent: bool = False
) -> Tensor:
    r"""Class weights from the samples per class; their mean over the classes is 1.

    .. math::
        w_c \propto \frac{1}{n_c} \text{ (balanced)}, \quad \frac{1}{\sqrt{n_c}} \text{ (sqrt)}, \quad
        \frac{1 - \beta}{1 - \beta^{n_c}} \text{ (effective number of samples)}

    beta 0 weighs all classes alike; beta -> 1 gives "balanced".

    Args:
        counts: samples per class, along the last dimension.
        scheme: "balanced", "sqrt" or "effective".
        beta: of the effective number, in [0, 1).
        allow_absent: give a class without a sample weight 0, in place of an error; the mean is over the others.

    Returns:
        The shape of ``counts``, float64, on the CPU.

    Raises:
        ValueError: an unknown scheme, beta out of its range, or counts that are no counts.

    Example:
        >>> class_weights([30, 10])
        tensor([0.5000, 1.5000], dtype=torch.float64)

    Reference: Cui et al., *Class-Balanced Loss Based on Effective Number of Samples*, CVPR 2019.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"class_weight is {scheme!r}; it must be one of {', '.join(map(repr, SCHEMES))}, or None")
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; it must lie in [0, 1)")
    n = checked_counts(counts, allow_absent)
    if scheme == "balanced":
        weights = 1 / n
    elif scheme == "sqrt":
        weights = n.rsqrt()
    elif beta == 0:
        weights = torch.ones_like(n)
    else:  # expm1: 1 - beta^n would lose its digits near beta 1
        weights = -1 / torch.expm1(n * torch.tensor(beta, dtype=n.dtype).log())
    weights = weights.masked_fill(n == 0, 0.0)
    return weights * (n > 0).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)


def log_prior(counts: Counts, *, samples: Counts | None = None, allow_absent: bool = False) -> Tensor:
    r"""Logarithm of the class prior, or of the prior odds of binary labels.

    .. math:: \log \pi_c = \log \frac{n_c}{\sum_k n_k}, \qquad
        \text{with samples: } \log \frac{n_c}{N_c - n_c}

    Args:
        counts: samples per class (C,); with ``samples`` the positive ones of each label.
        samples: number of samples N of each label, positive and negative together: one number, or one per label. For
            sigmoid losses.
        allow_absent: treat a class (or a side of a label) without a sample as if it had one, in place of an error.

    Returns:
        (C,), float64, on the CPU.

    Raises:
        ValueError: counts that are no counts, or more positives than samples.

    Example:
        >>> log_prior([3, 1]).exp()
        tensor([0.7500, 0.2500], dtype=torch.float64)
        >>> log_prior([25], samples=100).sigmoid()
        tensor([0.2500], dtype=torch.float64)
    """
    if samples is not None:
        negatives, positives = binary_counts(counts, samples, allow_absent).clamp(min=1).unbind(-1)
        return positives.log() - negatives.log()
    n = checked_counts(counts, allow_absent).clamp(min=1)
    return (n / n.sum()).log()


def binary_counts(positives: Counts, samples: Counts, allow_absent: bool = False) -> Tensor:
    """Negatives and positives (L, 2) of every label, float64, from the positives and the samples of each.

    Raises:
        ValueError: counts that are no counts, or more positives than samples.
    """
    pos, total = (checked_counts(c, True, name) for c, name in ((positives, "positives"), (samples, "samples")))
    if total.shape not in ((1,), pos.shape):
        raise ValueError(f"samples has {len(total)} numbers for {len(pos)} labels; give one, or one per label")
    if bool((pos > total).any()):
        label = int((pos > total).nonzero()[0])
        most = total.expand_as(pos)[label].item()
        raise ValueError(f"label {label} has {pos[label]:g} positives of {most:g} samples; there cannot be more")
    return checked_counts(
        torch.stack([total - pos, pos], -1), allow_absent, "samples of one side (negative or positive)"
    )


def adjust_logits(
    logits: Tensor,
    counts: Counts,
    tau: float = 1.0,
    *,
    samples: Counts | None = None,
    allow_absent: bool = False,
) -> Tensor:
    r"""Logit adjustment after training: subtract the class prior, :math:`z_c - \tau \log \pi_c`.

    For a model that was trained without ``logit_offset``. At tau 1 the softmax of the result is the posterior for
    classes that are equally likely.

    Args:
        logits: a floating-point tensor, (C,), (N, C) or (N, C, d1, ...); with ``samples`` (..., C), one binary decision
            per logit.
        counts: training samples per class, length C.
        tau: >= 0; 0 changes nothing.
        samples, allow_absent: as in :func:`log_prior`.

    Returns:
        The shape and dtype of ``logits``.

    Raises:
        TypeError: logits are no floating-point tensor.
        ValueError: tau out of its range, counts that are no counts, or of another number of classes.

    Example:
        >>> adjust_logits(torch.log(torch.tensor([[0.75, 0.25]])), [3, 1]).softmax(1)
        tensor([[0.5000, 0.5000]])

    Reference: Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021.
    """
    check_tau(tau)
    check_floating("logits", logits)
    prior = log_prior(counts, samples=samples, allow_absent=allow_absent)
    dim = logits.dim() - 1 if samples is not None or logits.dim() == 1 else 1
    if logits.dim() == 0 or logits.shape[dim] != len(prior):
        raise ValueError(f"logits has shape {tuple(logits.shape)} and counts {len(prior)} classes; they must agree")
    shift = (tau * prior).view((-1,) + (1,) * (logits.dim() - 1 - dim)).to(logits.device)
    return (logits - shift).to(logits.dtype)


def matched_smoothing(odds: float, ratio: float, classes: int, target_weight: float = 1.0) -> float:
    r"""Label smoothing that leaves learnt samples of the most frequent class given odds over the rarest.

    .. math:: \varepsilon = \frac{C}{C + odds \cdot r / w - 1}

    At the minimum of smoothed cross-entropy of :math:`z + \tau \log \pi` the softmax is the smoothed target, whose two
    values have the ratio :math:`C (1 - \varepsilon) / \varepsilon + 1`; in the odds of the model alone it is
    divided by r. With more smoothing than at odds 1 the rarest class wins.

    Args:
        odds: > 1.
        ratio: of the largest to the smallest prior, to the power of tau, r.
        classes: number of classes C; 2 for a sigmoid.
        target_weight: largest weight w of the target of a learnt sample, relative to that of the other classes; of the
            cyclical focal loss :math:`2^{\gamma_{hc}}`.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: odds are not above 1.

    Example:
        >>> round(matched_smoothing(10.0, 100.0, classes=10), 4)
        0.0099
    """
    if not odds > 1:
        raise ValueError(f"smoothing_odds is {odds}; it must be greater than 1")
    return classes / (classes + max(odds * ratio / target_weight - 1, 0.0))


def check_tau(tau: float) -> float:
    """Return ``tau``; refuse one that is negative or not finite."""
    if not isinstance(tau, numbers.Real):
        raise TypeError(f"tau is {tau!r}; it must be a number")
    check_at_least("tau", tau, 0)
    if tau == float("inf"):
        raise ValueError("tau is inf; it must be finite (1 takes the whole prior out)")
    return tau


def _label_parts(labels: Any) -> Iterable[Tensor]:
    """Labels as tensors of integers: the one that was given, or those of an iterable, one at a time."""
    if hasattr(labels, "__array__") or isinstance(labels, Tensor) or _is_numbers(labels):
        labels = [labels]
    for part in labels:
        if isinstance(part, str):
            raise TypeError(f"labels hold the text {part!r}; they must be class indices, integers from 0")
        tensor = torch.as_tensor(part)
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            raise TypeError(f"labels have dtype {tensor.dtype}; they must be class indices, integers from 0")
        yield tensor


def _is_numbers(labels: Any) -> bool:
    return isinstance(labels, Sequence) and all(isinstance(label, numbers.Number) for label in labels)


def checked_counts(counts: Counts, allow_absent: bool = False, name: str = "counts") -> Tensor:
    """Counts as float64 on the CPU, at least one-dimensional.

    Raises:
        TypeError, ValueError: counts that are no counts, or a class without a sample that may not be absent.
    """
    is_array = isinstance(counts, Tensor | Sequence | numbers.Number) or hasattr(counts, "__array__")
    if not is_array or hasattr(counts, "iloc"):  # a Series of value_counts is not in the order of the classes
        raise TypeError(
            f"{name} is a {type(counts).__name__}; give a sequence, array or tensor of numbers in the order of the"
            " class indices, such as class_counts(labels)"
        )
    n = torch.atleast_1d(torch.as_tensor(counts).detach().to("cpu", torch.float64))
    if not n.numel():
        raise ValueError(f"{name} is empty; it must hold the samples of every class")
    wrong = ~((n >= 0) & (n == n.round()) & n.isfinite())
    if bool(wrong.any()):
        value = n[wrong][0].item()
        raise ValueError(f"{name} holds {value:g} for class {_first(wrong)}; it must hold whole numbers from 0")
    if not bool(n.any()):
        raise ValueError(f"{name} is 0 for every class; there is nothing to weigh")
    if not allow_absent and not bool(n.all()):
        labels = "; if these are labels, class_counts(labels) counts them" if name == "counts" else ""
        raise ValueError(
            f"{name} is 0 for class {_first(n == 0)}; every class must have a sample, unless allow_absent=True says"
            f" that it may be absent{labels}"
        )
    return n


def _first(mask: Tensor) -> int:
    """Class (or label) of the first True."""
    return int(mask.nonzero()[0, 0])
