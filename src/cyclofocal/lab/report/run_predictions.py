"""Find and read the predictions of the runs of an experiment, only when a page needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.report.experiment import Experiment, fold_of
from cyclofocal.lab.report.load import RECORD_OF_A_RUN, StoredRuns
from cyclofocal.lab.training.predictions import PREDICTIONS, DamagedPredictionsError, Predictions, read

MAX_BYTES = 64_000_000
"""Largest size of the files of predictions that are read for one experiment; further seeds are not read."""

RECORDS_ONLY = (
    f"they need the predictions of the runs ({PREDICTIONS}), which records do not hold: report the folder of the runs"
)

Cell = tuple[int, int]
"""Seed and fold."""


@dataclass(frozen=True)
class ExperimentPredictions:
    """Predictions of the runs of an experiment.

    Attributes:
        runs: predictions by loss, of the same seeds and folds in the same order; without samples of no known class.
        cells: these seeds and folds.
        missing: why ``runs`` is empty, as the end of a sentence; "" if it is not.
        notes: sentences about losses and seeds that are not among them.
    """

    runs: dict[str, list[Predictions]]
    cells: tuple[Cell, ...] = ()
    missing: str = ""
    notes: tuple[str, ...] = ()


class PredictionFiles:
    """Files of predictions next to stored records.

    Args:
        stored: records and their files, of which those of run folders may have predictions.
    """

    def __init__(self, stored: StoredRuns) -> None:
        found = zip(stored.records, stored.files, strict=True)
        self._folders = [(record, file.parent) for record, file in found if file.name == RECORD_OF_A_RUN]
        self._by_run: dict[str, Path] = {}

    def of(self, record: RunRecord, name: str = PREDICTIONS) -> Path | None:
        """File of the predictions of a run, or another file of its folder; None if there is none."""
        if self._folders and not self._by_run:
            self._by_run = {_key(known): folder for known, folder in reversed(self._folders)}
        folder = self._by_run.get(_key(record)) if self._by_run else None
        return folder / name if folder and (folder / name).is_file() else None


def _key(record: RunRecord) -> str:
    """Hash of the settings of a run, but for the name of its loss, which a report may change."""
    loss = {name: value for name, value in record.loss.items() if name not in ("name", "title")}
    return content_hash([record.recipe, loss, record.seed, record.versions])


def read_predictions(experiment: Experiment, files: PredictionFiles | None) -> ExperimentPredictions:
    """Read the predictions of the seeds and folds that all losses with predictions share, up to :data:`MAX_BYTES`.

    A file that is damaged or does not agree with its record is left out.
    """
    paths: dict[str, dict[Cell, tuple[RunRecord, Path]]] = {}
    for name, members in experiment.runs.items() if files else ():
        for run in members:
            if files and (path := files.of(run)):
                paths.setdefault(name, {})[run.seed, fold_of(run)] = run, path
    if not paths:
        return ExperimentPredictions({}, missing=RECORDS_ONLY)
    shared = sorted(set.intersection(*map(set, paths.values())))
    cells = _within_limit(shared, paths)
    if not cells:
        why = f"the predictions of one seed have more than {MAX_BYTES // 1_000_000} MB" if shared else "no seed has all"
        return ExperimentPredictions({}, missing=f"{why}, so they were not read")
    notes, found = [], dict[str, list[Predictions]]()
    for name, of_loss in paths.items():
        try:
            found[name] = [_checked(*of_loss[cell]) for cell in cells]
        except (OSError, DamagedPredictionsError) as error:
            notes.append(f"{experiment.titles[name]} is left out: {error}.")
    without = [experiment.titles[name] for name in experiment.runs if name not in paths]
    notes += [f"No predictions of {', '.join(without)}."] * bool(without)
    seeds, of = len({seed for seed, _ in cells}), len({run.seed for runs in experiment.runs.values() for run in runs})
    notes += [f"Predictions of {seeds} of {of} seeds are used."] * (seeds < of)
    if not found:
        return ExperimentPredictions({}, missing="the predictions cannot be used", notes=tuple(notes))
    return ExperimentPredictions(found, tuple(cells), notes=tuple(notes))


def _within_limit(cells: Sequence[Cell], paths: dict[str, dict[Cell, tuple[RunRecord, Path]]]) -> list[Cell]:
    """The first cells, as many as the limit allows."""
    sizes = [sum(of_loss[cell][1].stat().st_size for of_loss in paths.values()) for cell in cells]
    return [cell for cell, size in zip(cells, np.cumsum(sizes), strict=True) if size <= MAX_BYTES]


def _checked(record: RunRecord, path: Path) -> Predictions:
    """Predictions of known classes, which must be those that the record was made of."""
    found = read(path)
    known = found.known
    logits, target = found.logits[known], found.target[known]
    accuracy = float((logits.argmax(1) == target).mean()) if len(target) else None
    recorded = record.metrics.get("accuracy")
    if logits.shape[1] != len(record.train_counts) or accuracy is None or recorded is None:
        raise DamagedPredictionsError(f"{path} does not fit the record next to it")
    if abs(accuracy - recorded) > 1e-6:
        raise DamagedPredictionsError(
            f"{path} has an accuracy of {100 * accuracy:.2f} %, the record next to it {100 * recorded:.2f} %"
        )
    ids = found.ids[known] if len(found.ids) else found.ids
    return Predictions(logits, target, found.train_counts, found.title, ids, found.classes)
