"""Keras 3: the losses, the clock as one of the model's metrics, and the callback that moves it."""

import functools
from typing import Any

from cyclofocal.arguments import check_gammas, check_unit_interval
from cyclofocal.integrations.host import require_host
from cyclofocal.schedules import cyclical_eta

require_host("keras", "3.7")

import keras  # noqa: E402
from keras import ops  # noqa: E402


@keras.saving.register_keras_serializable("cyclofocal")
class Clock(keras.metrics.Metric):
    """Eta as a metric: Keras then shows it, and its compiled steps see it move, and whether they train.

    Variables that belong to the loss alone would be constants to them, on the jax backend. With ``steps_per_execution``
    several steps follow each other before a callback is asked again, so every training step adds ``pace`` to ``step``.
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
        """Eta of the coming step, as :func:`cyclofocal.schedules.cyclical_eta`; exact at progress 0 and 1."""
        factor = self.cyclical_factor
        progress = ops.minimum(ops.convert_to_tensor(self.step) / ops.convert_to_tensor(self.last), 1)
        falling = 1 - factor * progress
        rising = ops.maximum(1 - (1 - progress) * (factor / max(factor - 1, 1e-9)), 0)
        return ops.where(falling >= 0, falling, rising)

    def move(self, step: float, last: float, pace: float) -> None:
        """Set the clock for a training step, the last one being number ``last``."""
        self.eta.assign(cyclical_eta(step / last, self.cyclical_factor))
        self.trains.assign(1)
        self.step.assign(step)
        self.last.assign(last)
        self.pace.assign(pace)

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """A step is done: show its eta and, in training, move on."""
        eta, trains, step, pace = map(ops.convert_to_tensor, (self.eta, self.trains, self.step, self.pace))
        self.eta.assign(ops.where(trains > 0, self.schedule(), eta))
        self.step.assign(step + trains * pace)

    def reset_state(self) -> None:
        """A new epoch is no new beginning; but Keras begins here, so a fit without the callback is noticed."""
        if self.callback is not None:
            self.callback.check_present()

    def result(self) -> Any:
        return ops.convert_to_tensor(self.eta) + 0  # on the jax backend the variable's own value is given away

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"cyclical_factor": self.cyclical_factor}


WHOLE = {"bfloat16": 256, "float16": 2048}
"""Up to these, half precision holds every whole number."""
NOBODY = (
    "nobody moves the clock of this loss: give fit or evaluate callbacks=[CyclicalFocalCallback(loss)], or set it"
    " yourself with loss.set_progress(progress)"
)


class _Clocked(keras.losses.Loss):
    """Settings and clock of a loss; logits in, one value per row out."""

    def __init__(
        self,
        *,
        gamma_pos: float = 2.0,
        gamma_neg: float = 2.0,
        gamma_hc: float = 3.0,
        cyclical_factor: float = 4.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean_with_sample_weight",
        **options: Any,
    ) -> None:
        check_gammas(gamma_pos, gamma_neg, gamma_hc)
        check_unit_interval("label_smoothing", label_smoothing)
        cyclical_eta(0.0, cyclical_factor)  # raises if it does not fit
        super().__init__(reduction=reduction, **options)
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.gamma_hc = gamma_hc
        self.cyclical_factor = cyclical_factor
        self.label_smoothing = label_smoothing
        self.clock = Clock(cyclical_factor=cyclical_factor)
        self.is_told = False

    def set_progress(self, progress: float) -> None:
        """Set the clock to ``progress`` in [0, 1]; from now on it trains."""
        self.clock.move(float(progress), last=1, pace=0)
        self.clock.callback = None
        self.is_told = True

    def get_config(self) -> dict[str, Any]:
        names = ("gamma_pos", "gamma_neg", "gamma_hc", "cyclical_factor", "label_smoothing")
        return super().get_config() | {name: getattr(self, name) for name in names}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if sample_weight is not None:
            sample_weight = _spread(sample_weight, y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def _weigh(self, hard: Any, easy: Any) -> Any:
        """The weight of this moment."""
        return self._in_training(hard + ops.cast(self.clock.schedule(), self.dtype) * (easy - hard))

    def _in_training(self, factor: Any) -> Any:
        """The factor in training, otherwise 1."""
        return ops.where(ops.convert_to_tensor(self.clock.trains) > 0, factor, 1.0)

    def _check_told(self) -> None:
        """On the jax backend nothing in a compiled step could say so later."""
        if not self.is_told:
            raise RuntimeError(NOBODY)


@keras.saving.register_keras_serializable("cyclofocal")
class CyclicalFocalLoss(_Clocked):
    """The softmax loss of :func:`cyclofocal.cyclical_focal_loss`, from logits.

    ``model.compile(loss=loss, metrics=[loss.clock, ...])`` and ``fit(callbacks=[CyclicalFocalCallback(loss)])``. In
    validation and after training it is plain cross-entropy, with the same smoothing.

    Class weights go to ``fit(class_weight=...)``, weights of rows or pixels to ``sample_weight``; the mean is the
    weighted one of torch, other than Keras' default.

    Args:
        ignore_class: label of the rows that do not count, such as 255, or None.
        gamma_pos, gamma_neg, gamma_hc, cyclical_factor, label_smoothing: as in :class:`cyclofocal.CyclicalFocalLoss`.
        reduction, options: ``name`` and ``dtype``, of a Keras loss.

    Shape: logits (N, ..., C); class indices (N, ...) or (N, ..., 1), or probabilities (N, ..., C).

    Raises:
        ValueError: a setting or a shape does not fit.
        RuntimeError: when called, nobody moves the clock.

    Example:
        >>> import numpy as np
        >>> loss = CyclicalFocalLoss(gamma_hc=2.0)
        >>> loss.set_progress(0.25)  # the turn: eta 0, the focal loss
        >>> round(float(loss(np.array([0]), np.array([[2.0, 0.0, -1.0]]))), 4)
        0.0041

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978.
    """

    def __init__(self, *, ignore_class: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.ignore_class = ignore_class

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"ignore_class": self.ignore_class}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        if self.ignore_class is not None:
            seen = ops.cast(ops.not_equal(y_true, self.ignore_class), self.dtype)
            seen = _spread(seen, y_pred)
            sample_weight = seen if sample_weight is None else seen * _spread(sample_weight, y_pred)
        return super().__call__(self._distribution(y_true, y_pred), y_pred, sample_weight)

    def _distribution(self, y_true: Any, y_pred: Any) -> Any:
        """One-hot labels, made before Keras casts them to the dtype of the loss, which may round an index."""
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        classes, dtype = y_pred.shape[-1], keras.backend.standardize_dtype(y_true.dtype)
        if tuple(y_true.shape) == tuple(y_pred.shape):  # labels may be floats too, so the shape must tell
            return y_true
        if classes > WHOLE.get(dtype, classes):
            raise ValueError(f"labels are {dtype}, which rounds the numbers of {classes} classes; give integers")
        index = ops.reshape(ops.cast(y_true, "int32"), ops.shape(y_pred)[:-1])
        if self.ignore_class is not None:
            index = ops.where(index == self.ignore_class, 0, index)  # any class: its weight is 0
        return ops.one_hot(index, classes, dtype=self.dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self._check_told()
        classes = y_pred.shape[-1]
        log_p = ops.log_softmax(y_pred, axis=-1)
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
    """The sigmoid loss of :func:`cyclofocal.binary_cyclical_focal_loss`, from logits; one value per row.

    Args:
        alpha: None, or the share in [0, 1] of the positive side.
        settings: as in :class:`CyclicalFocalLoss`.

    Shape: logits (N, ..., C), labels of the same shape in [0, 1], or (N, ...) for one logit.

    Raises:
        ValueError: a setting or a shape does not fit.
        RuntimeError: when called, nobody moves the clock.

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

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"alpha": self.alpha}

    def call(self, y_true: Any, y_pred: Any) -> Any:
        self._check_told()
        if len(y_true.shape) == len(y_pred.shape) - 1 and y_pred.shape[-1] == 1:
            y_true = ops.expand_dims(y_true, -1)
        if len(y_true.shape) != len(y_pred.shape) or y_true.shape[1:] != y_pred.shape[1:]:
            raise ValueError(f"labels have shape {tuple(y_true.shape)}, logits {tuple(y_pred.shape)}; they must agree")
        y_true = y_true * (1 - self.label_smoothing) + self.label_smoothing / 2
        log_p, log_not_p = ops.log_sigmoid(y_pred), ops.log_sigmoid(-y_pred)
        pos = self._weigh(ops.exp(self.gamma_pos * log_not_p), (1 + ops.exp(log_p)) ** self.gamma_hc) * log_p
        neg = self._weigh(ops.exp(self.gamma_neg * log_p), (1 + ops.exp(log_not_p)) ** self.gamma_hc) * log_not_p
        side_pos, side_neg = (1.0, 1.0) if self.alpha is None else map(self._in_training, (self.alpha, 1 - self.alpha))
        return -ops.mean(side_pos * y_true * pos + side_neg * (1 - y_true) * neg, axis=-1)


class CyclicalFocalCallback(keras.callbacks.Callback):
    """Sets the clock of a loss before every batch, by the epochs and steps that ``fit`` knows.

    With ``steps_per_execution`` every step of an execution has its own eta.

    In validation, in ``evaluate`` and when training has ended, it makes the loss plain cross-entropy.
    ``initial_epoch`` resumes the cycle, and the optimizer's gradient accumulation does not count twice.

    Args:
        loss: the one that the model was compiled with.

    Raises:
        ValueError: at the start of training, ``loss.clock`` is not among the metrics, or the steps are not known.
        RuntimeError: a later ``fit`` of the model goes without the callback.

    Example:
        >>> callback = CyclicalFocalCallback(CyclicalFocalLoss())
    """

    def __init__(self, loss: _Clocked) -> None:
        super().__init__()
        self.loss = loss
        self.epoch = 0
        self._history = None
        loss.is_told = True
        loss.clock.callback = self

    def check_present(self) -> None:
        """Refuse a fit that this callback takes no part in; every fit has a history of its own."""
        history = getattr(self.model, "history", None)
        if self.model is None or history is not self._history:
            self._history = history  # refused once: to evaluate is right again
            raise RuntimeError(NOBODY)

    def _take_part(self) -> None:
        self.loss.clock.callback = self
        # On the jax backend self.model brings the variables up to date, or they would undo what we assign.
        self._history = getattr(self.model, "history", None)

    def on_train_begin(self, logs: Any = None) -> None:
        self._take_part()
        if not any(variable is self.loss.clock.eta for variable in self.model.metrics_variables):
            raise ValueError("loss.clock is not among the metrics; compile(loss=loss, metrics=[loss.clock])")
        if not self.params["steps"]:
            raise ValueError("steps_per_epoch is None, and the data do not tell it; give it to fit")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        steps = self.params["steps"]
        last = max(self.params["epochs"] * steps - 1, 1)
        _ = self.model  # see _take_part
        self.loss.clock.move(self.epoch * steps + batch, last, pace=1)

    def on_test_begin(self, logs: Any = None) -> None:
        self._take_part()
        self.loss.clock.trains.assign(0)

    def on_train_end(self, logs: Any = None) -> None:
        _ = self.model  # see _take_part
        self.loss.clock.trains.assign(0)


def _spread(weight: Any, y_pred: Any) -> Any:
    """A weight for every row (N, ...), from (N,), (N, ...) or (N, ..., 1): Keras would divide by the sum of fewer."""
    weight, rows = ops.convert_to_tensor(weight), ops.shape(y_pred)[:-1]
    if len(weight.shape) > len(rows):
        weight = ops.squeeze(weight, -1)
    weight = ops.reshape(weight, (*ops.shape(weight), *[1] * (len(rows) - len(weight.shape))))
    return ops.broadcast_to(weight, rows)


def _power(base: Any, exponent: float) -> Any:
    """``base ** exponent`` for base >= 0, with gradient 0 instead of infinity at base 0 for exponents below 1."""
    if exponent == 0:
        return ops.ones_like(base)
    if exponent >= 1:
        return base**exponent
    return ops.where(base == 0, 0.0, ops.where(base == 0, 1.0, base) ** exponent)
