"""Gradient boosting: first and second derivatives of the losses by the raw scores, in numpy, and the round."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cyclofocal.arguments import FROM_COUNTS
from cyclofocal.integrations.progress import Loss, check_criterion, set_clock
from cyclofocal.losses import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.ranges import check_at_least

Floats = NDArray[np.float64]

SMALLEST_HESSIAN = 1e-16
"""Floor of the Hessian, where the curvature of the weighted cross-entropy underflows; XGBoost has the same."""


def sigmoid_derivatives(
    scores: ArrayLike,
    target: ArrayLike,
    *,
    eta: float,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    alpha: float | None = None,
    pos_weight: float = 1.0,
    label_smoothing: float = 0.0,
    weight: float = 1.0,
) -> tuple[Floats, Floats]:
    r"""Compute the derivatives of :func:`cyclofocal.binary_cyclical_focal_loss` by each score.

    With z the score towards the true side, p its sigmoid, q = 1 - p and w(p) the weight:

    .. math::
        L = -w \log p, \quad A = p\,q\,w', \quad L' = -(A \log p + q w), \quad L'' = -(A' \log p + 2 q A - p q w)

    The Hessian is the exact one or, where larger, the curvature p q w of the cross-entropy with fixed weights: the
    focal loss is not convex, and a tree cannot use a curvature that is not positive.

    Args:
        scores: raw scores (N,).
        target: (N,), in [0, 1].
        eta: mixing weight in [0, 1].
        gamma_pos, gamma_neg, gamma_hc, alpha, pos_weight, label_smoothing, weight: as in the loss.

    Returns:
        Gradient (N,) and Hessian (N,), the latter positive.

    Example:
        >>> gradient, hessian = sigmoid_derivatives([0.0, 2.0], [1, 1], eta=0.0)
        >>> gradient.round(4), hessian.round(4)
        (array([-0.2983, -0.0049]), array([0.3991, 0.0127]))
    """
    scores, target = np.asarray(scores, np.float64), np.asarray(target, np.float64)
    target = target * (1 - label_smoothing) + label_smoothing / 2
    pos = weight * target * pos_weight * (1.0 if alpha is None else alpha)
    neg = weight * (1 - target) * (1.0 if alpha is None else 1 - alpha)
    first_pos, second_pos, fixed_pos = _side(scores, eta, gamma_pos, gamma_hc)
    first_neg, second_neg, fixed_neg = _side(-scores, eta, gamma_neg, gamma_hc)
    hessian = np.maximum(pos * second_pos + neg * second_neg, pos * fixed_pos + neg * fixed_neg)
    return pos * first_pos - neg * first_neg, np.maximum(hessian, SMALLEST_HESSIAN)


def _side(z: Floats, eta: float, gamma: float, gamma_hc: float) -> tuple[Floats, Floats, Floats]:
    """Return first and second derivative of ``-w log p`` by z, and its curvature with w held fixed."""
    log_p, log_q = -np.logaddexp(0, -z), -np.logaddexp(0, z)
    p, q = np.exp(log_p), np.exp(log_q)
    hard, easy = (1 - eta) * np.exp(gamma * log_q), eta * (1 + p) ** (gamma_hc - 2)
    w = hard + easy * (1 + p) ** 2
    b = -gamma * hard + gamma_hc * q * easy * (1 + p)  # q * dw/dp
    slope_b = p * gamma**2 * hard + gamma_hc * p * q * easy * ((gamma_hc - 1) * q - (1 + p))  # db/dz
    a, slope_a = p * b, p * q * b + p * slope_b
    return -(a * log_p + q * w), -(slope_a * log_p + 2 * q * a - p * q * w), p * q * w


def softmax_derivatives(
    scores: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    eta: float,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    label_smoothing: float = 0.0,
) -> tuple[Floats, Floats]:
    r"""Compute gradient and diagonal Hessian of :func:`cyclofocal.cyclical_focal_loss` by each score.

    With :math:`u_j = p_j\,dL/dp_j`, :math:`v_j = p_j\,du_j/dp_j` and U, V their sums over j:

    .. math::
        \partial_k L = u_k - p_k U, \qquad
        \partial_k^2 L = v_k (1 - p_k)^2 + p_k^2 (V - v_k) - p_k (1 - p_k) U

    The Hessian is made positive as in :func:`sigmoid_derivatives`; the curvature of the cross-entropy with its weights
    held fixed is here p_k (1 - p_k) times their sum over j.

    Args:
        scores: raw scores (N, C).
        target: class indices (N,) in [0, C).
        weight: class weights (C,).
        eta: mixing weight in [0, 1].
        gamma_pos, gamma_neg, gamma_hc, label_smoothing: as in the loss.

    Returns:
        Gradient (N, C) and Hessian (N, C), the latter positive.

    Example:
        >>> gradient, hessian = softmax_derivatives([[0.0, 0.0, 0.0]], [1], eta=0.5)
        >>> gradient.round(3), hessian.round(3)
        (array([[ 0.225, -0.45 ,  0.225]]), array([[0.313, 0.313, 0.313]]))
    """
    scores, classes = np.asarray(scores, np.float64), np.shape(scores)[1]
    true = np.arange(classes) == np.asarray(target, np.int64)[:, None]
    factor = np.where(true, 1 - label_smoothing, 0) + label_smoothing / classes
    factor = factor if weight is None else factor * np.asarray(weight, np.float64)
    log_p, q = _log_softmax(scores)
    p = np.exp(log_p)
    target_terms = _target_terms(log_p, p, q, eta, gamma_pos, gamma_hc)
    non_target_terms = _non_target_terms(log_p, p, eta, gamma_neg)
    w, u, v = (factor * np.where(true, *terms) for terms in zip(target_terms, non_target_terms, strict=True))
    total_u, total_v = u.sum(1, keepdims=True), v.sum(1, keepdims=True)
    non_target_u = np.where(true, np.where(true, 0, u).sum(1, keepdims=True), total_u - u)
    exact = v * q**2 + p**2 * np.where(true, np.where(true, 0, v).sum(1, keepdims=True), total_v - v) - p * q * total_u
    fixed = p * q * w.sum(1, keepdims=True)
    return u * q - p * non_target_u, np.maximum(np.maximum(exact, fixed), SMALLEST_HESSIAN)


def _log_softmax(scores: Floats) -> tuple[Floats, Floats]:
    """Return log p and 1 - p, exact also where p is close to 1."""
    top = scores.argmax(1)[:, None]
    shifted = scores - np.take_along_axis(scores, top, 1)
    odds = np.exp(shifted)
    np.put_along_axis(odds, top, 0.0, 1)
    rest = odds.sum(1, keepdims=True)
    log_p = shifted - np.log1p(rest)
    q = -np.expm1(log_p)
    np.put_along_axis(q, top, rest / (1 + rest), 1)
    return log_p, np.maximum(q, np.finfo(np.float64).tiny)  # never 0: it is raised to gamma - 2


def _target_terms(log_p: Floats, p: Floats, q: Floats, eta: float, gamma: float, gamma_hc: float) -> tuple[Floats, ...]:
    """Return weight, u and v of the true class."""
    hard, easy = (1 - eta) * q**gamma, eta * (1 + p) ** gamma_hc
    slope = gamma_hc * easy * p / (1 + p)  # p dw/dp of the easy part
    bend = slope * (gamma_hc - 1) * p / (1 + p)  # p^2 d2w/dp2 of it
    ratio = log_p / q
    u = -(hard + easy + slope * log_p - gamma * p * hard * ratio)
    v = gamma * p * hard / q * (log_p + 2) - gamma * (gamma - 1) * p**2 * hard / q * ratio
    return hard + easy, u, v - slope * (log_p + 2) - bend * log_p


def _non_target_terms(log_p: Floats, p: Floats, eta: float, gamma: float) -> tuple[Floats, ...]:
    """Return weight, u and v of the other classes."""
    hard = (1 - eta) * p**gamma
    u = -(hard + eta + gamma * hard * log_p)
    return hard + eta, u, -gamma * hard * (2 + gamma * log_p)


def probabilities(scores: ArrayLike) -> Floats:
    """Convert raw scores to probabilities: the sigmoid of (N,), or the softmax of (N, C).

    Raises:
        ValueError: scores of another shape. Class labels, which XGBoost predicts for several classes without
            ``output_margin=True``, cannot be distinguished from scores.

    Example:
        >>> probabilities([0.0]), probabilities([[0.0, 0.0]])
        (array([0.5]), array([[0.5, 0.5]]))
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim not in (1, 2) or scores.shape[1:] == (1,):
        raise ValueError(f"scores have shape {scores.shape}; they must be (N,) for two classes, or (N, C) for C >= 2")
    return np.exp(-np.logaddexp(0, -scores)) if scores.ndim == 1 else np.exp(_log_softmax(scores)[0])


LOSS_SETTINGS = ("gamma_pos", "gamma_neg", "gamma_hc", "cyclical_factor", "label_smoothing")
"""Settings of the loss in the estimators."""


def class_indices(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes of labels of any kind, and the labels as indices of these.

    Raises:
        ValueError: fewer than two classes, or no labels of classes.
    """
    from sklearn.utils.multiclass import check_classification_targets  # both boosters need it for their estimators
    from sklearn.utils.validation import column_or_1d

    y = column_or_1d(y, warn=True)
    check_classification_targets(y)
    classes, indices = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y has {len(classes)} class, {classes.tolist()}; a classifier needs at least two classes")
    return classes, indices


def starting_scores(labels: NDArray[np.int64], weights: ArrayLike | None) -> Floats:
    """Return the scores of the weighted class frequencies: log odds (1,) of two classes, log shares (C,) of more.

    Raises:
        ValueError: a class whose rows all have weight 0, or a negative weight.

    Example:
        >>> probabilities(starting_scores(np.array([0, 0, 0, 1]), None))
        array([0.25])
    """
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != labels.shape or (weights < 0).any():
        raise ValueError(f"sample_weight of shape {weights.shape} must be >= 0, one for each of {len(labels)} rows")
    mass = np.bincount(labels, weights)
    if not mass.all():
        raise ValueError(f"sample_weight is zero in every row of class number {mass.argmin()}; leave these rows out")
    log_shares = np.log(mass / mass.sum())
    return log_shares[1:] - log_shares[:1] if len(mass) == 2 else log_shares


def class_probabilities(scores: Floats) -> Floats:
    """Convert raw scores to one column per class: both sides of the sigmoid of (N,), or the softmax of (N, C).

    Example:
        >>> class_probabilities(np.zeros(1))
        array([[0.5, 0.5]])
    """
    if scores.ndim > 1:
        return probabilities(scores)
    return np.stack([probabilities(-scores), probabilities(scores)], 1)


class BoostedLoss:
    """Loss of a booster, whose progress follows the rounds.

    Args:
        criterion: ``CyclicalFocalLoss()``, or ``BinaryCyclicalFocalLoss()`` for two classes, also from ``from_counts``:
            class weights, ``weight_start`` and ``logit_offset`` are used; reduction is not: a booster sums.
        num_boost_round: number of rounds of the whole training.

    Raises:
        TypeError, ValueError: criterion has no clock, counts itself or has settings that boosting cannot use;
            num_boost_round < 1.
    """

    def __init__(self, criterion: Loss, num_boost_round: int) -> None:
        check_criterion(criterion)
        check_at_least("num_boost_round", num_boost_round)
        self.criterion = criterion
        self.num_boost_round = num_boost_round
        self._settings: dict[str, Any] = {**criterion.gammas, "label_smoothing": criterion.label_smoothing}
        if isinstance(criterion, BinaryCyclicalFocalLoss):
            _check_one_score(criterion)
            self._settings["alpha"] = criterion.alpha
        self._due = 0  # boosters that have not yet computed this round's derivatives

    def __deepcopy__(self, memo: object) -> "BoostedLoss":
        """Return this object: frameworks copy objective and callback separately, and both must share one clock."""
        return self

    def set_round(self, rounds_done: int, boosters: int = 1) -> None:
        """Set the clock for the round after ``rounds_done``; each of ``boosters`` uses it once."""
        set_clock(self.criterion, rounds_done, self.num_boost_round)
        self._due = boosters

    def refuse_balancing(self, name: str, value: object) -> None:
        """Refuse a parameter by which a booster balances two classes in its built-in objectives only."""
        binary = isinstance(self.criterion, BinaryCyclicalFocalLoss)
        instead = "BinaryCyclicalFocalLoss(pos_weight=torch.tensor(5.0))" if binary else "CyclicalFocalLoss(weight)"
        raise ValueError(
            f"{name} is {value}, but boosters apply it in built-in objectives only; leave it out and weight the"
            f" classes in the loss, as in {instead}, or the rows of the data"
        )

    def derivatives(self, scores: ArrayLike, labels: ArrayLike, weights: Floats | None) -> tuple[Floats, Floats]:
        """Return gradient and Hessian of this round, times the weights of the rows."""
        if not self._due:
            raise RuntimeError(
                "progress of this loss is never set; train with its callback too, as in callbacks=[loss.callback]"
            )
        labels, scores = self._labels(scores, labels), self._with_prior(scores)
        self._due -= 1
        binary = isinstance(self.criterion, BinaryCyclicalFocalLoss)
        derive = sigmoid_derivatives if binary else softmax_derivatives
        settings = self._settings | self._class_weights()
        gradient, hessian = derive(scores, labels, eta=float(self.criterion.eta), **settings)
        if weights is None or not weights.size:
            return gradient, hessian
        rows = weights.reshape(-1, *[1] * (gradient.ndim - 1))
        return gradient * rows, hessian * rows

    def log_loss(self, scores: ArrayLike, labels: ArrayLike, weights: Floats | None) -> float:
        """Return the plain cross-entropy, weighted mean over the rows: unlike the loss, comparable between rounds.

        The prior is added as in training: early stopping compares rows of the same class frequencies.
        """
        labels, scores = self._labels(scores, labels), self._with_prior(scores)
        if scores.ndim == 1:
            rows = labels * np.logaddexp(0, -scores) + (1 - labels) * np.logaddexp(0, scores)
        else:
            rows = -np.take_along_axis(_log_softmax(scores)[0], labels.astype(np.int64)[:, None], 1)[:, 0]
        return float(np.average(rows, weights=None if weights is None or not weights.size else weights))

    def _with_prior(self, scores: ArrayLike) -> Floats:
        """Return the scores of the training form: with the loss's logit_offset, if it has one."""
        offset = self.criterion.logit_offset
        scores = np.asarray(scores, np.float64)
        return scores if offset is None else scores + _floats(offset)

    def _class_weights(self) -> dict[str, Any]:
        """Return the class weights of this round, or none before ``weight_start``."""
        if isinstance(self.criterion, BinaryCyclicalFocalLoss):
            weights = {name: self.criterion.weight_now(name) for name in ("weight", "pos_weight")}
            return {name: value.item() for name, value in weights.items() if value is not None}
        weight = self.criterion.weight_now()
        return {} if weight is None else {"weight": _floats(weight)}

    def _labels(self, scores: ArrayLike, labels: ArrayLike) -> Floats:
        """Check the labels against the scores and return them as floats."""
        dims, labels = np.ndim(scores), np.asarray(labels, np.float64)
        if isinstance(self.criterion, BinaryCyclicalFocalLoss):
            if dims != 1:
                raise ValueError(f"scores has shape {np.shape(scores)}; for several classes give a CyclicalFocalLoss")
            if not ((labels >= 0) & (labels <= 1)).all():
                raise ValueError(f"labels range from {labels.min()} to {labels.max()}; they must lie in [0, 1]")
            return labels
        if dims != 2:
            raise ValueError("scores has one column; set num_class, or for two classes give a BinaryCyclicalFocalLoss")
        classes = np.shape(scores)[1]
        for name in ("weight", "logit_offset"):
            held = getattr(self.criterion, name)
            if held is not None and held.shape != (classes,):
                raise ValueError(
                    f"{name} of the loss has shape {tuple(held.shape)}; num_class is {classes}, one for each"
                    f"{FROM_COUNTS}"
                )
        if not np.isin(labels, np.arange(classes)).all():
            raise ValueError(f"labels must be whole numbers from 0 to num_class - 1 = {classes - 1}")
        return labels


def loss_of_classes(classes: int, offset: Floats | None = None, **settings: float) -> Loss:
    """Make the loss of a booster: over a sigmoid for two classes, otherwise over a softmax.

    Args:
        classes: number of classes, >= 2.
        offset: scores that are added in training, from :func:`starting_scores`.
        settings: of the loss.

    Example:
        >>> type(loss_of_classes(2)).__name__, type(loss_of_classes(3)).__name__
        ('BinaryCyclicalFocalLoss', 'CyclicalFocalLoss')
    """
    criterion = BinaryCyclicalFocalLoss if classes == 2 else CyclicalFocalLoss
    return criterion(logit_offset=None if offset is None else torch.from_numpy(offset), **settings)  # type: ignore[arg-type]


def _check_one_score(criterion: BinaryCyclicalFocalLoss) -> None:
    """Refuse settings that have no meaning for one raw score per row."""
    if criterion.probability_margin:
        raise ValueError(f"criterion has probability_margin={criterion.probability_margin}; boosting does not take it")
    for name in ("weight", "pos_weight", "logit_offset"):
        held = getattr(criterion, name)
        if held is not None and held.numel() != 1:
            raise ValueError(
                f"{name} has shape {tuple(held.shape)}, but a booster of two classes has one score per row: give one"
                " number, as BinaryCyclicalFocalLoss.from_counts(positives, samples) does"
            )


def _floats(tensor: Tensor) -> Floats:
    return tensor.double().cpu().numpy()
