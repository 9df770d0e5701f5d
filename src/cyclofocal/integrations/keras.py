"""Keras 3: the losses, the clock as one of the model's metrics, and the callback that sets it."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from cyclofocal import losses as torch_losses
from cyclofocal.arguments import FROM_COUNTS, check_gammas, check_unit_interval
from cyclofocal.imbalance import Counts, WeightScheme
from cyclofocal.integrations.host import require_host
from cyclofocal.schedules import cyclical_eta

require_host("keras", "3.7")

import keras  # noqa: E402
from keras import ops  # noqa: E402


@keras.saving.register_keras_serializable("cyclofocal")
class Clock(keras.metrics.Metric):
    """Clock of a loss as a metric: Keras shows eta, and compiled steps see its changes.

    Variables that belong to the loss alone would be constants in compiled steps on the jax backend. With
    ``steps_per_execution`` several steps run between two callbacks, so every training step adds ``pace`` to ``step``.
    """

    def __init__(self, name: str = "eta", *, cyclical_factor: float = 4.0, **options: Any) -> None:
        super().__init__(name=name, **options)
        self.cyclical_factor = cyclical_factor
        self.callback: CyclicalFocalCallback | None = None
        dtype = "float32" if "16" in self.dtype else self.dtype  # half precision would round the progress
        add = functools.partial(self.add_variable, shape=(), dtype=dtype)
        self.eta = add(initializer="ones", name="eta")
        self.trains = add(initializer="zeros", name="trains")
        self.step = add(initializer="zeros", name="step")
        self.last = add(initializer="ones", name="last")
        self.pace = add(initializer="zeros", name="pace")

    def schedule(self) -> Any:
        """Return eta of the next step by :func:`cyclofocal.schedules.cyclical_eta`; exact at progress 0 and 1."""
        factor, progress = self.cyclical_factor, self.progress()
        falling = 1 - factor * progress
        rising = ops.maximum(1 - (1 - progress) * (factor / max(factor - 1, 1e-9)), 0)
        return ops.where(falling >= 0, falling, rising)

    def progress(self) -> Any:
        """Return the fraction of training done at the next step."""
        return ops.minimum(ops.convert_to_tensor(self.step) / ops.convert_to_tensor(self.last), 1)

    def move(self, step: float, last: float, pace: float) -> None:
        """Set the clock for training step ``step``, counted from 0, where ``last`` is the last one."""
        self.eta.assign(cyclical_eta(step / last, self.cyclical_factor))
        self.trains.assign(1)
        self.step.assign(step)
        self.last.assign(last)
        self.pace.assign(pace)

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Show the eta of a finished step and, in training, advance."""
        eta, trains, step, pace = map(ops.convert_to_tensor, (self.eta, self.trains, self.step, self.pace))
        self.eta.assign(ops.where(trains > 0, self.schedule(), eta))
        self.step.assign(step + trains * pace)

    def reset_state(self) -> None:
        """Check for the callback; the clock itself is not reset, as an epoch does not restart the cycle."""
        if self.callback is not None:
            self.callback.check_present()

    def result(self) -> Any:
        return ops.convert_to_tensor(self.eta) + 0  # on the jax backend the variable's value itself is donated

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"cyclical_factor": self.cyclical_factor}


LARGEST_EXACT = {"bfloat16": 256, "float16": 2048}
"""Largest number up to which a half-precision dtype holds every whole number."""
MISSING_CALLBACK = (
    "progress of this loss is never set; give fit or evaluate callbacks=[CyclicalFocalCallback(loss)], or call"
    " loss.set_progress(progress)"
)


class _Clocked(keras.losses.Loss):
    """Settings and clock of a loss that takes logits and returns one value per row."""

    def __init__(
        self,
        *,
        gamma_pos: float = 2.0,
        gamma_neg: float = 2.0,
        gamma_hc: float = 3.0,
        cyclical_factor: float = 4.0,
        label_smoothing: float = 0.0,
        weight: Any = None,
        pos_weight: Any = None,
        weight_start: float = 0.0,
        logit_offset: Any = None,
        reduction: str = "mean_with_sample_weight",
        **options: Any,
    ) -> None:
        check_gammas(gamma_pos, gamma_neg, gamma_hc)
        check_unit_interval("label_smoothing", label_smoothing)
        check_unit_interval("weight_start", weight_start)
        if weight_start and weight is None and pos_weight is None:
            raise ValueError(f"weight_start is {weight_start}, but there is no class weight that could start")
        cyclical_eta(0.0, cyclical_factor)  # raises if it does not fit
        super().__init__(reduction=reduction, **options)
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.gamma_hc = gamma_hc
        self.cyclical_factor = cyclical_factor
        self.label_smoothing = label_smoothing
        self.weight = _per_class("weight", weight)
        self.pos_weight = _per_class("pos_weight", pos_weight)
        self.weight_start = weight_start
        self.logit_offset = _per_class("logit_offset", logit_offset)
        self.clock = Clock(cyclical_factor=cyclical_factor)
        self.is_set = False

    def set_progress(self, progress: float) -> None:
        """Set the clock to ``progress`` in [0, 1], and the loss to its training form."""
        self.clock.move(float(progress), last=1, pace=0)
        self.clock.callback = None
        self.is_set = True

    def get_config(self) -> dict[str, Any]:
        names = ["gamma_pos", "gamma_neg", "gamma_hc", "cyclical_factor", "label_smoothing"]
        names += ["weight", "weight_start", "logit_offset"]
        return super().get_config() | {name: getattr(self, name) for name in names}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if sample_weight is not None:
            sample_weight = _expand(sample_weight, y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def _weigh(self, hard: Any, easy: Any) -> Any:
        """Interpolate the weight by the present eta."""
        return self._in_training(hard + ops.cast(self.clock.schedule(), self.dtype) * (easy - hard))

    def _in_training(self, factor: Any) -> Any:
        """Return the factor in training, otherwise 1."""
        return ops.where(ops.convert_to_tensor(self.clock.trains) > 0, factor, 1.0)

    def _shift(self, y_pred: Any) -> Any:
        """Add ``logit_offset`` in training."""
        if self.logit_offset is None:
            return y_pred
        _check_classes("logit_offset", self.logit_offset, y_pred)
        offset = ops.convert_to_tensor(self.logit_offset, dtype=self.dtype)
        return y_pred + ops.where(ops.convert_to_tensor(self.clock.trains) > 0, offset, 0.0)

    def weight_now(self, name: str, y_pred: Any) -> Any:
        """Return the numbers of this name, one per class: 1 without them and before ``weight_start``."""
        numbers = getattr(self, name)
        if numbers is None:
            return 1.0
        _check_classes(name, numbers, y_pred)
        weight = ops.convert_to_tensor(numbers, dtype=self.dtype)
        return ops.where(self.clock.progress() >= self.weight_start - torch_losses.ROUNDING, weight, 1.0)

    def _check_set(self) -> None:
        """Raise if progress was never set; a compiled step of the jax backend could not raise later."""
        if not self.is_set:
            raise RuntimeError(MISSING_CALLBACK)


@keras.saving.register_keras_serializable("cyclofocal")
class CyclicalFocalLoss(_Clocked):
    """Softmax loss :func:`cyclofocal.cyclical_focal_loss`, from logits.

    ``model.compile(loss=loss, metrics=[loss.clock, ...])`` and ``fit(callbacks=[CyclicalFocalCallback(loss)])``. In
    validation and after training it is plain cross-entropy, with the same smoothing.

    Give class weights here or, fixed ones, as ``fit(class_weight=...)``, weights of rows or pixels as
    ``sample_weight``; the mean is weighted as in torch, unlike Keras' default.

    Args:
        ignore_class: label of the rows to ignore, such as 255, or None.
        weight: class weights (C,): factors of the rows, for soft labels their mean over the labels.
        weight_start: progress in [0, 1] before which all class weights are 1 (deferred re-weighting: 0.8).
        logit_offset: (C,), added to the logits in training only; :meth:`from_counts` makes it from the counts.
        gamma_pos, gamma_neg, gamma_hc, cyclical_factor, label_smoothing: as in :class:`cyclofocal.CyclicalFocalLoss`.
        reduction, options: as in a Keras loss; options are ``name`` and ``dtype``.

    Shape: logits (N, ..., C); class indices (N, ...) or (N, ..., 1), or probabilities (N, ..., C).

    Raises:
        ValueError: a setting or a shape does not fit.
        RuntimeError: when called, progress was never set.

    Example:
        >>> import numpy as np
        >>> loss = CyclicalFocalLoss(gamma_hc=2.0)
        >>> loss.set_progress(0.25)  # the turn: eta 0, the focal loss
        >>> round(float(loss(np.array([0]), np.array([[2.0, 0.0, -1.0]]))), 4)
        0.0041

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978.
    """

    def __init__(self, *, ignore_class: int | None = None, **settings: Any) -> None:
        if settings.get("pos_weight") is not None:
            raise ValueError(f"pos_weight is {settings['pos_weight']}; a softmax has no positive side: give weight")
        super().__init__(**settings)
        self.ignore_class = ignore_class

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
    ) -> "CyclicalFocalLoss":
        """Make the loss from the training samples per class, as :meth:`cyclofocal.CyclicalFocalLoss.from_counts` does.

        Example:
            >>> loss = CyclicalFocalLoss.from_counts([90, 10], class_weight="sqrt", tau=1.0)
            >>> loss.weight, [round(offset, 2) for offset in loss.logit_offset]
            ([0.5, 1.5], [-0.11, -2.3])
        """
        prior: dict[str, Any] = {"class_weight": class_weight, "tau": tau, "smoothing_odds": smoothing_odds}
        prior |= {"beta": beta, "allow_absent": allow_absent, "counts": counts}
        return cls(**_with_prior(settings, torch_losses.CyclicalFocalLoss.from_counts, prior))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"ignore_class": self.ignore_class}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if self.ignore_class is not None:
            seen = ops.cast(ops.not_equal(y_true, self.ignore_class), self.dtype)
            seen = _expand(seen, y_pred)
            sample_weight = seen if sample_weight is None else seen * _expand(sample_weight, y_pred)
        y_true = self._distribution(y_true, y_pred)
        if self.weight is not None:
            rows = ops.sum(y_true * self.weight_now("weight", y_pred), -1)
            sample_weight = rows if sample_weight is None else rows * _expand(sample_weight, y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def _distribution(self, y_true: Any, y_pred: Any) -> Any:
        """Return one-hot labels, made before Keras casts labels to the dtype of the loss, which may round an index."""
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        classes, dtype = y_pred.shape[-1], keras.backend.standardize_dtype(y_true.dtype)
        if tuple(y_true.shape) == tuple(y_pred.shape):  # indices may be floats too, so the shape decides
            return y_true
        if classes > LARGEST_EXACT.get(dtype, classes):
            raise ValueError(f"labels are {dtype}, which rounds the numbers of {classes} classes; give integers")
        index = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
        if self.ignore_class is not None:
            index = ops.where(index == self.ignore_class, 0, index)  # any class: its weight is 0
        return ops.one_hot(index, classes, dtype=self.dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self._check_set()
        classes = y_pred.shape[-1]
        log_p = ops.log_softmax(self._shift(y_pred), axis=-1)
        least = -6e4 if self.dtype == "float16" else -3e38
        finite = ops.maximum(log_p, least)  # a class may be masked with -inf: 0 * log 0 is 0
        log_p = ops.where(y_true == 0, finite, log_p)
        non_target_prob = self.label_smoothing / classes
        hard = _power(-ops.expm1(log_p), self.gamma_pos)
        target_term = self._weigh(hard, (1 + ops.exp(log_p)) ** self.gamma_hc) * log_p
        rows = y_true * (1 - self.label_smoothing + non_target_prob) * target_term
        if non_target_prob:
            rows = rows + (1 - y_true) * non_target_prob * self._weigh(ops.exp(self.gamma_neg * finite), 1.0) * finite
        return -ops.sum(rows, axis=-1)


@keras.saving.register_keras_serializable("cyclofocal")
class BinaryCyclicalFocalLoss(_Clocked):
    """Sigmoid loss :func:`cyclofocal.binary_cyclical_focal_loss`, from logits; one value per row.

    Args:
        alpha: None, or the share in [0, 1] of the positive side.
        weight, pos_weight: factors of each label and of its positive side (C,).
        settings: as in :class:`CyclicalFocalLoss`.

    Shape: logits (N, ..., C), labels of the same shape in [0, 1], or (N, ...) for one logit.

    Raises:
        ValueError: a setting or a shape does not fit.
        RuntimeError: when called, progress was never set.

    Example:
        >>> import numpy as np
        >>> loss = BinaryCyclicalFocalLoss(alpha=0.25)
        >>> loss.set_progress(0.25)
        >>> round(float(loss(np.array([[1, 0, 0]]), np.zeros((1, 3)))), 4)
        0.1011
    """

    def __init__(self, *, alpha: float | None = None, **settings: Any) -> None:
        if alpha is not None:
            check_unit_interval("alpha", alpha)
        super().__init__(**settings)
        self.alpha = alpha

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
    ) -> "BinaryCyclicalFocalLoss":
        """Make the loss from the positives of every label (C,) and the samples.

        See :meth:`cyclofocal.BinaryCyclicalFocalLoss.from_counts`.
        """
        prior: dict[str, Any] = {"class_weight": class_weight, "tau": tau, "smoothing_odds": smoothing_odds}
        prior |= {"beta": beta, "allow_absent": allow_absent, "counts": counts, "samples": samples}
        return cls(**_with_prior(settings, torch_losses.BinaryCyclicalFocalLoss.from_counts, prior))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"alpha": self.alpha, "pos_weight": self.pos_weight}

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self._check_set()
        if len(y_true.shape) == len(y_pred.shape) - 1 and y_pred.shape[-1] == 1:
            y_true = ops.expand_dims(y_true, -1)
        if len(y_true.shape) != len(y_pred.shape) or y_true.shape[1:] != y_pred.shape[1:]:
            raise ValueError(f"labels have shape {tuple(y_true.shape)}, logits {tuple(y_pred.shape)}; they must agree")
        y_true, y_pred = y_true * (1 - self.label_smoothing) + self.label_smoothing / 2, self._shift(y_pred)
        log_p, log_not_p = ops.log_sigmoid(y_pred), ops.log_sigmoid(-y_pred)
        pos = self._weigh(ops.exp(self.gamma_pos * log_not_p), (1 + ops.exp(log_p)) ** self.gamma_hc) * log_p
        neg = self._weigh(ops.exp(self.gamma_neg * log_p), (1 + ops.exp(log_not_p)) ** self.gamma_hc) * log_not_p
        side_pos, side_neg = (1.0, 1.0) if self.alpha is None else map(self._in_training, (self.alpha, 1 - self.alpha))
        side_pos = side_pos * self.weight_now("pos_weight", y_pred)
        rows = side_pos * y_true * pos + side_neg * (1 - y_true) * neg
        return -ops.mean(self.weight_now("weight", y_pred) * rows, axis=-1)


class CyclicalFocalCallback(keras.callbacks.Callback):
    """Callback that sets the clock of a loss before every batch, by the epochs and steps of ``fit``.

    With ``steps_per_execution`` every step of an execution has a separate eta.

    In validation, in ``evaluate`` and after training the loss is plain cross-entropy. ``initial_epoch`` resumes the
    cycle, and the optimizer's gradient accumulation does not count twice.

    Args:
        loss: the loss of the compiled model.

    Raises:
        ValueError: at the start of training, ``loss.clock`` is not among the metrics, or the number of steps is
            unknown.
        RuntimeError: a later ``fit`` of the model lacks the callback.

    Example:
        >>> callback = CyclicalFocalCallback(CyclicalFocalLoss())
    """

    def __init__(self, loss: _Clocked) -> None:
        super().__init__()
        self.loss = loss
        self.epoch = 0
        self._history = None
        loss.is_set = True
        loss.clock.callback = self

    def check_present(self) -> None:
        """Refuse a fit without this callback; every fit has a separate history."""
        history = getattr(self.model, "history", None)
        if self.model is None or history is not self._history:
            self._history = history  # refused once: evaluate may follow
            raise RuntimeError(MISSING_CALLBACK)

    def _register(self) -> None:
        self.loss.clock.callback = self
        # On the jax backend self.model brings the variables up to date, or they would undo what we assign.
        self._history = getattr(self.model, "history", None)

    def on_train_begin(self, logs: Any = None) -> None:
        self._register()
        if not any(variable is self.loss.clock.eta for variable in self.model.metrics_variables):
            raise ValueError("loss.clock is not among the metrics; compile(loss=loss, metrics=[loss.clock])")
        if not self.params["steps"]:
            raise ValueError("steps_per_epoch is None, and the data have no length; give steps_per_epoch to fit")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        steps = self.params["steps"]
        last = max(self.params["epochs"] * steps - 1, 1)
        _ = self.model  # see _register
        self.loss.clock.move(self.epoch * steps + batch, last, pace=1)

    def on_test_begin(self, logs: Any = None) -> None:
        self._register()
        self.loss.clock.trains.assign(0)

    def on_train_end(self, logs: Any = None) -> None:
        _ = self.model  # see _register
        self.loss.clock.trains.assign(0)


def _per_class(name: str, numbers: Any) -> list[float] | None:
    """Return one number per class as a list, which a configuration can hold."""
    if numbers is None:
        return None
    values = np.asarray(numbers, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"{name} is {numbers}; it must hold one finite number per class, (C,)")
    return [float(value) for value in values]


def _check_classes(name: str, numbers: list[float], y_pred: Any) -> None:
    if len(numbers) != y_pred.shape[-1]:
        raise ValueError(
            f"{name} holds {len(numbers)} numbers for logits of {y_pred.shape[-1]} classes; it must hold one per class"
            f"{FROM_COUNTS}"
        )


def _with_prior(settings: dict[str, Any], make: Callable[..., Any], prior: dict[str, Any]) -> dict[str, Any]:
    """Add class weights, offset and label smoothing of the torch loss that ``make`` makes of ``prior`` to settings."""
    loss = make(**prior, **{name: settings[name] for name in ("gamma_hc", "label_smoothing") if name in settings})
    made = {
        name: buffer.tolist()
        for name, buffer in loss.named_buffers()
        if name in ("weight", "pos_weight", "logit_offset")
    }
    if repeated := settings.keys() & made.keys():
        raise ValueError(f"{min(repeated)} is given, and the counts make one; leave one of the two out")
    return settings | made | {"label_smoothing": loss.label_smoothing}


def _expand(weight: Any, y_pred: Any) -> Any:
    """Expand weights (N,), (N, ...) or (N, ..., 1) to every row (N, ...): Keras would divide by the sum of fewer."""
    weight, rows = ops.convert_to_tensor(weight), ops.shape(y_pred)[:-1]
    if len(weight.shape) > len(rows):
        weight = ops.squeeze(weight, -1)
    weight = ops.reshape(weight, (*ops.shape(weight), *[1] * (len(rows) - len(weight.shape))))
    return ops.broadcast_to(weight, rows)


def _power(base: Any, exponent: float) -> Any:
    """Return ``base ** exponent`` for base >= 0, with gradient 0 instead of infinity at 0 for exponents below 1."""
    if exponent == 0:
        return ops.ones_like(base)
    if exponent >= 1:
        return base**exponent
    return ops.where(base == 0, 0.0, ops.where(base == 0, 1.0, base) ** exponent)
