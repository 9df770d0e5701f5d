"""Find what voids a comparison: runs that had not converged, and models that predict one class for every sample."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cyclofocal.lab.metrics import OF_PREDICTED_CLASSES, Array, Metric
from cyclofocal.lab.records import VALIDATION_LOSS, RunRecord, best_epoch, has_stopped
from cyclofocal.lab.report.experiment import Experiment, by_run
from cyclofocal.lab.report.statistics import estimate

WINDOW = 5
"""Most epochs that are averaged at the end of a run."""

LEAST_GAIN = {
    VALIDATION_LOSS: 1.0,
    "validation_ap": 1.0,
    "validation_balanced_accuracy": 1.0,
    "validation_accuracy": 1.0,
    "train_accuracy": 5.0,
}
"""Gain from which a training counts as unfinished, by key of the epoch rows, the preferred one first.

In points of accuracy, and in per cent of the validation loss, which rows have with early stopping alone.
"""

SMALL_LOSS = 0.05
"""Validation loss, in nats, below which its fall is a percentage of this number: next to 0 any fall would be large."""

LEARNT_NLL = 0.95
"""Fraction of the NLL of the class frequencies below which a model has certainly learnt."""

LEARNT_GAIN = 0.1
"""Balanced accuracy above that of one class for all, from which a model has certainly learnt.

It is the post-hoc adjusted one, or that at a threshold chosen on validation data.
"""

NOT_TRAINED_GAIN = 0.01
"""Training accuracy above the share of the largest class, up to which a model has not learnt."""

VOIDING_SHARE = 0.5
"""Share of the runs of a loss that predict one class, from which the comparison is void."""

Cause = Literal["not trained", "threshold", "prior", "unknown"]


@dataclass(frozen=True)
class LateGain:
    """Gain of a loss at the end of its runs.

    Attributes:
        loss: its title.
        key: accuracy or loss of the epoch rows that improves.
        points: mean gain over the runs, in points; of a validation loss its mean fall in per cent.
    """

    loss: str
    key: str
    points: float


@dataclass(frozen=True)
class SingleClass:
    """Runs of a loss that predict one class for every test sample.

    Attributes:
        loss: its title.
        runs: number of these runs.
        of: number of all runs of the loss.
        cause: "not trained": the training accuracy is the share of the largest class, too; "threshold": a threshold
            chosen on validation data separates the two classes; "prior": the model has learnt, but the class prior
            hides it; "unknown": the records do not show it.
        adjusted: mean balanced accuracy of these runs, post-hoc adjusted, in per cent; None if no record has it.
        tuned: the same at the threshold chosen on validation data; None without.
    """

    loss: str
    runs: int
    of: int
    cause: Cause
    adjusted: float | None
    tuned: float | None = None

    def voids(self, metric: Metric) -> bool:
        """True if these runs are too many for the mean of the loss in this metric to say anything.

        A model that has learnt is compared well by its probabilities, and at its own threshold.
        """
        has_learnt = self.cause in ("threshold", "prior")
        return self.runs >= VOIDING_SHARE * self.of and not (has_learnt and metric.key not in OF_PREDICTED_CLASSES)


def late_gains(experiment: Experiment) -> list[LateGain]:
    """Losses whose runs still improved at their end, which would need more epochs.

    The accuracy is averaged over the last fifth of the epochs, at most :data:`WINDOW` of them, and over as many epochs
    before. A loss has not converged if the mean gain over its runs, paired by run, is above its bound in
    :data:`LEAST_GAIN` and its 95 % interval excludes 0.

    It is the balanced accuracy on validation data and not the NLL, which moves with eta and with overconfidence while
    the predictions stay the same. A learning rate that falls to 0 lifts the last epochs of any run by some tenths of a
    point; the bound of 1 point, twice the default margin of equivalence, and the short window leave that out. Without
    validation data the training accuracy takes its place, with a wider bound, because it rises even when the test
    accuracy does not. The training loss does not, because a cyclical loss changes with eta.
    """
    found = []
    for name, runs in experiment.runs.items():
        rows = [row for run in runs for row in run.epochs]
        key = next((key for key in LEAST_GAIN if all(row.get(key) is not None for row in rows)), "")
        gains = [] if not key else _falls(runs) if key == VALIDATION_LOSS else _gains(runs, key)
        if gains:
            gain = estimate(gains)  # of these runs, so that the overlap of folds does not matter
            if gain.mean > LEAST_GAIN[key] and (gain.interval is None or gain.interval[0] > 0):
                found.append(LateGain(experiment.titles[name], key, gain.mean))
    return found


def _gains(runs: Sequence[RunRecord], key: str) -> list[float]:
    """Gain of each run in points; empty for a single epoch."""
    curves: Array = 100 * by_run(runs, lambda run: [float(row[key] or 0.0) for row in run.epochs])
    epochs = curves.shape[1]
    window = max(1, min(epochs // 5, WINDOW))
    if epochs < 2 * window:
        return []
    gains: list[float] = (curves[:, -window:].mean(1) - curves[:, -2 * window : -window].mean(1)).tolist()
    return gains


def _falls(runs: Sequence[RunRecord]) -> list[float]:
    """Fall of the smallest validation loss of each run in per cent; empty for a single epoch."""
    return [_fall(run) for run in runs] if all(len(run.epochs) > 1 for run in runs) else []


def _fall(run: RunRecord) -> float:
    if has_stopped(run.epochs, run.recipe.get("early_stopping", 0)):
        return 0.0
    losses = [float(row[VALIDATION_LOSS] or 0.0) for row in run.epochs]
    window = max(1, min(len(losses) // 5, WINDOW))
    before = min(losses[:-window])
    return 100 * max(0.0, before - min(losses[-window:])) / max(abs(before), SMALL_LOSS)


def single_classes(experiment: Experiment) -> list[SingleClass]:
    """Losses with runs that predict one class for every test sample, whose accuracies do not compare losses."""
    found = []
    for name, runs in experiment.runs.items():
        if same := [run for run in runs if not experiment.boxes and _predicts_single_class(run)]:
            adjusted = _mean_percent(run.adjusted.get("balanced_accuracy") for run in same)
            tuned = _mean_percent(run.metrics.get("tuned_balanced_accuracy") for run in same)
            found.append(
                SingleClass(experiment.titles[name], len(same), len(runs), _cause(same, tuned), adjusted, tuned)
            )
    return found


def _mean_percent(fractions: Iterable[float | None]) -> float | None:
    known = [number for number in fractions if number is not None]
    return 100 * statistics.fmean(known) if known else None


def _predicts_single_class(run: RunRecord) -> bool:
    return len(run.per_class) > 1 and sorted(run.per_class)[-2:] == [0.0, 1.0]


def _cause(runs: Sequence[RunRecord], tuned: float | None) -> Cause:
    """Cause that all the runs share.

    At chosen thresholds the mean over the runs decides, because a single run has few test samples of the rarer class.
    """
    if tuned is not None and tuned > 100 * (0.5 + LEARNT_GAIN):
        return "threshold"
    if tuned is None and all(map(_has_learnt, runs)):
        return "prior"
    return "not trained" if all(map(_has_not_trained, runs)) else "unknown"


def _has_learnt(run: RunRecord) -> bool:
    """True if the run is well above one class for all when adjusted, or its NLL below that of the class frequencies."""
    adjusted = run.adjusted.get("balanced_accuracy")
    if adjusted is not None and adjusted > 1 / len(run.train_counts) + LEARNT_GAIN:
        return True
    trained, tested, nll = run.train_counts, run.test_counts, run.metrics.get("nll")
    if nll is None or len(trained) != len(tested) or min(trained) < 1:
        return False
    of_shares = sum(t * -math.log(n / sum(trained)) for n, t in zip(trained, tested, strict=True)) / sum(tested)
    return nll < LEARNT_NLL * of_shares


def _has_not_trained(run: RunRecord) -> bool:
    accuracy = run.epochs[best_epoch(run.epochs)].get("train_accuracy") if run.epochs else None
    counts = [1] * len(run.train_counts) if run.loss.get("sampler") else run.train_counts  # as often as they are drawn
    return accuracy is not None and accuracy <= max(counts) / sum(counts) + NOT_TRAINED_GAIN
