"""scikit-learn: a classifier for tables."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cyclofocal.arguments import check_at_least
from cyclofocal.imbalance import check_tau, class_weights, log_prior
from cyclofocal.integrations.host import require_host
from cyclofocal.losses import CyclicalFocalLoss

require_host("scikit-learn", "1.6")
require_host("skorch", "1.0")

from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.utils import check_random_state, compute_class_weight  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data  # noqa: E402
from skorch import NeuralNetClassifier  # noqa: E402
from skorch.callbacks import EarlyStopping  # noqa: E402
from skorch.dataset import ValidSplit  # noqa: E402
from skorch.utils import noop  # noqa: E402

from cyclofocal.integrations.skorch import CyclicalFocalCallback, probabilities  # noqa: E402


class CyclicalFocalClassifier(ClassifierMixin, BaseEstimator):
    """A multi-layer perceptron trained with the cyclical focal loss, one cycle per ``fit``.

    Like any network it needs features of similar scale: put a ``StandardScaler`` before it. It takes the inputs of
    scikit-learn, pandas and polars included. The fitted skorch net is ``net_``, its history ``net_.history``.

    Args:
        hidden_layer_sizes: units per hidden layer; () is logistic regression.
        gamma_pos, gamma_neg, gamma_hc, cyclical_factor, label_smoothing: as in :class:`cyclofocal.CyclicalFocalLoss`.
        class_weight: None; "balanced", "sqrt" or "effective" as in ``cyclofocal.imbalance.class_weights``; or a dict
            from class to factor.
        tau: >= 0; in training, ``tau * log(prior)`` is added to the logits, the prior being that of ``y``, or of the
            sample weights. At 1 the net learns the logits of equally likely classes (logit adjustment).
        beta: of class_weight "effective", in [0, 1).
        weight_start: progress in [0, 1] before which all class weights are 1 (deferred re-weighting: 0.8).
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        max_epochs: epochs per ``fit``, >= 1.
        batch_size: rows per step, >= 1.
        warm_start: start from the weights of the last ``fit``, in a new cycle; the classes must be the same.
        early_stopping: hold out a part of the rows, stop when its plain cross-entropy (with the prior of ``tau``, as
            these rows have the class frequencies of ``y``) has not fallen for ``n_iter_no_change`` epochs, and restore
            the best weights. Allow many epochs: the hard phase raises it.
        validation_fraction: fraction of rows held out, in (0, 1).
        n_iter_no_change: patience in epochs.
        random_state: random seed for weights, order and held-out rows: None, int or RandomState.
        device: torch device.

    Raises:
        ValueError: a setting or the data do not fit, before any training.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> x, y = load_iris(return_X_y=True)
        >>> model = make_pipeline(StandardScaler(), CyclicalFocalClassifier(max_epochs=20, random_state=0))
        >>> model.fit(x, y).score(x, y) > 0.9
        True

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978.
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] | int = (100,),
        *,
        gamma_pos: float = 2.0,
        gamma_neg: float = 2.0,
        gamma_hc: float = 3.0,
        cyclical_factor: float = 4.0,
        label_smoothing: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        tau: float = 0.0,
        beta: float = 0.9999,
        weight_start: float = 0.0,
        learning_rate: float = 0.01,
        weight_decay: float = 1e-4,
        max_epochs: int = 50,
        batch_size: int = 64,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.gamma_hc = gamma_hc
        self.cyclical_factor = cyclical_factor
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.tau = tau
        self.beta = beta
        self.weight_start = weight_start
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.warm_start = warm_start
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803
        """Train on features (N, F) and labels (N,) of any kind.

        ``sample_weight`` (N,), >= 0, multiplies a row's loss and weights the mean, like ``class_weight``; a row of
        weight 2 counts as two, in class weights and prior as well, and a row of weight 0 is left out.
        """
        self._check_settings()
        x, y, weight = self._rows(X, y, sample_weight)
        classes, index = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has one class, {classes[0]!r}; a classifier needs at least two classes")
        criterion = self._criterion(classes, index, weight)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        with torch.random.fork_rng():  # the seed affects this fit only
            torch.manual_seed(seed)
            net = self._net(self._module(x.shape[1], classes), criterion, seed)
            self.net_, self.classes_ = net.fit({"x": x, "sample_weight": weight}, index), classes
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return probabilities (N, C), columns in the order of ``classes_``.

        They are the softmax of the trained logits. With ``tau`` the logits are those without the training prior: at 1
        the probabilities are for equally likely classes, not for the class frequencies of ``y``.
        """
        check_is_fitted(self)
        x = torch.tensor(validate_data(self, X, dtype=np.float64, reset=False))  # a copy: frames are read-only
        module = copy.deepcopy(self.net_.module_).cpu()  # in float64: a row's result must not depend on other rows
        with torch.inference_mode():
            return module(x).softmax(-1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the class of the largest probability of :meth:`predict_proba`, with ``tau`` the balanced choice."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _rows(
        self, x: Any, y: Any, sample_weight: Any
    ) -> tuple[NDArray[np.float64], NDArray[Any], NDArray[np.float64]]:
        """Return features, labels and weights of the rows with a weight above 0."""
        x, y = validate_data(self, x, y, dtype=np.float64)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, x, dtype=np.float64)
        if (weight < 0).any():
            raise ValueError(f"sample_weight has values down to {weight.min()}; it must be at least 0")
        seen = weight > 0
        if not seen.any():
            raise ValueError("sample_weight is 0 in every row; it must be above 0 in at least one")
        return x[seen], y[seen], weight[seen]

    def _check_settings(self) -> None:
        for name in ("max_epochs", "batch_size", "n_iter_no_change"):
            check_at_least(name, getattr(self, name))
        if not all(units >= 1 for units in self._layers()):
            raise ValueError(f"hidden_layer_sizes is {self.hidden_layer_sizes}; every layer needs at least 1 unit")
        check_tau(self.tau)
        if self.early_stopping and self.weight_start:
            raise ValueError(
                f"weight_start is {self.weight_start} and early_stopping is True, which compares losses before and"
                " after it, and may never reach it; leave one of the two out"
            )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it must lie in (0, 1)")

    def _layers(self) -> Sequence[int]:
        sizes = self.hidden_layer_sizes
        return sizes if isinstance(sizes, Sequence) else np.atleast_1d(sizes).tolist()

    def _criterion(
        self, classes: NDArray[Any], index: NDArray[np.int64], sample_weight: NDArray[np.float64]
    ) -> CyclicalFocalLoss:
        counts = _whole(np.bincount(index, sample_weight), self.class_weight)
        weight = None
        if isinstance(self.class_weight, str):
            weight = class_weights(counts, self.class_weight, beta=self.beta)  # type: ignore[arg-type]  # it checks
        elif self.class_weight is not None:
            factors = compute_class_weight(self.class_weight, classes=classes, y=classes)
            weight = torch.as_tensor(factors, dtype=torch.float64)
        return CyclicalFocalLoss(
            weight,
            gamma_pos=self.gamma_pos,
            gamma_neg=self.gamma_neg,
            gamma_hc=self.gamma_hc,
            cyclical_factor=self.cyclical_factor,
            label_smoothing=self.label_smoothing,
            weight_start=self.weight_start,
            logit_offset=self.tau * log_prior(counts) if self.tau else None,
        )

    def _module(self, features: int, classes: NDArray[Any]) -> nn.Module:
        """Return the network of the last fit with ``warm_start``, otherwise a new one."""
        if not (self.warm_start and hasattr(self, "net_")):
            return _perceptron(features, self._layers(), len(classes))
        if not np.array_equal(classes, self.classes_):
            raise ValueError(f"warm_start is True, but y has the classes {classes}, those fitted are {self.classes_}")
        return self.net_.module_

    def _net(self, module: nn.Module, criterion: CyclicalFocalLoss, seed: int) -> "_WeightedNet":
        callbacks = [CyclicalFocalCallback()]
        if self.early_stopping:
            callbacks.append(EarlyStopping(patience=self.n_iter_no_change, load_best=True, sink=noop))
        split = ValidSplit(self.validation_fraction, stratified=True, random_state=seed)
        return _WeightedNet(
            module,
            criterion=criterion,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=self.weight_decay,
            lr=self.learning_rate,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            iterator_train__shuffle=True,
            train_split=split if self.early_stopping else None,
            predict_nonlinearity=probabilities,
            callbacks=callbacks,
            device=self.device,
            callbacks__print_log=None,  # it would ignore verbose if print is replaced, as by Ray
            verbose=0,
        )


class _WeightedNet(NeuralNetClassifier):
    """Net that takes ``{"x": features, "sample_weight": weights}``, or features alone for prediction."""

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        return super().infer(x["x"] if isinstance(x, dict) else x, **fit_params)

    def get_loss(self, y_pred: Tensor, y_true: Tensor, X: Any = None, training: bool = False) -> Tensor:  # noqa: N803
        offset = self.criterion_.logit_offset
        if not training and offset is not None:  # the criterion adds it in training only
            y_pred = y_pred + offset
        return self.criterion_(y_pred, y_true.to(self.device), X["sample_weight"].to(self.device))


def _whole(mass: NDArray[Any], class_weight: Any) -> NDArray[Any]:
    """Return the sum of sample weights per class as whole counts, scaled if they are fractions.

    Only "effective" depends on more than their ratios, and it is refused.
    """
    if (mass == mass.round()).all():
        return mass
    if class_weight == "effective":
        raise ValueError(
            f"sample_weight sums to {mass} per class, but class_weight 'effective' counts samples; give whole weights,"
            " or 'sqrt' or 'balanced'"
        )
    return np.maximum((mass / mass.max() * 2**50).round(), 1)


def _perceptron(features: int, hidden_layer_sizes: Sequence[int], classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for units in hidden_layer_sizes:
        layers += [nn.Linear(features, units), nn.ReLU()]
        features = units
    return nn.Sequential(*layers, nn.Linear(features, classes)).double()
