"""The one training loop: a job and its task in, a record out."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.data.load import load
from cyclofocal.lab.longtail import rarer_class
from cyclofocal.lab.messages import preview
from cyclofocal.lab.metrics import (
    default_metric,
)
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import VALIDATION_LOSS, RunRecord, best_epoch, has_stopped, system
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.accelerator import from_main, start_accelerator
from cyclofocal.lab.training.batches import BatchLoader, check_last_batch
from cyclofocal.lab.training.early_stopping import check_early_stopping
from cyclofocal.lab.training.epoch import TrainContext, run_epoch
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.mixup import build_mixer
from cyclofocal.lab.training.post_hoc import PostHoc
from cyclofocal.lab.training.predictions import PREDICTIONS
from cyclofocal.lab.training.progress import RunProgress
from cyclofocal.lab.training.run_folder import (
    DamagedRunError,
    Row,
    RunFolder,
    RunMismatchError,
    refuse_obstacle,
    stored_record,
)
from cyclofocal.lab.training.saved_model import MODEL_FILES, check_can_be_saved, save_model
from cyclofocal.lab.training.schedule import never_focal
from cyclofocal.lab.training.train_state import TrainState, try_custom_loss

if TYPE_CHECKING:
    from accelerate import Accelerator


RESUMED = ("rows", "seconds", "data", "model", "optimizer", "criterion", "average")
"""Names in a checkpoint that a run is resumed from; with early stopping also "best"."""

DECLARED_AT_START = ("command", "primary_metric", "margin")
"""Fields of a record that were declared when its run was first started."""

TIMES = ("seconds", "data_seconds")
"""Times of an epoch, which differ between equal runs; a record has them apart from the other columns of its rows."""

Metrics = dict[str, float | None]


@dataclass
class Training:
    """A run in progress.

    Attributes:
        job: recipe, loss and seed.
        task: how this differs from other trainings.
        data: the three splits.
        state: model, optimizer and loss.
        folder: of the run, or None.
        rows: of the epochs so far.
        previous_seconds: time of the run's earlier parts, if it was stopped and resumed.
        started: ``time.perf_counter()`` at the beginning of this part.
        chosen: choices made on validation data, after the last epoch; None before.
    """

    job: Job
    task: "Task"
    data: DataSet
    state: TrainState
    folder: RunFolder | None
    rows: list[Row]
    previous_seconds: float
    started: float
    chosen: PostHoc | None = None

    @property
    def seconds(self) -> float:
        """Time of the run so far, over all its parts."""
        return self.previous_seconds + time.perf_counter() - self.started


class Task(NamedTuple):
    """The steps in which plain training and the stages of open long-tailed recognition differ.

    Attributes:
        check: refuses a recipe whose model there is not.
        load: reads the data of a recipe below a folder, for a seed.
        build: makes the state at its beginning.
        batches: gives the indices of every batch of an epoch, in all processes together.
        evaluate: gives the fields of the record about the validation and test set, and writes the task's files.
        loader: gives the batches of the training samples.
        validator: gives a function that measures the validation set after an epoch.
        begin: called once, before the first epoch.
        fit: trains; None is :func:`fit`, epoch by epoch.
        keeps_weights: the last checkpoint is stored for good, whatever the job's options, for a later stage needs it.
    """

    check: Callable[[Recipe], None]
    load: Callable[[Recipe, Path, int], DataSet]
    build: Callable[[Job, DataSet, "Accelerator"], TrainState]
    batches: Callable[[Job, DataSet, int], tuple[Tensor, ...]]
    evaluate: Callable[[Training], dict[str, Any]]
    loader: Callable[[Training], BatchLoader]
    validator: Callable[[Training], Callable[[int], Metrics]]
    begin: Callable[[Training], None] = lambda training: None
    fit: Callable[[Training], None] | None = None
    keeps_weights: bool = False


def run_task(job: Job, task: Task) -> RunRecord:
    """Train one model and evaluate it once, on the test set, after the last epoch.

    Split, initialisation, data order and augmentation follow from the seed alone, so the runs of two losses at one
    seed are a pair. With a folder the run is stored after every epoch, resumes where it was stopped, ends as if it
    had not been (bit for bit on a CPU), and is not run again once it has ended. The folder is not locked here; see
    :func:`cyclofocal.lab.compare.grid.run_job`.

    Args:
        job: what to train, where and how.
        task: kind of training.

    Raises:
        FloatingPointError: the loss, or a logit of the validation set, is no longer finite; says where.
        RunMismatchError: the folder holds another run, or its record or checkpoint.
        DamagedRunError: a file in the folder cannot be used.
        MissingDataError, DamagedDataError, ValueError: before the first step.
    """
    started = time.perf_counter()
    task.check(job.recipe)
    accelerator = start_accelerator(job.recipe, job.options, job.folder)
    folder = _open_folder(job, task, accelerator)
    if done := from_main(job.stored()[0] if accelerator.is_main_process else None):
        return done
    with rng.preserve_rng_state():
        data = _load_all(job) if job.all_data else task.load(job.recipe, job.options.root, job.seed)
        check_last_batch(len(data.train), job.recipe.batch_size, accelerator.num_processes)
        check_early_stopping(job.recipe, data)
        if job.evaluates:
            check_every_class_is_tested(data)
        if job.keeps_model:
            check_can_be_saved(data)
        try_custom_loss(job.recipe, job.loss, data.counts)
        state = task.build(job, data, accelerator)
        rows, previous_seconds = resume(state, folder, data, job.recipe) if folder else ([], 0.0)
        training = Training(job, task, data, state, folder, rows, previous_seconds, started)
        if not rows:
            task.begin(training)
        (task.fit or fit)(training)
        results = task.evaluate(training)
    return finish_run(training, results)


def check_every_class_is_tested(data: DataSet) -> None:
    """Refuse before training what could not be evaluated after it.

    Raises:
        ValueError: a class without a test image.
    """
    absent = [c for c, count in enumerate(data.test.class_counts(len(data.classes))) if not count]
    if absent:
        what = "image" if data.test.boxes is None else "box"
        names = preview([f"{c} ({data.classes[c]})" for c in absent])
        raise ValueError(
            f"{data.test.title}: {len(absent)} of {len(data.classes)} classes have no test {what}, so their accuracy is"
            f" undefined: {names}"
        )


def finish_run(training: Training, results: dict[str, Any]) -> RunRecord:
    """Make the record of a finished run and write it where the run has a folder.

    Args:
        training: after its last epoch.
        results: fields of the record about the validation and test set.
    """
    job, data, rows, accelerator = training.job, training.data, training.rows, training.state.accelerator
    record = RunRecord(
        **{name: value for name, value in job.identity.items() if name not in ("test", "all_data")},
        device=_device_name(accelerator.device),
        train_counts=list(data.counts),
        epochs=[{name: value for name, value in row.items() if name not in TIMES} for row in rows],
        seconds=round(training.seconds, 3),
        data=data.title,
        weights=_evaluated_weights(training),
        epoch_seconds=[row["seconds"] for row in rows],
        data_seconds=[row.get("data_seconds", 0.0) for row in rows],
        processes=accelerator.num_processes,
        threads=torch.get_num_threads(),
        command=job.options.command,
        primary_metric=job.options.primary_metric or default_metric([len(data.classes)], data.train.boxes is not None),
        margin=job.options.margin,
        classes=list(data.classes),
        validation_samples=0 if data.validation is None else sum(data.validation.class_counts(len(data.classes))),
        system=system(),
        columns=data.columns,
        **results,
    )
    if training.folder and accelerator.is_main_process:
        if job.keeps_model:
            _save_model(training, record)
        training.folder.finish(_as_declared(record, training.folder))
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    return record


def _evaluated_weights(training: Training) -> str:
    state = training.state
    if training.job.loss.estimator:
        return ""
    if state.best:
        return "best epoch" if state.ema is None else "best epoch of the moving average"
    return "last epoch" if state.ema is None else "moving average"


def _save_model(training: Training, record: RunRecord) -> None:
    job, data = training.job, training.data
    assert job.folder is not None
    chosen = {name: getattr(record, name) for name in ("tau", "temperature", "threshold")}
    chosen |= {"tau": record.tau or 0.0, "positive": rarer_class(data.counts)}
    save_model(job.folder, training.state.eval_model, data, job.recipe, job.identity, chosen)


def _as_declared(record: RunRecord, folder: RunFolder) -> RunRecord:
    """The record with the declarations of an earlier one, of a run that is repeated for its model alone."""
    earlier, _ = stored_record(folder.record_path)
    if earlier is None:
        return record
    return replace(record, **{name: getattr(earlier, name) for name in DECLARED_AT_START})


def fit(training: Training) -> None:
    """Train for all epochs of the recipe that have no row yet, and append theirs.

    With early stopping it may end before, with the weights of the best epoch.
    """
    job, state, data, rows = training.job, training.state, training.data, training.rows
    recipe, options, main = job.recipe, job.options, state.accelerator.is_main_process
    loader, validate = training.task.loader(training), training.task.validator(training)
    batches = partial(training.task.batches, job, data)
    context = TrainContext(job, data.train, loader, build_mixer(recipe, len(data.classes)), batches)
    steps = len(batches(0))
    _warn_never_focal(job, steps, main)
    with RunProgress(
        f"{recipe.name} {job.loss.name} seed {job.seed}",
        recipe.total_epochs * steps,
        len(rows) * steps,
        options.progress and main,
    ) as bar:
        for epoch in range(len(rows), recipe.total_epochs):
            if has_stopped(rows, recipe.early_stopping):
                break
            row = run_epoch(state, context, epoch, bar) | validate(epoch)
            rows.append(row)
            if VALIDATION_LOSS in row and best_epoch(rows) == epoch:
                state.keep_best()
            state.accelerator.log({name: value for name, value in row.items() if value is not None}, step=epoch)
            if training.folder and main:
                content = {"rows": rows, "seconds": training.seconds, "data": data.digest, **state.state_dict()}
                training.folder.save_epoch(epoch, content)
            bar.epoch(row, recipe.total_epochs)
    state.restore_best()


def resume(state: TrainState, run: RunFolder, data: DataSet, recipe: Recipe) -> tuple[list[Row], float]:
    """Load the latest checkpoint into the state; its rows, and the seconds the run has taken so far.

    Raises:
        RunMismatchError: the run began on other data.
        DamagedRunError: the checkpoint is of another model.
    """
    content = None
    if state.accelerator.is_main_process:
        content, damaged = run.resume((*RESUMED, "best") if recipe.early_stopping else RESUMED)
        instead = "the one before is used" if content else "the run starts from its first epoch"
        for error in damaged:
            print(f"damaged checkpoint, {instead}: {error}", file=sys.stderr)
    content = from_main(content)
    if content is None:
        return [], 0.0
    if content["data"] != data.digest:
        raise RunMismatchError(
            f"{run.folder}: this run began on other data: the labels or names of {data.title} have changed since;"
            " remove the folder to start again"
        )
    try:
        state.load_state_dict(content)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise DamagedRunError(
            f"{run.folder}: its newest checkpoint is of another model or optimiser ({said}); move it out of the folder,"
            " and run the same command again"
        ) from None
    return content["rows"], content["seconds"]


def _open_folder(job: Job, task: Task, accelerator: "Accelerator") -> RunFolder | None:
    """Open the folder of a job, after checking the paths of its files."""
    if job.folder is None:
        return None
    last = job.recipe.total_epochs - 1 if task.keeps_weights else None
    folder = RunFolder(job.folder, job.identity, accelerator.is_main_process, job.options.checkpoint_seconds, last)
    for name in (PREDICTIONS, *MODEL_FILES):
        refuse_obstacle(job.folder / name)
    return folder


def _load_all(job: Job) -> DataSet:
    """The data set with its test samples among the training samples."""
    return load(job.recipe.data, job.options.root, job.seed, test_too=True)


def _warn_never_focal(job: Job, steps: int, main: bool) -> None:
    """Warn of a cyclical loss whose focal phase is never met, unless a command has done so before."""
    said = never_focal(job.recipe, job.loss, steps)
    if said and main and (job.recipe.clock == "step" or not job.options.command):
        print(said, file=sys.stderr)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
