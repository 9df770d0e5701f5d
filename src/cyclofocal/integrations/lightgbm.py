"""LightGBM: objective, metric and the callback that sets the progress by rounds."""

from typing import Any

from cyclofocal.integrations.boosting import BoostedLoss, Floats
from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss

require_host("lightgbm", "4.0")


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
