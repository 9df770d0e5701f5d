"""JAX: losses and schedule as pure functions, with the conventions of optax; classes last, no reduction."""

from typing import Any

from cyclofocal.arguments import check_gammas, check_unit_interval
from cyclofocal.integrations.host import require_host

require_host("jax", "0.4.30")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import Array  # noqa: E402
from jax.typing import ArrayLike  # noqa: E402


def cyclical_eta(progress: ArrayLike, cyclical_factor: float = 4.0) -> Array:
    """Compute :func:`cyclofocal.schedules.cyclical_eta` for arrays, also under ``jit``.

    Args:
        progress: fraction of training done, in [0, 1]; outside it the result is nan, as values cannot raise under jit.
        cyclical_factor: >= 1; the turn is at progress 1/cyclical_factor.

    Raises:
        TypeError, ValueError: cyclical_factor is traced, or below 1.

    Example:
        >>> [round(eta, 4) for eta in cyclical_eta(jnp.arange(5) / 4).tolist()]
        [1.0, 0.0, 0.3333, 0.6667, 1.0]
    """
    _check_static(cyclical_factor=cyclical_factor)
    if not cyclical_factor >= 1:
        raise ValueError(f"cyclical_factor is {cyclical_factor}; it must be a finite number >= 1")
    progress = jnp.asarray(progress)
    falling = 1 - cyclical_factor * progress
    rising = -falling / max(cyclical_factor - 1, 1e-9)
    eta = jnp.where(falling >= 0, falling, jnp.minimum(rising, 1)) if cyclical_factor > 1 else falling
    return jnp.where((progress >= 0) & (progress <= 1), eta, jnp.nan)


def cyclical_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    eta: ArrayLike,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    label_smoothing: float = 0.0,
    logit_offset: ArrayLike | None = None,
) -> Array:
    r"""Compute the softmax loss :func:`cyclofocal.cyclical_focal_loss` of every row.

    .. math::
        L = -\sum_j \left(s_j (1 - e + e/C)\, w_{pos}(p_j) + (1 - s_j)(e/C)\, w_{neg}(p_j)\right) \log p_j

    Args:
        logits: (..., C).
        labels: class indices (...), or probabilities s (..., C).
        eta: mixing weight in [0, 1], see :func:`cyclical_eta`; may be traced.
        gamma_pos, gamma_neg, gamma_hc, label_smoothing: as in the torch loss; static, so never traced.
        logit_offset: (C,), added to the logits; may be traced. In training ``tau * log_prior(counts).numpy()``, of
            ``cyclofocal``, is logit adjustment.

    Returns:
        (...); take the mean yourself. It is computed in the dtype of logits: cast half precision to float32 before. An
        index outside [0, C) counts as no class: 0 without label smoothing.

    Raises:
        TypeError: a setting other than eta and logit_offset is traced.
        ValueError: a shape or a setting does not fit; an eta that is a Python number outside [0, 1].

    Example:
        >>> round(float(cyclical_focal_loss(jnp.array([2.0, 0.0, -1.0]), 0, eta=0.0)), 4)
        0.0041

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978.
    """
    _check(eta, gamma_pos, gamma_neg, gamma_hc, label_smoothing)
    logits, labels = _shifted(logits, logit_offset), jnp.asarray(labels)
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == logits.shape[:-1]:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    if labels.shape != logits.shape:
        raise ValueError(f"labels has shape {labels.shape}; for logits {logits.shape} it must have that or one less")
    log_p = jax.nn.log_softmax(logits)
    finite = jnp.maximum(log_p, jnp.finfo(log_p.dtype).min)  # a class may be masked with -inf: 0 * log 0 is 0
    log_p = jnp.where(labels == 0, finite, log_p)
    non_target_prob = label_smoothing / logits.shape[-1]
    hard = _power(-jnp.expm1(log_p), gamma_pos)
    target_term = _mix(hard, (1 + jnp.exp(log_p)) ** gamma_hc, eta) * log_p
    loss = labels * (1 - label_smoothing + non_target_prob) * target_term
    if non_target_prob:
        loss += (1 - labels) * non_target_prob * _mix(jnp.exp(gamma_neg * finite), 1.0, eta) * finite
    return -loss.sum(-1)


def binary_cyclical_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    eta: ArrayLike,
    gamma_pos: float = 2.0,
    gamma_neg: float = 2.0,
    gamma_hc: float = 3.0,
    alpha: float | None = None,
    label_smoothing: float = 0.0,
    logit_offset: ArrayLike | None = None,
) -> Array:
    """Compute the sigmoid loss :func:`cyclofocal.binary_cyclical_focal_loss` of every element.

    Args:
        logits: any shape.
        labels: the same shape, in [0, 1].
        eta: mixing weight in [0, 1], see :func:`cyclical_eta`; may be traced.
        gamma_pos, gamma_neg, gamma_hc, alpha, label_smoothing: as in the torch loss; static, so never traced.
        logit_offset: (C,), one number per entry of the last dimension, added to the logits, as for the softmax loss;
            ``log_prior(positives, samples=n)`` is the prior here.

    Returns:
        The shape of logits; take the mean yourself. It is computed in the dtype of logits: cast half precision to
        float32 before.

    Raises:
        TypeError: a setting other than eta and logit_offset is traced.
        ValueError: a shape or a setting does not fit; an eta that is a Python number outside [0, 1].

    Example:
        >>> [round(v, 4) for v in binary_cyclical_focal_loss(jnp.array([3.0, 0.5]), jnp.ones(2), eta=0.0).tolist()]
        [0.0001, 0.0676]
    """
    _check(eta, gamma_pos, gamma_neg, gamma_hc, label_smoothing)
    _check_static(alpha=alpha)
    if alpha is not None:
        check_unit_interval("alpha", alpha)
    logits, labels = _shifted(logits, logit_offset), jnp.asarray(labels)
    if labels.shape != logits.shape:
        raise ValueError(f"labels has shape {labels.shape}, logits {logits.shape}; they must agree")
    labels = labels * (1 - label_smoothing) + label_smoothing / 2
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    pos = _mix(jnp.exp(gamma_pos * log_not_p), (1 + jnp.exp(log_p)) ** gamma_hc, eta) * log_p
    neg = _mix(jnp.exp(gamma_neg * log_p), (1 + jnp.exp(log_not_p)) ** gamma_hc, eta) * log_not_p
    side_pos, side_neg = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    return -(side_pos * labels * pos + side_neg * (1 - labels) * neg)


def _check_static(**settings: Any) -> None:
    for name, value in settings.items():
        if isinstance(value, jax.core.Tracer):
            raise TypeError(f"{name} is traced; only eta may be: close over {name}, or name it in static_argnames")


def _check(eta: Any, gamma_pos: float, gamma_neg: float, gamma_hc: float, label_smoothing: float) -> None:
    _check_static(gamma_pos=gamma_pos, gamma_neg=gamma_neg, gamma_hc=gamma_hc, label_smoothing=label_smoothing)
    check_gammas(gamma_pos, gamma_neg, gamma_hc)
    check_unit_interval("label_smoothing", label_smoothing)
    if isinstance(eta, float | int):
        check_unit_interval("eta", eta)


def _shifted(logits: ArrayLike, logit_offset: ArrayLike | None) -> Array:
    """Add one number per class to the logits, in their dtype."""
    logits = jnp.asarray(logits)
    if logit_offset is None:
        return logits
    if logits.ndim == 0 or np.shape(logit_offset) != logits.shape[-1:]:
        raise ValueError(
            f"logit_offset has shape {np.shape(logit_offset)}; for logits of shape {logits.shape} it must hold one"
            " number for each class, the last dimension"
        )
    if not isinstance(logit_offset, jax.core.Tracer) and not np.isfinite(np.asarray(logit_offset)).all():
        raise ValueError("logit_offset holds a value that is not finite; for a class without samples see allow_absent")
    return (logits + jnp.asarray(logit_offset)).astype(jnp.result_type(logits, 0.0))


def _power(base: Array, exponent: float) -> Array:
    """Return ``base ** exponent`` for base >= 0, with gradient 0 instead of infinity at 0 for exponents below 1."""
    if exponent == 0:
        return jnp.ones_like(base)
    if exponent >= 1:
        return base**exponent
    return jnp.where(base == 0, 0.0, jnp.where(base == 0, 1.0, base) ** exponent)


def _mix(hard: Array, easy: ArrayLike, eta: ArrayLike) -> Array:
    return hard + eta * (easy - hard)
