"""References of a comparison: models that are fitted to the rows of the network, and evaluated as it is."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import DataSet, Labels, Samples
from cyclofocal.lab.recipes.head import HeadRecipe
from cyclofocal.lab.recipes.loss import ESTIMATORS, LIGHTGBM, MAJORITY, LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.loop import Task, Training
from cyclofocal.lab.training.train_state import TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_TREES, PATIENCE_ROUNDS = 1000, 50
"""Boosting rounds where validation rows stop them, and the rounds without a better validation NLL that do."""

MOST_ITERATIONS = 1000
"""Iterations of the solver of logistic regression, ten times scikit-learn's default, so that it converges."""

LEAST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Probability that takes the place of smaller ones, whose logarithm would not be finite."""


def default_references(recipe: Recipe) -> tuple[LossSettings, ...]:
    """References that fit a recipe: all for a table, all but LightGBM for a head on features, none for images.

    LightGBM is left out where it is not installed; see :func:`lightgbm_is_installed`.
    """
    if isinstance(recipe, HeadRecipe):
        return tuple(entry for entry in ESTIMATORS if entry.estimator != LIGHTGBM.estimator)
    if not isinstance(recipe.data, TableData):
        return ()
    installed = lightgbm_is_installed()
    return tuple(entry for entry in ESTIMATORS if installed or entry.estimator != LIGHTGBM.estimator)


def lightgbm_is_installed() -> bool:
    """True if LightGBM can be imported."""
    return find_spec("lightgbm") is not None


def check_reference(recipe: Recipe, loss: LossSettings) -> None:
    """Refuse a reference that cannot be fitted to the data of a recipe.

    Raises:
        ValueError: the data are images, and the reference is not the majority class.
        ModuleNotFoundError: it is LightGBM, which is not installed.
    """
    has_rows = isinstance(recipe, HeadRecipe) or isinstance(recipe.data, TableData)
    if not has_rows and loss.estimator != MAJORITY.estimator:
        raise ValueError(
            f"{recipe.name} has images, and {loss.name} needs rows: compare it on a table, or on the features of a"
            " frozen network, --features MODEL"
        )
    if loss.estimator == LIGHTGBM.estimator and not lightgbm_is_installed():
        raise ModuleNotFoundError(f"{loss.name} needs LightGBM: pip install lightgbm")


def reference_task(task: Task) -> Task:
    """The task of a reference, which loads and evaluates the data of another task."""
    return task._replace(build=build_reference, fit=fit_reference)


def build_reference(job: Job, data: DataSet, accelerator: "Accelerator") -> TrainState:
    """The state of a reference that is not fitted yet; it has neither weights nor an optimiser.

    Raises:
        ValueError: data that it cannot be fitted to.
        ModuleNotFoundError: LightGBM is not installed.
    """
    check_reference(job.recipe, job.loss)
    model = ReferenceModel(job.loss, len(data.classes), job.seed)
    return TrainState(accelerator, model, model, None, nn.CrossEntropyLoss(), None)


def fit_reference(training: Training) -> None:
    """Fit the reference to the training rows; validation rows stop LightGBM."""
    model = training.state.model
    assert isinstance(model, ReferenceModel)
    model.fit(training.data)


class ReferenceModel(nn.Module):
    """A fitted model as a network, whose logits are the logarithms of its probabilities.

    Args:
        loss: ``estimator`` and ``class_weight``.
        classes: number of classes C.
        seed: of the run, for LightGBM.
    """

    def __init__(self, loss: LossSettings, classes: int, seed: int) -> None:
        super().__init__()
        self.settings, self.seed = loss, seed
        self.estimator: Any = None
        self.log_prior = torch.zeros(classes)

    def fit(self, data: DataSet) -> None:
        """Fit to the training rows.

        Raises:
            ValueError: LightGBM with a class of validation rows that no training row has.
        """
        counts = torch.tensor(data.counts, dtype=torch.float64)
        self.log_prior = (counts / counts.sum()).clamp_min(LEAST_PROBABILITY).log().float()
        if self.settings.estimator == MAJORITY.estimator:
            return
        rows, labels = _rows(data.train), data.train.labels
        weight = self.settings.class_weight or None
        if self.settings.estimator == LIGHTGBM.estimator:
            self.estimator = _lightgbm(rows, labels, data.validation, weight, self.seed)
        else:
            self.estimator = _logistic_regression(rows, labels, weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logarithms of the probabilities (N, C) of rows (N, features), or of images for the majority class."""
        if self.estimator is None:
            return self.log_prior.to(inputs.device).expand(len(inputs), -1)
        found = self.estimator.predict_proba(inputs.double().cpu().numpy())
        probabilities = np.zeros((len(inputs), len(self.log_prior)))
        probabilities[:, self.estimator.classes_] = found  # a class without training rows has no column
        return torch.from_numpy(np.log(np.maximum(probabilities, LEAST_PROBABILITY))).float().to(inputs.device)


def _rows(samples: Samples) -> NDArray[np.float64]:
    assert samples.inputs is not None
    return samples.inputs.double().numpy()


def _logistic_regression(rows: NDArray[np.float64], labels: Labels, class_weight: str | None) -> Any:
    """scikit-learn's logistic regression on rows scaled to mean 0 and variance 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(class_weight=class_weight, max_iter=MOST_ITERATIONS)
    return make_pipeline(StandardScaler(), model).fit(rows, labels)


def _lightgbm(
    rows: NDArray[np.float64], labels: Labels, validation: Samples | None, class_weight: str | None, seed: int
) -> Any:
    """LightGBM at its defaults; with validation rows as many trees as have the best NLL of them, weighted alike."""
    import lightgbm

    settings: dict[str, Any] = {"deterministic": True, "force_row_wise": True, "n_jobs": torch.get_num_threads()}
    settings |= {"class_weight": class_weight, "random_state": seed, "verbosity": -1}
    if validation is None:
        return lightgbm.LGBMClassifier(**settings).fit(rows, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of eval_set, whose successors LightGBM 4.0 does not have
        return lightgbm.LGBMClassifier(n_estimators=MOST_TREES, **settings).fit(
            rows,
            labels,
            eval_set=[(_rows(validation), validation.labels)],
            eval_class_weight=[class_weight] if class_weight else None,
            callbacks=[lightgbm.early_stopping(PATIENCE_ROUNDS, verbose=False)],
        )


def left_out_line(recipes: Sequence[Recipe]) -> str:
    """Sentence that says why LightGBM is left out of a comparison; "" where it is not, or is not asked for."""
    if lightgbm_is_installed() or not any(isinstance(recipe.data, TableData) for recipe in recipes):
        return ""
    return "references: LightGBM is not installed, and left out; pip install lightgbm"
