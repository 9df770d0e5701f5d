"""LightGBM: objective, metric and the callback that sets the progress by rounds."""

import functools
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cyclofocal.integrations.boosting import (
    LOSS_SETTINGS,
    BoostedLoss,
    Floats,
    class_indices,
    class_probabilities,
    loss_of_classes,
    probabilities,
    starting_scores,
)
from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss

require_host("lightgbm", "4.0")

from lightgbm import LGBMClassifier  # noqa: E402
from sklearn.utils import compute_sample_weight  # noqa: E402


class BoosterLoss:
    """Loss for ``lightgbm.train`` and ``lightgbm.cv``, of two classes or of ``num_class``.

    Give it as ``params["objective"] = loss.objective``, ``callbacks=[loss.callback]`` and, for early stopping,
    ``feval=loss.metric``. The booster predicts raw scores: see :func:`cyclofocal.integrations.boosting
    .probabilities`. Weights of the data set's rows are used. The round is counted by LightGBM, so ``init_model``
    resumes the cycle.

    For ``LGBMClassifier(objective=loss.sklearn_objective, metric="None")`` give its ``fit``
    ``callbacks=[loss.callback]`` and, for early stopping, ``eval_metric=loss.sklearn_metric``; it predicts raw scores
    too, which LightGBM's built-in metrics would take for probabilities.

    A loss from class counts (``BinaryCyclicalFocalLoss.from_counts(positives, rows, tau=1.0)``) adds its prior to the
    scores in objective and metric, as an ``init_score`` would (give none then); the booster
    predicts the scores without it, which its built-in metrics see too.

    All gammas 0 is LightGBM's ``binary`` (with ``boost_from_average=False``) or ``multiclass``, whose factor
    C / (C - 1) on the Hessian is applied too.

    Args:
        criterion: ``BinaryCyclicalFocalLoss()``, or ``CyclicalFocalLoss()`` with ``num_class`` in the parameters.
        num_boost_round: number of rounds of the whole training, before and after an ``init_model``.

    Raises:
        TypeError, ValueError: criterion, labels or parameters (is_unbalance, scale_pos_weight) do not fit.
        RuntimeError: in training, the callback is missing; checked in every training.

    Example:
        >>> from cyclofocal import BinaryCyclicalFocalLoss
        >>> loss = BoosterLoss(BinaryCyclicalFocalLoss(gamma_hc=2.0), num_boost_round=100)
    """

    def __init__(self, criterion: Loss, num_boost_round: int) -> None:
        self.criterion = criterion
        self.loss = BoostedLoss(criterion, num_boost_round)
        self.callback = _Callback(self.loss)

    def objective(self, scores: Floats, data: Any) -> tuple[Floats, Floats]:
        return self.sklearn_objective(data.get_label(), scores, data.get_weight())

    def metric(self, scores: Floats, data: Any) -> tuple[str, float, bool]:
        """Return the plain log loss: name, value, and False, as lower is better."""
        return self.sklearn_metric(data.get_label(), scores, data.get_weight())

    def sklearn_objective(self, y_true: Floats, y_pred: Floats, weight: Floats | None) -> tuple[Floats, Floats]:
        """Return the objective with the arguments of ``LGBMClassifier``."""
        gradient, hessian = self.loss.derivatives(y_pred, y_true, weight)
        classes = y_pred.shape[1] if y_pred.ndim > 1 else 0
        return gradient, hessian * classes / (classes - 1) if classes > 1 else hessian

    def sklearn_metric(self, y_true: Floats, y_pred: Floats, weight: Floats | None) -> tuple[str, float, bool]:
        """Return the metric with the arguments of ``LGBMClassifier``."""
        return "log_loss", self.loss.log_loss(y_pred, y_true, weight), False


UNBALANCE = ("is_unbalance", "unbalance", "unbalanced_sets")
"""Names of one parameter of LightGBM."""


class _Callback:
    """Callback before every round; ``iteration`` counts the rounds of an ``init_model`` too."""

    before_iteration, order = True, 0

    def __init__(self, loss: BoostedLoss) -> None:
        self.loss = loss

    def __call__(self, env: Any) -> None:
        for name, value in env.params.items():
            unbalance = name in UNBALANCE and str(value).lower() in ("true", "+")
            if unbalance or (name == "scale_pos_weight" and value is not None and float(value) != 1):
                self.loss.refuse_balancing(name, value)
        self.loss.set_round(env.iteration, boosters=len(getattr(env.model, "boosters", [env.model])))


RANKINGS = ("auc", "average_precision")
"""Metrics of two classes that depend on the order of the scores only."""


class CyclicalFocalLGBMClassifier(LGBMClassifier):
    """``LGBMClassifier`` with the cyclical focal loss, which starts at the class frequencies and gives probabilities.

    ``fit``, ``predict``, evaluation sets, early stopping, ``class_weight`` and ``sample_weight`` are those of
    ``LGBMClassifier``; one ``fit`` is one cycle. The log odds of two classes, or the logarithms of the frequencies of
    several, are added to the scores in training, metrics and predictions. They are ``prior_``; the scores of
    ``booster_`` lack them. ``fit(init_model=...)`` takes over the ``prior_`` of such a classifier, and adds none to
    another model.

    Args:
        gamma_pos, gamma_neg, gamma_hc, cyclical_factor, label_smoothing: as in :class:`cyclofocal.CyclicalFocalLoss`.
            With gamma_hc 0 the cycle begins and ends at cross-entropy, and the probabilities stay calibrated.
        settings: of ``LGBMClassifier``, without ``objective``.

    Raises:
        ValueError: ``objective``, ``scale_pos_weight`` or ``is_unbalance`` is given, or an ``eval_metric`` that
            LightGBM cannot compute from such scores.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> CyclicalFocalLGBMClassifier(n_estimators=20, verbose=-1, n_jobs=1).fit(x, y).score(x, y) > 0.9
        True
    """

    objective: Any

    def __init__(
        self,
        *,
        gamma_pos: float = 2.0,
        gamma_neg: float = 2.0,
        gamma_hc: float = 0.0,
        cyclical_factor: float = 4.0,
        label_smoothing: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.gamma_hc = gamma_hc
        self.cyclical_factor = cyclical_factor
        self.label_smoothing = label_smoothing

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        *,
        eval_metric: Any = None,
        callbacks: list[Callable[..., Any]] | None = None,
        **options: Any,
    ) -> Self:
        """Train as ``LGBMClassifier.fit`` does.

        ``eval_metric``: "logloss" (the default), "error", for two classes "auc" and "average_precision", functions of
            labels and probabilities, or a list of these.
        """
        if self.objective is not None:
            raise ValueError(f"objective is {self.objective!r}; it must be None, as the loss is the objective")
        classes, labels = class_indices(y)
        init_model = options.get("init_model")
        self.prior_ = (
            self._prior(classes, labels, sample_weight) if init_model is None else _prior_of(init_model, classes)
        )
        settings = {name: getattr(self, name) for name in LOSS_SETTINGS}
        loss = BoosterLoss(loss_of_classes(len(classes), self.prior_, **settings), num_boost_round=1)
        options |= {"eval_metric": self._metrics(loss, eval_metric, len(classes))}
        self.objective = self._objective = loss.sklearn_objective
        try:
            return super().fit(X, y, sample_weight, callbacks=[*(callbacks or ()), _WholeCycle(loss.loss)], **options)
        finally:
            self.objective = None

    def predict_proba(self, X: Any, raw_score: bool = False, **options: Any) -> Any:  # noqa: N803
        """Return probabilities (N, C); with ``raw_score`` the scores, of which they are sigmoid or softmax."""
        if options.get("pred_leaf") or options.get("pred_contrib"):
            return super().predict_proba(X, raw_score=raw_score, **options)
        scores = np.asarray(super().predict_proba(X, raw_score=True, **options))
        scores = scores + self.prior_
        return scores if raw_score else class_probabilities(scores)

    def predict(self, X: Any, raw_score: bool = False, **options: Any) -> Any:  # noqa: N803
        result = self.predict_proba(X, raw_score=raw_score, **options)
        if raw_score or options.get("pred_leaf") or options.get("pred_contrib"):
            return result
        return self.classes_[result.argmax(1)]

    def _prior(self, classes: NDArray[Any], labels: NDArray[np.int64], sample_weight: Any) -> Floats:
        weight = compute_sample_weight(self.class_weight, classes[labels])
        return starting_scores(
            labels, weight if sample_weight is None else weight * np.asarray(sample_weight, np.float64)
        )

    def _metrics(self, loss: BoosterLoss, names: Any, classes: int) -> list[Any]:
        """Return the metrics as LightGBM takes them: functions of raw scores, or names."""
        names = self._other_params.get("metric") if names is None else names
        prefix = "binary" if classes == 2 else "multi"
        own = {"logloss": _named(f"{prefix}_logloss", loss.sklearn_metric), "error": self._error(f"{prefix}_error")}
        found: list[Any] = []
        for name in names if isinstance(names, list | tuple) else [names or "logloss"]:
            if callable(name):
                found.append(self._of_probabilities(name))
            elif (short := name.removeprefix(f"{prefix}_")) in own:
                found.append(own[short])
            elif name in RANKINGS and classes == 2:
                found.append(name)
            else:
                known = [*own, *RANKINGS * (classes == 2)]
                raise ValueError(f"eval_metric is {name!r}; it must be one of {', '.join(known)}, or a function")
        return found

    def _of_probabilities(self, metric: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(metric)  # LightGBM counts its arguments
        def of_scores(y_true: Floats, scores: Floats, *others: Any) -> Any:
            return metric(y_true, probabilities(scores + self.prior_), *others)

        return of_scores

    def _error(self, name: str) -> Callable[..., Any]:
        def error(y_true: Floats, scores: Floats, weight: Floats | None) -> tuple[str, float, bool]:
            wrong = class_probabilities(scores + self.prior_).argmax(1) != y_true
            return name, float(np.average(wrong, weights=weight)), False

        return error

    def _process_params(self, stage: str) -> dict[str, Any]:
        """Keep the settings of the loss from LightGBM, which would warn of them, and its metric of raw scores."""
        params = super()._process_params(stage)
        params["metric"] = None
        return {name: value for name, value in params.items() if name not in LOSS_SETTINGS}


class _WholeCycle(_Callback):
    """Callback that ends the cycle with the last round, also under an alias of n_estimators or with an init_model."""

    def __call__(self, env: Any) -> None:
        self.loss.num_boost_round = env.end_iteration
        super().__call__(env)


def _prior_of(init_model: Any, classes: NDArray[Any]) -> Floats:
    if isinstance(init_model, CyclicalFocalLGBMClassifier):
        return init_model.prior_
    return np.zeros(1 if len(classes) == 2 else len(classes))


def _named(name: str, metric: Callable[..., tuple[str, float, bool]]) -> Callable[..., tuple[str, float, bool]]:
    def renamed(y_true: Floats, scores: Floats, weight: Floats | None) -> tuple[str, float, bool]:
        return name, *metric(y_true, scores, weight)[1:]

    return renamed
