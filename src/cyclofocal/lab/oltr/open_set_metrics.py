"""Open-set numbers: how well images of unknown classes are separated from those of known ones."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.metrics import Array, LabelArray, log_softmax
from cyclofocal.lab.training.predictions import UNKNOWN

THRESHOLD = 0.1
"""Threshold of the published figures of OLTR."""

Mask = NDArray[np.bool_]
Variant = Literal["oltr", "oltr-old"]


def confidence(logits: Array) -> Array:
    """Largest softmax probability, (N,)."""
    return np.exp(log_softmax(logits.astype(np.float64)).max(1))


def predict_or_reject(logits: Array, threshold: float = THRESHOLD) -> LabelArray:
    """Predicted classes (N,), :data:`UNKNOWN` where the confidence is below ``threshold``.

    Raises:
        ValueError: a threshold outside [0, 1].

    Example:
        >>> predict_or_reject(np.log([[0.9, 0.1], [0.5, 0.5]]), threshold=0.6).tolist()
        [0, -1]
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must be a probability, in [0, 1]")
    return np.where(confidence(logits) < threshold, UNKNOWN, logits.argmax(1))


def f_measure(predicted: LabelArray, target: LabelArray, variant: Variant) -> float:
    r"""Open-set F-measure, 2TP / (2TP + FP + FN), over all images; each variant counts in its own way.

    * TP: a known image whose class is right.
    * FP: a known image whose class is wrong; in "oltr" also one that is rejected, in "oltr-old" not.
    * FN: an unknown image that is taken for a known class.

    So rejecting costs nothing in "oltr-old", and figures of the two cannot be compared; nor can figures at different
    thresholds. Both are 0 where no known image is right.

    Args:
        predicted: classes, :data:`UNKNOWN` where rejected; see :func:`predict_or_reject`.
        target: classes, :data:`UNKNOWN` for unknown images.
        variant: "oltr", the current code of OLTR; "oltr-old", its code before.

    Raises:
        ValueError: another variant, or lengths that differ.

    Example:
        >>> predicted, target = np.array([0, 1, -1, 1]), np.array([0, 0, 1, -1])
        >>> [round(f_measure(predicted, target, variant), 3) for variant in ("oltr", "oltr-old")]
        [0.4, 0.5]

    Reference: Liu et al., *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019, and its code.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant is {variant!r}; it must be one of {', '.join(get_args(Variant))}")
    if predicted.shape != target.shape:
        raise ValueError(f"predicted has the shape {predicted.shape} and target {target.shape}; they must agree")
    known, right = target != UNKNOWN, predicted == target
    true_positive = (known & right).sum()
    false_positive = (known & ~right & ((predicted != UNKNOWN) | (variant == "oltr"))).sum()
    false_negative = (~known & ~right).sum()
    return float(2 * true_positive / max(2 * true_positive + false_positive + false_negative, 1))


def auroc(confidence: Array, known: Mask) -> float:
    """Chance that a known image is held with more confidence than an unknown one; ties count half.

    Args:
        confidence: (N,), higher for what looks known.
        known: (N,), true for known images; there must be some of both kinds.

    Raises:
        ValueError: images of one kind only.
    """
    from sklearn.metrics import roc_auc_score  # takes a second to import

    _check_both(known)
    return float(roc_auc_score(known, confidence))


def fpr_at_95(confidence: Array, known: Mask) -> float:
    """Share of unknown images that are accepted where at least 95 % of the known ones are, at the highest threshold.

    Arguments and errors as of :func:`auroc`.
    """
    from sklearn.metrics import roc_curve

    _check_both(known)
    accepted_unknown, accepted_known, _ = roc_curve(known, confidence, drop_intermediate=False)
    return float(accepted_unknown[accepted_known >= 0.95].min())


def _check_both(known: Mask) -> None:
    if len(np.unique(known)) != 2:
        raise ValueError("there must be known and unknown images; here all are of one kind")
