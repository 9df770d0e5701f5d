"""Choose the settings of a loss by validation data alone, with the same number of trainings for every loss."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclofocal.lab.compare.grid import run_job
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import best_epoch
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.run_folder import run_folder
from cyclofocal.lab.training.train import load_data
from cyclofocal.ranges import check_at_least

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

Bounds = tuple[float, float]
"""Smallest and largest value."""

Score = tuple[float, float]
"""Balanced accuracy on the validation data, and the negative of the NLL there, which decides between equal ones.

Of boxes the average precision, and 0.
"""

LEARNING_RATE_SCALE: Bounds = (0.3, 3.0)
GAMMA: Bounds = (0.0, 5.0)
GAMMA_HC: Bounds = (0.0, 3.5)  # above 3.591 the high-confidence term pushes some samples the wrong way
FACTOR_BOUNDS: Bounds = (1.0, 8.0)
LABEL_SMOOTHING: Bounds = (0.0, 0.3)
TAU: Bounds = (0.0, 2.5)
SMOOTHING_ODDS: Bounds = (1.5, 1000.0)
MAX_MARGIN: Bounds = (0.0, 1.0)
VS_GAMMA: Bounds = (0.0, 0.5)
ALPHA_BOUNDS: Bounds = (0.05, 0.95)

SPACES: dict[str, dict[str, Bounds]] = {
    "ce": {},
    "smoothed": {"label_smoothing": LABEL_SMOOTHING},
    "focal": {"gamma": GAMMA},
    "asymmetric": {"gamma_pos": GAMMA, "gamma_neg": GAMMA, "label_smoothing": LABEL_SMOOTHING},
    "cyclical": {
        "gamma_hc": GAMMA_HC,
        "cyclical_factor": FACTOR_BOUNDS,
        "gamma_pos": GAMMA,
        "gamma_neg": GAMMA,
        "label_smoothing": LABEL_SMOOTHING,
    },
    "weighted": {},
    "logit-adjusted": {},
    "balanced-softmax": {},
    "class-balanced-focal": {"gamma": GAMMA},
    "ldam-drw": {"max_margin": MAX_MARGIN},
    "vs": {"vs_gamma": VS_GAMMA},
    "bce": {},
}
"""Settings tuned for each loss, besides ``learning_rate_scale``; "gamma" is ``gamma_pos`` and ``gamma_neg`` in one.

A loss that has a ``tau`` or an ``alpha`` has it tuned, too.
"""

LOGARITHMIC = ("learning_rate_scale", "cyclical_factor", "smoothing_odds")
"""Settings sampled on a logarithmic scale."""

SHARED_SEED = 1_000_000
"""Seed for tuning shared by all runs; outside the range of comparison seeds."""


def tune(job: Job) -> LossSettings:
    r"""The loss at the best of ``loss.trials`` settings, found without the test set.

    Every trial is a separate training, and the best has the greatest balanced accuracy, of two classes the greatest
    AUROC, of boxes the greatest average precision, on the validation data after the evaluated epoch, the last or with
    early stopping the best one; of equal ones that with the smaller NLL, then the earlier. The first trial is the loss
    as it came, the others are from Optuna's tree-structured Parzen estimator. Search space, by the loss's name before
    a colon:

    ==============  ======================================================================================
    every loss      ``learning_rate_scale`` 0.3 to 3, so that cross-entropy spends its trials too
    ``ce``          nothing else, as for a custom loss
    ``smoothed``    ``label_smoothing`` 0 to 0.3
    ``focal``       ``gamma_pos`` = ``gamma_neg`` 0 to 5
    ``asymmetric``  ``gamma_pos`` and ``gamma_neg`` 0 to 5, ``label_smoothing`` 0 to 0.3
    ``cyclical``    those, ``gamma_hc`` 0 to 3.5, ``cyclical_factor`` 1 to 8
    ==============  ======================================================================================

    ``class-balanced-focal`` is tuned as ``focal``; ``ldam-drw`` has ``max_margin`` 0 to 1, ``vs`` has ``vs_gamma`` 0 to
    0.5, and ``bce`` nothing else. Every loss that begins with a ``tau`` has ``tau`` 0 to 2.5 as well, every loss
    with an ``alpha`` has ``alpha`` 0.05 to 0.95, and one with ``smoothing_odds`` has these, 1.5 to 1000, in place of
    ``label_smoothing``.

    The trials are runs in ``tuning/``, next to the recipe's folder, and finished ones are not repeated; a larger budget
    continues where a smaller one stopped. A diverged trial counts against the budget and is never selected; rerunning
    repeats its last epoch. Of processes that need one trial at once, one runs it and the others wait.

    Args:
        job: the run that the settings are for, of a recipe with validation data; its loss is where to begin, with
            ``trials`` of at least 1. Its ``folder`` is the one of
            :func:`~cyclofocal.lab.training.run_folder.run_folder`; None stores no trial.

    Returns:
        The job's loss with its settings replaced; name, title and trials are the same.

    Raises:
        FloatingPointError: every trial has diverged.
        What :func:`check_tuning` raises, before any work; what :func:`~cyclofocal.lab.training.train.train` raises.

    Reference: Bergstra et al., *Algorithms for Hyper-Parameter Optimization*, NeurIPS 2011.
    """
    recipe, loss = job.recipe, job.loss
    check_tuning(recipe, loss, job.options.root)
    from optuna.trial import TrialState

    seed, scores = tuning_seed(recipe, job.seed), dict[LossSettings, Score]()
    study, space = _study(seed), _distributions(loss)
    study.enqueue_trial(_start(loss))
    for number in range(loss.trials):
        trial = study.ask(space)
        tried = replace(loss, trials=0, **(_settings(trial.params) if number else {}))
        score = _score(replace(job, loss=tried, seed=seed, test=False))
        if score is None:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, score[0])
            scores.setdefault(tried, score)
    if not scores:
        raise FloatingPointError(f"{loss.title}: every one of {loss.trials} trials has diverged on {recipe.name}")
    return replace(max(scores, key=lambda tried: scores[tried]), trials=loss.trials)


def check_tuning(recipe: Recipe, loss: LossSettings, root: Path) -> None:
    """Refuse a recipe or loss that cannot be tuned, before any training.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        ValueError: no trials, a loss whose space is not known or that begins outside of it, or no validation data.
        MissingDataError, DamagedDataError: of data that must be read to know whether it has a validation set.
    """
    if find_spec("optuna") is None:
        raise ModuleNotFoundError("tuning needs optuna. From a clone: pip install '.[tuning]'")
    check_at_least("trials", loss.trials, remedy=f" to tune {loss.title}")
    start, space = _start(loss), search_space(loss)
    for name, (least, greatest) in space.items():
        if not least <= start[name] <= greatest:
            raise ValueError(f"{name} is {start[name]}; tuning {loss.title} tries {least:g} to {greatest:g}")
    if not recipe.data.asks_for_validation and load_data(recipe, root, tuning_seed(recipe, 0)).validation is None:
        needed = recipe.data.validation_field
        value = repr(found) if isinstance(found := getattr(recipe.data, needed), str) else "0"
        raise ValueError(f"{recipe.name} has no validation data to choose settings by: {needed} is {value}; set it")


def tuning_seed(recipe: Recipe, seed: int) -> int:
    """The run's own seed where that draws the test set, so that tuning stays within the run's own training part.

    Where the test set is fixed it is :data:`SHARED_SEED`, and one tuning serves all seeds.

    Example:
        >>> from cyclofocal.lab.recipes.catalogue import RECIPES
        >>> [tuning_seed(RECIPES[name](), 3) for name in ("digits", "fashion-mnist")]
        [3, 1000000]
    """
    return seed if recipe.data.draws_test_set else SHARED_SEED


def search_space(loss: LossSettings) -> dict[str, Bounds]:
    """Bounds of the settings that are tuned for this loss.

    Raises:
        ValueError: a loss that is neither one of :data:`SPACES` nor custom.

    Example:
        >>> search_space(LossSettings("smoothed:tuned", "label smoothing, tuned"))
        {'learning_rate_scale': (0.3, 3.0), 'label_smoothing': (0.0, 0.3)}
    """
    name = loss.name.partition(":")[0]
    if not loss.file and name not in SPACES:
        raise ValueError(f"{loss.name!r} cannot be tuned; its name must begin with one of {', '.join(SPACES)}")
    further = ({"tau": TAU} if loss.tau else {}) | ({} if loss.alpha is None else {"alpha": ALPHA_BOUNDS})
    found = {"learning_rate_scale": LEARNING_RATE_SCALE} | ({} if loss.file else SPACES[name]) | further
    if loss.smoothing_odds:
        found.pop("label_smoothing", None)
        found["smoothing_odds"] = SMOOTHING_ODDS
    return found


def _score(trial: Job) -> Score | None:
    """Train once; None where it diverges."""
    if trial.folder is not None:
        root = trial.folder.parent.parent / "tuning"
        trial = replace(trial, folder=run_folder(root, trial.recipe, trial.loss, trial.seed))
    try:
        record = run_job(trial)
    except FloatingPointError:
        return None
    assert record is not None
    row = record.epochs[best_epoch(record.epochs)]
    if record.is_detection:
        return row["validation_ap"] or 0.0, 0.0
    score = row["validation_balanced_accuracy"] if (auroc := row.get("validation_auroc")) is None else auroc
    return score or 0.0, -(row["validation_nll"] or 0.0)


def _start(loss: LossSettings) -> dict[str, float]:
    """Start of the search: the loss as given."""
    return {name: getattr(loss, "gamma_pos" if name == "gamma" else name) for name in search_space(loss)}


def _settings(params: dict[str, float]) -> dict[str, Any]:
    """A point of the space as settings, with the three digits that a reader can use."""
    rounded: dict[str, Any] = {name: float(f"{value:.3g}") for name, value in params.items()}
    if "gamma" in rounded:
        rounded["gamma_pos"] = rounded["gamma_neg"] = rounded.pop("gamma")
    return rounded


def _distributions(loss: LossSettings) -> "dict[str, BaseDistribution]":
    from optuna.distributions import FloatDistribution

    space = search_space(loss).items()
    return {name: FloatDistribution(*bounds, log=name in LOGARITHMIC) for name, bounds in space}


def _study(seed: int) -> "Study":
    """A study in memory, for the trials themselves are on disk; nothing is printed."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    finally:
        optuna.logging.set_verbosity(verbosity)
