"""XGBoost: objective, metric and the callback that sets the progress by rounds."""

import json
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cyclofocal.integrations.boosting import (
    LOSS_SETTINGS,
    BoostedLoss,
    Floats,
    class_indices,
    loss_of_classes,
    probabilities,
    starting_scores,
)
from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss

require_host("xgboost", "2.1", twin="xgboost-cpu")

from xgboost import XGBClassifier  # noqa: E402
from xgboost.callback import TrainingCallback  # noqa: E402


class BoosterLoss:
    """Loss for ``xgboost.train`` and ``xgboost.cv``, of two classes or of ``num_class``.

    Give it as ``obj=loss.objective``, ``callbacks=[loss.callback]`` and, for early stopping,
    ``custom_metric=loss.metric`` (with ``disable_default_eval_metric``). The booster predicts raw scores: see
    :func:`cyclofocal.integrations.boosting.probabilities`. Weights of the data's rows are used. The round is the number
    of rounds in the booster, so ``xgb_model`` resumes the cycle.

    For ``XGBClassifier`` give ``objective=loss.sklearn_objective, callbacks=[loss.callback]``; its ``predict``,
    ``predict_proba`` and ``eval_metric`` then work as usual.

    A loss from class counts (``BinaryCyclicalFocalLoss.from_counts(positives, rows, tau=1.0)``) adds its prior to the
    scores in objective and metric, as a ``base_margin`` would (give none then); the booster
    predicts the scores without it, which its built-in metrics see too.

    All gammas 0 is XGBoost's ``binary:logistic`` or ``multi:softprob``, whose factor 2 on the Hessian is applied too.

    Args:
        criterion: ``BinaryCyclicalFocalLoss()``, or ``CyclicalFocalLoss()`` with ``num_class`` in the parameters.
        num_boost_round: number of rounds of the whole training, before and after an ``xgb_model``.

    Raises:
        TypeError, ValueError: criterion, labels or parameters (scale_pos_weight, base_score) do not fit.
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
        return self._derivatives(scores, data.get_label(), data.get_weight())

    def sklearn_objective(
        self, y_true: Floats, y_pred: Floats, sample_weight: Floats | None = None
    ) -> tuple[Floats, Floats]:
        """Return the objective with the arguments of ``XGBClassifier``."""
        return self._derivatives(y_pred, y_true, sample_weight)

    def metric(self, scores: Floats, data: Any) -> tuple[str, float]:
        """Return the plain log loss, name and value; lower is better."""
        return "log_loss", self.loss.log_loss(scores, data.get_label(), data.get_weight())

    def _derivatives(self, scores: Floats, labels: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
        gradient, hessian = self.loss.derivatives(scores, labels, weights)
        return gradient, 2 * hessian if scores.ndim > 1 else hessian


class _Callback(TrainingCallback):
    """Callback before every round; an ``xgb_model`` restarts XGBoost's ``epoch`` at 0, but not the booster's count."""

    def __init__(self, loss: BoostedLoss) -> None:
        super().__init__()
        self.loss = loss

    def before_training(self, model: Any) -> Any:
        config = json.loads(_boosters(model)[0].save_config())["learner"]
        objective, base_score = config["objective"], config["learner_model_param"]["base_score"].strip("[]")
        scale = objective.get("reg_loss_param", {}).get("scale_pos_weight", 1)
        if float(scale) != 1:
            self.loss.refuse_balancing("scale_pos_weight", scale)
        if objective["name"] == "binary:logistic" and not 0 < float(base_score) < 1:
            raise ValueError(
                f"base_score is {float(base_score)}; for XGBClassifier and binary:logistic it is a probability in"
                " (0, 1): leave it out"
            )
        return model

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self.loss.set_round(model.num_boosted_rounds(), boosters=len(_boosters(model)))
        return False


def _boosters(model: Any) -> list[Any]:
    """Return the boosters of a cross-validation, or the single one."""
    return [fold.bst for fold in model.cvfolds] if hasattr(model, "cvfolds") else [model]


class CyclicalFocalXGBClassifier(XGBClassifier):
    """``XGBClassifier`` with the cyclical focal loss, which starts at the class frequencies and gives probabilities.

    ``fit``, ``predict``, evaluation sets, metrics, early stopping and ``sample_weight`` are those of
    ``XGBClassifier``; labels may be of any kind, and one ``fit`` is one cycle. The class frequencies are the model's
    ``base_score``, which is stored with it; ``fit(xgb_model=...)`` keeps that of the other model.

    Args:
        gamma_pos, gamma_neg, gamma_hc, cyclical_factor, label_smoothing: as in :class:`cyclofocal.CyclicalFocalLoss`.
            With gamma_hc 0 the cycle begins and ends at cross-entropy, and the probabilities stay calibrated.
        settings: of ``XGBClassifier``; with ``base_score`` it starts there in place of the class frequencies.

    Raises:
        ValueError: ``objective`` or ``scale_pos_weight`` is given, or labels of an evaluation set are none of ``y``.
        ImportError: more than two classes, and XGBoost is older than 3.1, which has one ``base_score`` for all.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x, y = load_iris(return_X_y=True)
        >>> CyclicalFocalXGBClassifier(n_estimators=20, n_jobs=1).fit(x, y).score(x, y) > 0.9
        True
    """

    objective: Any
    callbacks: Any
    base_score: Any

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

    def fit(self, X: Any, y: Any, *, sample_weight: Any = None, eval_set: Any = None, **options: Any) -> Self:  # noqa: N803
        """Train as ``XGBClassifier.fit`` does."""
        if self.objective != BUILT_IN:
            raise ValueError(f"objective is {self.objective!r}; leave it out, as the loss is the objective")
        classes, labels = class_indices(y)
        eval_set = eval_set and [(x, _indices(classes, other)) for x, other in eval_set]
        loss = BoosterLoss(loss_of_classes(len(classes), **{name: getattr(self, name) for name in LOSS_SETTINGS}), 1)
        before = {name: getattr(self, name) for name in ("objective", "callbacks", "base_score")}
        self.objective, self.callbacks = loss.sklearn_objective, [*(self.callbacks or ()), _WholeCycle(loss.loss, self)]
        if self.base_score is None and options.get("xgb_model") is None:
            self.base_score = _base_score(starting_scores(labels, sample_weight))
        self._labels = None
        try:
            super().fit(X, labels, sample_weight=sample_weight, eval_set=eval_set, **options)
        finally:
            self.__dict__.update(before)  # set_params would change the fitted booster too
        self._labels = classes
        return self

    def predict(self, X: Any, *, output_margin: bool = False, **options: Any) -> Any:  # noqa: N803
        result = super().predict(X, output_margin=output_margin, **options)
        return result if output_margin else self.classes_[result]

    @property
    def classes_(self) -> NDArray[Any]:
        """Labels in the order of the columns of ``predict_proba``; after ``load_model``, which has none, indices."""
        labels = getattr(self, "_labels", None)
        return super().classes_ if labels is None else labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = False
        return tags

    def get_xgb_params(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_xgb_params().items() if name not in LOSS_SETTINGS}


BUILT_IN = "binary:logistic"
"""Default objective of ``XGBClassifier``, also for several classes."""


class _WholeCycle(_Callback):
    """Callback that ends the cycle with the last round, those of an ``xgb_model`` included."""

    def __init__(self, loss: BoostedLoss, estimator: XGBClassifier) -> None:
        super().__init__(loss)
        self.rounds = estimator.get_num_boosting_rounds()

    def before_training(self, model: Any) -> Any:
        self.loss.num_boost_round = model.num_boosted_rounds() + self.rounds
        return super().before_training(model)


def _base_score(scores: Floats) -> float | list[float]:
    """Return the starting scores as XGBoost takes them: a probability, or a score per class."""
    if len(scores) == 1:
        return float(probabilities(scores)[0])
    require_host("xgboost", "3.1", twin="xgboost-cpu")
    return scores.tolist()


def _indices(classes: NDArray[Any], labels: Any) -> NDArray[np.int64]:
    labels = np.asarray(labels)
    if unknown := set(np.unique(labels)) - set(classes):
        raise ValueError(f"eval_set has labels that are not in y: {sorted(unknown)}")
    return np.searchsorted(classes, labels)
