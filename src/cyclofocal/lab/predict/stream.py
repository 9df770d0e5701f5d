"""Predict new data a chunk at a time, and write a CSV file."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from cyclofocal.lab.data.check import check_images
from cyclofocal.lab.messages import LISTED_IMAGES, UnreadableImageError, preview
from cyclofocal.lab.metrics import LabelArray
from cyclofocal.lab.predict.images import find_images
from cyclofocal.lab.predict.model import TrainedModel, new_images
from cyclofocal.lab.predict.rows import check_names, labels_of, names_of_columns, prepare, read_chunks
from cyclofocal.lab.records import atomic_file

CHUNK_ROWS = 50_000
"""Number of rows of a table that are in memory at a time."""

CHECKING_THREADS = 8
"""Number of threads that look for all unreadable images once there is one."""

BATCH_ROWS = 4096
"""Number of rows of a table that are computed at once; small batches would take most of the time."""


class Output(NamedTuple):
    """Contents of the file of predictions.

    Attributes:
        calibrated, balanced: see :meth:`~cyclofocal.lab.predict.model.TrainedModel.probabilities`.
        threshold: predict by a threshold, a probability in [0, 1] or "stored"; see
            :meth:`~cyclofocal.lab.predict.model.TrainedModel.at_threshold`.
        top: write the probability of the predicted class alone, and not that of every class.
        id_column: column of a table to copy; "" for none.
    """

    calibrated: bool = False
    balanced: bool = False
    threshold: float | Literal["stored"] | None = None
    top: bool = False
    id_column: str = ""


@dataclass
class PredictionSummary:
    """Result of predicting.

    Attributes:
        samples: number of rows or images.
        labelled, predicted, right: of those whose class is known, the number that are, that are predicted as, and that
            are predicted rightly as each class; (C,).
        threshold: probability from which the rarer of two classes was predicted; None without one.
        unused: columns of the table that the model was not trained on.
        unknown: by column, texts that did not occur in training.
        missing: by column, number of missing values where training had none.
    """

    labelled: LabelArray
    predicted: LabelArray
    right: LabelArray
    threshold: float | None = None
    samples: int = 0
    unused: list[str] = field(default_factory=list)
    unknown: dict[str, set[str]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)


class Chunk(NamedTuple):
    """Samples with their logits: columns that identify them by name, and their classes, -1 if not known."""

    ids: dict[str, Sequence[object]]
    logits: NDArray[np.float32]
    labels: LabelArray


def predict_file(
    model: TrainedModel, sources: Sequence[Path], path: Path, output: Output | None = None, workers: int = 0
) -> PredictionSummary:
    """Predict images or the rows of a table, and write the predictions at once or not at all.

    Args:
        model: trained model.
        sources: one table, or images as :func:`~cyclofocal.lab.predict.images.find_images` finds them.
        path: CSV file to write: ``row`` (counted from 0) or ``path``, ``class``, and the probabilities.
        output: its contents.
        workers: number of processes that read images.

    Raises:
        MissingDataError, DamagedDataError: a source is missing or damaged.
        ValueError: columns or classes that do not fit; names them. Nothing is written.
    """
    output = output or Output()
    model.check_adjustment(output.calibrated, output.balanced)
    if output.threshold is not None and (output.calibrated or output.balanced):
        raise ValueError("the threshold is for probabilities that are neither calibrated nor balanced")
    threshold = model.description.threshold if output.threshold == "stored" else output.threshold
    zeros = np.zeros((3, len(model.classes)), dtype=np.int64)
    summary = PredictionSummary(zeros[0], zeros[1], zeros[2], threshold)
    with atomic_file(path) as file:
        for chunk in _chunks(model, sources, output, workers, summary):
            file.write(_lines(model, chunk, output, summary).encode())
    return summary


def _chunks(
    model: TrainedModel, sources: Sequence[Path], output: Output, workers: int, summary: PredictionSummary
) -> Iterator[Chunk]:
    if model.encoder is None:
        if output.id_column:
            raise ValueError(f"id column is {output.id_column!r}, but the model was trained on images, not on a table")
        return _image_chunks(model, sources, workers)
    if len(sources) != 1:
        raise ValueError(f"there are {len(sources)} files; a model of a table takes one table")
    return _table_chunks(model, sources[0], output.id_column, summary)


def _image_chunks(model: TrainedModel, sources: Sequence[Path], workers: int) -> Iterator[Chunk]:
    found, first = find_images(sources, model.classes), 0
    try:
        for inputs in model.image_batches(found.paths, workers):
            part = slice(first, first + len(inputs))
            yield Chunk({"path": found.paths[part]}, model.batch_logits(inputs), np.array(found.labels[part]))
            first += len(inputs)
    except UnreadableImageError as error:
        report = check_images(new_images(found.paths[first:]), CHECKING_THREADS)
        faults = (*report.missing, *report.unreadable)
        raise type(error)(f"{len(faults)} of {len(found.paths)} images: {preview(faults, LISTED_IMAGES)}") from None


def _table_chunks(model: TrainedModel, path: Path, id_column: str, summary: PredictionSummary) -> Iterator[Chunk]:
    encoder = model.encoder
    assert encoder is not None
    names = names_of_columns(path, encoder)
    summary.unused = [name for name in check_names(names, encoder, str(path)) if name != id_column]
    if id_column and id_column not in names:
        raise ValueError(f"{path}: id column is {id_column!r}; it must be one of {preview(names)}")
    further = [name for name in (id_column, encoder.target) if name in names]
    for frame in read_chunks(path, encoder, CHUNK_ROWS, further):
        features = prepare(frame, encoder, str(path), int(frame.index[0]))
        for name, texts in encoder.unknown(features).items():
            summary.unknown.setdefault(name, set()).update(texts)
        summary.missing.update(encoder.newly_missing(features))
        inputs = torch.from_numpy(encoder.transform(features))
        if not inputs.isfinite().all():
            row = frame.index[int((~inputs.isfinite()).any(1).nonzero()[0])]
            raise ValueError(f"{path}: a number in row {row} is too large; use the units of the training table")
        ids = {"row": frame.index.to_numpy()} | ({id_column: frame[id_column].to_numpy()} if id_column else {})
        known = encoder.target in names
        labels = labels_of(frame, encoder, model.classes, str(path)) if known else np.full(len(frame), -1)
        yield Chunk(ids, model.logits(inputs, BATCH_ROWS), labels)


def _lines(model: TrainedModel, chunk: Chunk, output: Output, summary: PredictionSummary) -> str:
    """Lines of a chunk, after the names of the columns if it is the first; the summary counts its samples."""
    from pandas import DataFrame

    p = model.probabilities(chunk.logits, output.calibrated, output.balanced)
    predicted = p.argmax(1) if output.threshold is None else model.at_threshold(chunk.logits, summary.threshold)
    columns: dict[str, object] = {**chunk.ids, "class": model.classes_[predicted]}
    if output.top:
        columns["probability"] = p[np.arange(len(p)), predicted]
    else:
        columns |= {f"p({name})": p[:, c] for c, name in enumerate(model.classes)}
    header, known = not summary.samples, chunk.labels >= 0
    summary.samples += len(p)
    labels, guessed = chunk.labels[known], predicted[known]
    for total, of_classes in (
        (summary.labelled, labels),
        (summary.predicted, guessed),
        (summary.right, labels[labels == guessed]),
    ):
        total += np.bincount(of_classes, minlength=len(total))
    return DataFrame(columns).to_csv(index=False, header=header, float_format="%.6g", lineterminator="\n")
