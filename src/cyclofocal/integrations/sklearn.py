"""scikit-learn: a classifier for tables."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cyclofocal.imbalance import check_tau, class_weights, log_prior
from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.perceptron import PerceptronTraining, Rows, adam, dense, perceptron
from cyclofocal.losses import CyclicalFocalLoss, FocalLoss
from cyclofocal.ranges import check_at_least

require_host("scikit-learn", "1.6")

from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402
from sklearn.utils import check_random_state, compute_class_weight  # noqa: E402
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets  # noqa: E402
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data  # noqa: E402

LOSS_NAMES = ("cyclical", "focal", "ce")

ROWS_AT_ONCE = 1024
"""Rows of one prediction step; of a sparse matrix no more are dense at a time."""


class CyclicalFocalClassifier(ClassifierMixin, BaseEstimator):
    """A multi-layer perceptron trained with the cyclical focal loss, one cycle per ``fit``.

    Like any network it needs features of similar scale: put a ``StandardScaler`` before it. It takes the inputs of
    scikit-learn: arrays, pandas, polars, and sparse matrices, of which one batch at a time is made dense.

    Args:
        hidden_layer_sizes: units per hidden layer; () is logistic regression.
        loss: "cyclical", "focal" (its cycle stopped at eta 0) or "ce" (cross-entropy), each with class weights,
            prior, smoothing and row weights as below.
        gamma_pos, gamma_neg: exponents of "cyclical" and "focal".
        gamma_hc: high-confidence exponent of "cyclical". At 0 the cycle begins and ends at cross-entropy, and the
            probabilities stay calibrated; the paper's 2 or 3 make them overconfident.
        cyclical_factor: of "cyclical", as in :class:`cyclofocal.CyclicalFocalLoss`.
        label_smoothing: as in :class:`cyclofocal.CyclicalFocalLoss`.
        class_weight: None; "balanced", "sqrt" or "effective" as in ``cyclofocal.imbalance.class_weights``; or a dict
            from class to factor.
        tau: >= 0; in training, ``tau * log(prior)`` is added to the logits, the prior being that of ``y``, or of the
            sample weights. At 1 the net learns the logits of equally likely classes (logit adjustment).
        beta: of class_weight "effective", in [0, 1).
        weight_start: progress in [0, 1] before which all class weights are 1 (deferred re-weighting: 0.8).
        learning_rate: learning rate of Adam at the start; it falls to 0 over the cycle, as half a cosine.
        weight_decay: decoupled weight decay, normalized: of a step it is ``learning_rate * weight_decay`` over the root
            of the number of steps. Biases do not decay.
        max_epochs: epochs per ``fit``, or calls of ``partial_fit`` per cycle, >= 1.
        batch_size: rows per step, >= 1.
        warm_start: start from the weights of the last ``fit``, in a new cycle; the classes must be the same.
        early_stopping: hold out a part of the rows, stop when its plain cross-entropy (with the prior of ``tau``, as
            these rows have the class frequencies of ``y``) has not fallen for ``n_iter_no_change`` epochs, and restore
            the best weights. Allow many epochs: the hard phase raises it.
        validation_fraction: fraction of rows held out, in (0, 1).
        n_iter_no_change: patience in epochs.
        verbose: print the loss of every epoch.
        random_state: random seed for weights, order and held-out rows: None, int or RandomState.
        device: torch device.

    Attributes:
        classes_: labels, in the order of the columns of ``predict_proba``.
        module_: the network, in float64.
        criterion_: the loss.
        loss_curve_: training loss of every epoch.
        validation_loss_curve_: with early_stopping, cross-entropy of the held-out rows after every epoch.
        n_iter_: number of epochs, those of ``partial_fit`` included.

    Raises:
        ValueError: a setting or the data do not fit, before any training.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> x, y = load_iris(return_X_y=True)
        >>> model = make_pipeline(StandardScaler(), CyclicalFocalClassifier(random_state=0))
        >>> model.fit(x, y).score(x, y) > 0.9
        True

    Reference: L. N. Smith, *Cyclical Focal Loss*, arXiv 2202.08978.
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] | int = (100,),
        *,
        loss: str = "cyclical",
        gamma_pos: float = 2.0,
        gamma_neg: float = 2.0,
        gamma_hc: float = 0.0,
        cyclical_factor: float = 4.0,
        label_smoothing: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        tau: float = 0.0,
        beta: float = 0.9999,
        weight_start: float = 0.0,
        learning_rate: float = 0.01,
        weight_decay: float = 20.0,
        max_epochs: int = 100,
        batch_size: int = 200,
        warm_start: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.loss = loss
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
        self.verbose = verbose
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

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
        self._start(x.shape[1], classes, criterion, seed)
        if self.early_stopping:
            self._fit_until_best(x, index, weight, seed)
        else:
            rows = self._tensors(x, index, weight)
            for _ in range(self.max_epochs):
                self._run_epoch(rows)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803
        """Train for one epoch on the rows given; ``max_epochs`` calls are one cycle, after which another begins.

        As many calls with the same rows are the same training as one ``fit``.

        Args:
            X, y, sample_weight: as in :meth:`fit`; ``y`` may lack some classes.
            classes: all classes; needed in the first call.

        Raises:
            ValueError: as in :meth:`fit`, or a setting that needs all rows at once: early_stopping, tau, or
                class_weight by scheme.
        """
        self._check_settings()
        self._refuse_whole_table_settings()
        first = _check_partial_fit_first_call(self, classes)
        x, y, weight = self._rows(X, y, sample_weight, reset=first)
        if unknown := set(np.unique(y)) - set(self.classes_):
            raise ValueError(f"y has classes that are not in classes: {sorted(unknown)}; give all in the first call")
        index = np.searchsorted(self.classes_, y)
        if first:
            criterion = self._criterion(self.classes_, index, weight)
            self._start(x.shape[1], self.classes_, criterion, check_random_state(self.random_state).randint(2**31 - 1))
        elif self._training.epochs_done >= self.max_epochs:
            self._training.epochs_done, self._training.optimizer = 0, adam(self.module_)
        self._run_epoch(self._tensors(x, index, weight))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return probabilities (N, C), columns in the order of ``classes_``.

        They are the softmax of the trained logits. With ``tau`` the logits are those without the training prior: at 1
        the probabilities are for equally likely classes, not for the class frequencies of ``y``.
        """
        return self._logits(X).softmax(-1).numpy()

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return the logarithm of :meth:`predict_proba`, finite where a probability is too small for a float."""
        return self._logits(X).log_softmax(-1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the class of the largest probability of :meth:`predict_proba`, with ``tau`` the balanced choice."""
        check_is_fitted(self)
        return self.classes_[self._logits(X).argmax(1).numpy()]

    def _logits(self, x: Any) -> Tensor:
        check_is_fitted(self)
        x = validate_data(self, x, accept_sparse="csr", dtype=np.float64, reset=False)
        x = torch.tensor(x) if isinstance(x, np.ndarray) else x  # a copy: frames are read-only
        module = copy.deepcopy(self.module_).cpu()  # in float64: a row's result must not depend on other rows
        with torch.inference_mode():
            return torch.cat([module(dense(x, rows)) for rows in torch.arange(x.shape[0]).split(ROWS_AT_ONCE)])

    def _rows(
        self, x: Any, y: Any, sample_weight: Any, reset: bool = True
    ) -> tuple[Any, NDArray[Any], NDArray[np.float64]]:
        """Return features, labels and weights of the rows with a weight above 0."""
        x, y = validate_data(self, x, y, accept_sparse="csr", dtype=np.float64, reset=reset)
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, x, dtype=np.float64)
        if (weight < 0).any():
            raise ValueError(f"sample_weight has values down to {weight.min()}; it must be at least 0")
        seen = weight > 0
        if not seen.any():
            raise ValueError("sample_weight is 0 in every row; it must be above 0 in at least one")
        return (x, y, weight) if seen.all() else (x[seen], y[seen], weight[seen])

    def _tensors(self, x: Any, index: NDArray[np.int64], weight: NDArray[np.float64]) -> Rows:
        x = torch.tensor(x, device=self.device) if isinstance(x, np.ndarray) else x
        same = (weight == weight[0]).all()  # then the loss without weights is the same, and faster
        return Rows(
            x,
            torch.tensor(index, device=self.device),
            None if same else torch.tensor(weight, device=self.device),
        )

    def _check_settings(self) -> None:
        for name in ("max_epochs", "batch_size", "n_iter_no_change"):
            check_at_least(name, getattr(self, name))
        if self.loss not in LOSS_NAMES:
            raise ValueError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSS_NAMES)}")
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
        settings: dict[str, Any] = {
            "label_smoothing": self.label_smoothing,
            "weight_start": self.weight_start,
            "logit_offset": self.tau * log_prior(counts) if self.tau else None,
        }
        if self.loss == "ce":
            return FocalLoss(weight, gamma_pos=0.0, gamma_neg=0.0, **settings)
        settings |= {"gamma_pos": self.gamma_pos, "gamma_neg": self.gamma_neg}
        if self.loss == "focal":
            return FocalLoss(weight, **settings)
        return CyclicalFocalLoss(weight, gamma_hc=self.gamma_hc, cyclical_factor=self.cyclical_factor, **settings)

    def _start(self, features: int, classes: NDArray[Any], criterion: CyclicalFocalLoss, seed: int) -> None:
        """Begin a training: a new network, or with ``warm_start`` that of the last fit; the clock at 0."""
        generator = torch.Generator().manual_seed(seed)
        module = self._module(features, classes, generator).to(self.device)
        self.module_, self.criterion_, self.classes_ = module, criterion.to(self.device), classes
        self.loss_curve_: list[float] = []
        self.n_iter_ = 0
        self._training = PerceptronTraining(module, self.criterion_, adam(module), generator)

    def _module(self, features: int, classes: NDArray[Any], generator: torch.Generator) -> nn.Module:
        if not (self.warm_start and hasattr(self, "module_")):
            return perceptron(features, self._layers(), len(classes), generator)
        if not np.array_equal(classes, self.classes_):
            raise ValueError(f"warm_start is True, but y has the classes {classes}, those fitted are {self.classes_}")
        return self.module_

    def _run_epoch(self, rows: Rows) -> None:
        names = ("batch_size", "learning_rate", "weight_decay", "max_epochs")
        loss = self._training.run_epoch(rows, **{name: getattr(self, name) for name in names})
        self.loss_curve_.append(loss)
        self.n_iter_ += 1
        if self.verbose:
            print(f"epoch {self._training.epochs_done} of {self.max_epochs}: loss {loss:.6f}")  # as scikit-learn does

    def _fit_until_best(self, x: Any, index: NDArray[np.int64], weight: NDArray[np.float64], seed: int) -> None:
        """Train until the loss of held-out rows has not fallen for ``n_iter_no_change`` epochs."""
        split = train_test_split(
            np.arange(len(index)), test_size=self.validation_fraction, stratify=index, random_state=seed
        )
        rows, held_out = (self._tensors(x[part], index[part], weight[part]) for part in split)
        self.validation_loss_curve_: list[float] = []
        best: dict[str, Any] = {}
        best_epoch = 0
        for epoch in range(self.max_epochs):
            self._run_epoch(rows)
            curve = self.validation_loss_curve_
            curve.append(self._training.validation_loss(held_out, self.batch_size))
            if self.verbose:
                print(f"  held-out rows: cross-entropy {curve[-1]:.6f}")
            if not best or curve[-1] < curve[best_epoch]:
                best, best_epoch = copy.deepcopy(self.module_.state_dict()), epoch
            if epoch - best_epoch >= self.n_iter_no_change:
                break
        self.module_.load_state_dict(best)

    def _refuse_whole_table_settings(self) -> None:
        """Refuse what ``partial_fit`` could compute from all rows only."""
        for name in ("early_stopping", "tau"):
            if getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}, which needs all rows at once; leave it out, or fit")
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight is {self.class_weight!r}, which needs all labels at once; for partial_fit give a dict"
                " from class to factor"
            )


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
