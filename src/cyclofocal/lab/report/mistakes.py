"""Find the test samples that were most confidently wrong, and what each loss predicts for them."""

import base64
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cyclofocal.lab.messages import UnreadableImageError
from cyclofocal.lab.metrics import Array, LabelArray, log_softmax
from cyclofocal.lab.report.experiment import Experiment
from cyclofocal.lab.report.run_predictions import ExperimentPredictions
from cyclofocal.lab.training.predictions import Predictions

if TYPE_CHECKING:
    from cyclofocal.lab.data.lookup import SampleLookup

MOST, MOST_DIVIDED = 12, 4
"""Most samples that are shown, and those among them that are chosen because the losses differ."""

THUMBNAIL = 96
"""Largest side of a thumbnail in pixels."""

SMALL_IMAGE = 40
"""Largest side in pixels of an image that is stored without loss."""


@dataclass(frozen=True)
class LossVerdict:
    """Predictions of one loss for one sample.

    Attributes:
        predicted: name of the class with the largest mean probability over runs.
        probability: this probability, in [0, 1].
        of_true: mean probability of the true class.
        correct: True if this class is the true one.
        right, runs: number of runs that predict the true class, and of all that tested the sample.
    """

    predicted: str
    probability: float
    of_true: float
    correct: bool
    right: int
    runs: int


@dataclass(frozen=True)
class Mistake:
    """A sample that was confidently wrong.

    Attributes:
        name: path, or number in the source.
        true: name of its class.
        verdicts: one per loss, by name.
        thumbnail: data URI of a small image; "" for a row or an image that is not available.
        values: values of the columns of a row; empty for others.
    """

    name: str
    true: str
    verdicts: dict[str, LossVerdict]
    thumbnail: str = ""
    values: tuple[str, ...] = ()

    @property
    def short_name(self) -> str:
        """Last two parts of a path; other names as they are."""
        return "/".join(Path(self.name).parts[-2:]) if self.thumbnail and os.sep in self.name else self.name


@dataclass(frozen=True)
class Mistakes:
    """The most confident mistakes of an experiment.

    Attributes:
        samples: at most :data:`MOST`, the most confident first, and then those on which the losses differ most.
        n_divided: number of the latter.
        columns: names of the columns of ``values``.
        missing: why there are no samples, as the end of a sentence; "" otherwise.
        notes: sentences on what is not shown.
    """

    samples: tuple[Mistake, ...]
    n_divided: int = 0
    columns: tuple[str, ...] = ()
    missing: str = ""
    notes: tuple[str, ...] = ()


def find_mistakes(
    experiment: Experiment, found: ExperimentPredictions, root: Path, show_samples: bool = True
) -> Mistakes:
    """The samples with the largest probability of a wrong class, mean over all runs that tested them (0 where right).

    With several losses the last :data:`MOST_DIVIDED` are those whose means of single losses differ most.

    Args:
        experiment: names of classes, and the data.
        found: its predictions.
        root: folder of data sets, from which images and rows are read if they are there and unchanged.
        show_samples: False shows the positions or paths alone.
    """
    runs = [run for of_loss in found.runs.values() for run in of_loss]
    if not runs:
        return Mistakes((), missing=found.missing)
    if any(not len(run.ids) for run in runs):
        return Mistakes((), missing="the predictions do not name their samples")
    ids, which = np.unique(np.concatenate([run.ids for run in runs]), return_inverse=True)
    confidence = np.concatenate([_wrong_confidence(run) for run in runs])
    by_loss = np.split(np.stack([which, confidence]), len(found.runs), axis=1)  # all losses have the same test samples
    means = np.array([np.bincount(w.astype(np.intp), c) / np.bincount(w.astype(np.intp)) for w, c in by_loss])
    worst, divided = _chosen(means)
    if not len(worst):
        return Mistakes((), missing="every prediction is right")
    lookup, notes = None, ["The samples are not shown, as asked for."]
    if show_samples:
        labels = np.zeros(len(ids), dtype=np.int64)
        labels[which] = np.concatenate([run.target for run in runs])
        lookup, notes = _lookup(experiment, root, ids, labels)
    if lookup and lookup.n_hidden_columns:
        notes.append(f"The first {len(lookup.columns)} of {len(lookup.columns) + lookup.n_hidden_columns} columns.")
    samples = tuple(_mistake(ids[place].item(), experiment, found, lookup) for place in (*worst, *divided))
    return Mistakes(samples, len(divided), tuple(lookup.columns) if lookup else (), notes=tuple(notes))


def _chosen(means: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places of the most confident mistakes, and of those that divide the losses.

    Args:
        means: confidence in a wrong class, (losses, samples).
    """
    confidence, difference = means.mean(0), np.ptp(means, axis=0)
    worst = np.argsort(-confidence, kind="stable")[: MOST if len(means) == 1 else MOST - MOST_DIVIDED]
    worst = worst[confidence[worst] > 0]
    others = np.argsort(-difference, kind="stable")
    divided = others[~np.isin(others, worst)][:MOST_DIVIDED]
    return worst, divided[difference[divided] > 0]


def _wrong_confidence(run: Predictions) -> Array:
    """Probability of the predicted class of each sample, 0 where it is right."""
    p = np.exp(log_softmax(run.logits.astype(np.float64)))
    return np.where(run.logits.argmax(1) == run.target, 0.0, p.max(1))


def _lookup(
    experiment: Experiment, root: Path, ids: NDArray[Any], labels: LabelArray
) -> tuple["SampleLookup | None", list[str]]:
    """Source of the samples, or None and the reason in a sentence."""
    from cyclofocal.lab.data.lookup import SampleLookup  # imports torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lookup = SampleLookup(experiment.recipe, root)
        lookup.check(ids, labels)
    except (ImportError, OSError, TypeError, ValueError) as error:
        return None, [f"The samples are named but not shown: {' '.join(str(error).split())}."]
    return lookup, []


def _mistake(
    sample: int | str, experiment: Experiment, found: ExperimentPredictions, lookup: "SampleLookup | None"
) -> Mistake:
    verdicts, true = {}, 0
    for name, runs in found.runs.items():
        tested = [(run, place) for run in runs for place in np.flatnonzero(run.ids == sample)[:1].tolist()]
        p = np.exp(log_softmax(np.array([run.logits[place] for run, place in tested], dtype=np.float64)))
        true, mean = int(tested[0][0].target[tested[0][1]]), p.mean(0)
        predicted, right = int(mean.argmax()), int((p.argmax(1) == true).sum())
        verdicts[name] = LossVerdict(
            predicted=experiment.classes[predicted],
            probability=float(mean[predicted]),
            of_true=float(mean[true]),
            correct=predicted == true,
            right=right,
            runs=len(tested),
        )
    values = tuple(lookup.values(sample)) if lookup else ()
    name = lookup.name(sample) if lookup else f"number {sample}" if isinstance(sample, int) else sample
    return Mistake(name, experiment.classes[true], verdicts, _thumbnail(sample, lookup), values)


def _thumbnail(sample: int | str, lookup: "SampleLookup | None") -> str:
    try:
        image = lookup.image(sample) if lookup else None
    except UnreadableImageError:
        return ""
    return "" if image is None else data_uri(image)


def data_uri(image: Image.Image, most: int = THUMBNAIL) -> str:
    """An image of at most ``most`` pixels as a data URI: PNG up to :data:`SMALL_IMAGE` pixels, JPEG above."""
    small, content = image.copy(), io.BytesIO()
    kind = "png" if max(image.size) <= SMALL_IMAGE else "jpeg"
    small.thumbnail((most, most))
    small.save(content, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
