"""Save and load test logits, to recompute metrics without retraining."""

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.metrics import THRESHOLDS, Array, LabelArray
from cyclofocal.lab.records import write_atomically

PREDICTIONS = "predictions.npz"
"""File in the folder of every run: the logits of the test set, for ``cyclofocal evaluate``."""

DETECTIONS = "detections.json"
"""File in the folder of a run of a detector: boxes in the test images, in the results format of COCO."""

UNKNOWN = -1
"""Target of an image of no known class, and prediction of one that is rejected."""

ARRAY_NAMES = ("logits", "target", "train_counts", "title", "ids", "classes", "thresholds")


class DamagedPredictionsError(ValueError):
    """A file that is not of this format, or whose arrays do not fit together; the message begins with its path."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of test samples, their classes, and the training samples per class.

    Attributes:
        logits: (N, C), finite.
        target: (N,), class indices, -1 for images of no known class.
        train_counts: training samples per class, (C,).
        title: title of the run, for tables and pictures.
        ids: (N,), paths of images, or positions in the source, counted from 0; empty if not known.
        classes: names of the classes; empty if not known.
        thresholds: of two classes, probabilities of the rarer one that were chosen on validation data, in [0, 1], by
            measure of :data:`~cyclofocal.lab.metrics.THRESHOLDS`; empty if not known.

    Raises:
        ValueError: shapes, types or values that do not fit.
    """

    logits: Array
    target: LabelArray
    train_counts: NDArray[np.integer]
    title: str = ""
    ids: NDArray[Any] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    classes: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind, dimensions in (("logits", "f", 2), ("target", "iu", 1), ("train_counts", "iu", 1)):
            array = getattr(self, name)
            if array.dtype.kind not in kind or array.ndim != dimensions:
                wanted = {"f": "floating-point", "iu": "whole"}[kind]
                raise ValueError(
                    f"{name} is {array.dtype} of shape {array.shape}; it must be {wanted} numbers of {dimensions}"
                    " dimension(s)"
                )
        n_images, classes = self.logits.shape
        for name, length, of in (("target", n_images, "images"), ("train_counts", classes, "classes")):
            if len(getattr(self, name)) != length:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; logits have {length} {of}")
        for name, length, of in (("ids", n_images, "images"), ("classes", classes, "classes")):
            if len(getattr(self, name)) not in (0, length):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; logits have {length} {of}")
        if not n_images:
            raise ValueError("logits is empty; it needs at least one image")
        if self.target.min() < UNKNOWN or self.target.max() >= classes:
            raise ValueError(
                f"target is {self.target.min()} to {self.target.max()}; it must be 0 to {classes - 1}, or -1 for images"
                " of no known class"
            )
        if self.thresholds and (classes != 2 or not all(0 <= number <= 1 for number in self.thresholds.values())):
            raise ValueError(
                f"thresholds are {self.thresholds} for {classes} classes; they must be in [0, 1], and of two classes"
            )
        if not np.isfinite(self.logits).all():
            raise ValueError("logits hold a value that is not finite: the model has diverged")

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which images are of a known class, (N,)."""
        return self.target != UNKNOWN


def sample_ids(samples: Samples) -> NDArray[Any]:
    """Paths of images that are read one by one; positions in the source of others, counted from 0."""
    if samples.reader is None:
        return samples.positions
    return np.array([samples.name(index) for index in range(len(samples))], dtype=np.str_)


def write(predictions: Predictions, path: Path) -> None:
    """Write a compressed ``.npz`` of the fields of :class:`Predictions`, atomically.

    Raises:
        ValueError: ``path`` does not end in ``.npz``.
    """
    if path.suffix != ".npz":
        raise ValueError(f"path is {path}; it must end in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        logits=predictions.logits,
        target=predictions.target,
        train_counts=predictions.train_counts,
        title=np.array(predictions.title),
        ids=predictions.ids,
        classes=np.array(predictions.classes, dtype=np.str_),
        thresholds=np.array([predictions.thresholds[name] for name in THRESHOLDS if predictions.thresholds]),
    )
    write_atomically(path, content.getbuffer())


def read(path: Path) -> Predictions:
    """Predictions of a file of :func:`write` or of numpy; the last four of :data:`ARRAY_NAMES` may be absent.

    Raises:
        FileNotFoundError: no such file.
        DamagedPredictionsError: another format, an array that is missing, or arrays that do not fit.
    """
    try:
        with path.open("rb") as content:
            if not zipfile.is_zipfile(content):
                raise zipfile.BadZipFile("no zip archive, or cut off")
            content.seek(0)
            with np.load(content, allow_pickle=False) as file:
                found = {name: file[name] for name in ARRAY_NAMES if name in file}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        said = "an array holds Python objects" if "allow_pickle" in str(error) else error
        raise DamagedPredictionsError(
            f"{path}: not an .npz file of arrays, or damaged ({said}); give one that a run or numpy.savez wrote"
        ) from error
    missing = [name for name in ARRAY_NAMES[:3] if name not in found]
    if missing:
        raise DamagedPredictionsError(f"{path}: no {' and no '.join(missing)} in it")
    try:
        texts = {"title": str(found.get("title", path.stem)) or path.stem, "classes": _texts(found.get("classes"))}
        return Predictions(**{**found, **texts, "thresholds": _by_measure(found.get("thresholds"))})
    except ValueError as error:
        raise DamagedPredictionsError(f"{path}: {error}") from None


def _by_measure(thresholds: NDArray[Any] | None) -> dict[str, float]:
    """Thresholds by measure, in the order of their array."""
    if thresholds is None or not thresholds.size:
        return {}
    if thresholds.dtype.kind != "f" or thresholds.shape != (len(THRESHOLDS),):
        raise ValueError(
            f"thresholds is {thresholds.dtype} of shape {thresholds.shape}; it must be {len(THRESHOLDS)} floating-point"
            f" numbers: of {', '.join(THRESHOLDS)}"
        )
    return dict(zip(THRESHOLDS, thresholds.tolist(), strict=True))


def _texts(names: NDArray[Any] | None) -> tuple[str, ...]:
    return () if names is None else tuple(map(str, names.tolist()))
