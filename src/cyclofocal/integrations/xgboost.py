"""XGBoost: objective, metric and the callback that sets the progress by rounds."""

import json
from typing import Any

from cyclofocal.integrations.boosting import BoostedLoss, Floats
from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss

require_host("xgboost", "2.1", twin="xgboost-cpu")

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
