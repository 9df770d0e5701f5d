"""Schedules: everything that varies over training is a pure function of progress in [0, 1].

Every function takes Python floats or tensors and returns the same kind. Tensors work under ``torch.compile``.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor

from cyclofocal.arguments import check_unit_interval
from cyclofocal.ranges import check_at_least

Number = TypeVar("Number", float, Tensor)


def cyclical_eta(progress: Number, cyclical_factor: float = 4.0) -> Number:
    r"""Mixing weight of the cyclical focal loss: easy (1), hard (0), easy (1).

    .. math:: \eta = 1 - f p \;\text{ for } p \le 1/f, \qquad \eta = (f p - 1)/(f - 1) \;\text{ after}

    ``cyclical_factor`` 4 turns at a quarter of training, 2 is a symmetric triangle, 1 goes one way from 1 to 0.

    Args:
        progress: fraction of training done, in [0, 1]; a float or a tensor of any shape.
        cyclical_factor: f >= 1; the hard phase begins to end at progress 1/f.

    Returns:
        eta in [0, 1], of the kind and shape of ``progress``.

    Raises:
        ValueError: progress outside [0, 1] (not read on accelerators, where reading would stall the device),
            or a cyclical_factor below 1.

    Example:
        >>> [cyclical_eta(p / 4, cyclical_factor=4.0) for p in range(5)]
        [1.0, 0.0, 0.3333333333333333, 0.6666666666666666, 1.0]

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978.
    """
    check_unit_interval("progress", progress)
    check_cyclical_factor(cyclical_factor)
    return unchecked_eta(progress, cyclical_factor)


def check_cyclical_factor(factor: float) -> None:
    """Refuse a number below 1, or one that is not finite."""
    if not 1 <= factor < math.inf:  # as comparisons, which torch.compile can follow
        raise ValueError(f"cyclical_factor is {factor}; it must be a finite number >= 1")


def unchecked_eta(progress: Number, cyclical_factor: float) -> Number:
    """Mixing weight as :func:`cyclical_eta`, without its checks, for a clock that moves at every step."""
    falling = 1 - cyclical_factor * progress
    if cyclical_factor == 1:
        return falling  # one way: the turn is the end
    if isinstance(falling, Tensor):  # float32 may round above 1 at the end
        return torch.where(falling >= 0, falling, (falling / (1 - cyclical_factor)).clamp(max=1))
    return falling if falling >= 0 else falling / (1 - cyclical_factor)


def epoch_progress(epoch: int, epochs: int) -> float:
    """Progress of an epoch counted from 0: ``epoch / (epochs - 1)``, so the last epoch is at 1.

    A single epoch is legal and stays at 0. Steps can be counted in the same way. One or two of either lie at the ends
    of the cycle alone, where :func:`cyclical_eta` is 1 (unless its factor is 1): the focal phase is met with three or
    more. For so short a training count steps, not epochs.

    Raises:
        ValueError: epochs < 1, or epoch outside [0, epochs - 1].

    Example:
        >>> [epoch_progress(epoch, 5) for epoch in range(5)]
        [0.0, 0.25, 0.5, 0.75, 1.0]
        >>> [cyclical_eta(epoch_progress(epoch, 2)) for epoch in range(2)]  # the focal phase is never met
        [1.0, 1.0]
    """
    check_at_least("epochs", epochs)
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch is {epoch}; counted from 0 it must lie in [0, {epochs - 1}] for {epochs} epochs")
    return epoch / (epochs - 1) if epochs > 1 else 0.0


def interpolate(eta: Number, low: float, high: float) -> Number:
    """General cyclical training: the value of anything that cycles, ``(1 - eta) * high + eta * low``.

    At the easy ends of training (eta 1) the value is ``low``, in the hard middle (eta 0) it is ``high``: so the
    companion paper cycles weight decay, softmax temperature and the gradient-clipping norm.

    Args:
        eta: the clock's eta in [0, 1]; a float or a tensor.
        low: value at eta 1.
        high: value at eta 0; may be below ``low`` to cycle the other way.

    Example:
        >>> [interpolate(cyclical_eta(p / 2, cyclical_factor=2.0), 0.5, 2.0) for p in range(3)]
        [0.5, 2.0, 0.5]

    Reference: L. N. Smith, *General Cyclical Training of Neural Networks*, arXiv 2202.08835.
    """
    check_unit_interval("eta", eta)
    return high + eta * (low - high)


def repeated(progress: Number, cycles: int) -> Number:
    """Progress within the present one of ``cycles`` equal cycles; feed it to :func:`cyclical_eta`.

    The very end of training is the end of the last cycle (1), not the beginning of another.

    Raises:
        ValueError: progress outside [0, 1], or cycles < 1.

    Example:
        >>> [repeated(p / 8, cycles=2) for p in (0, 2, 4, 6, 8)]
        [0.0, 0.5, 0.0, 0.5, 1.0]
    """
    check_unit_interval("progress", progress)
    check_at_least("cycles", cycles)
    turns = progress * cycles
    if isinstance(turns, Tensor):
        return torch.where(progress < 1, turns - turns.floor(), 1.0)
    return turns - math.floor(turns) if progress < 1 else 1.0


def cosine(eta: Number) -> Number:
    """The cosine-shaped variant: eta with its corners rounded, ``(1 - cos(pi * eta)) / 2``.

    Same ends (0 and 1), same middle (1/2), slope 0 at the ends and at the turn.

    Example:
        >>> [round(cosine(eta), 3) for eta in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.146, 0.5, 1.0]
    """
    check_unit_interval("eta", eta)
    if isinstance(eta, Tensor):
        return (1 - torch.cos(math.pi * eta)) / 2
    return (1 - math.cos(math.pi * eta)) / 2
