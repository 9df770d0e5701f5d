"""The one training loop: a job in, a record out."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import DataSet, Labels, Samples
from cyclofocal.lab.data.load import load, load_table, table_digest
from cyclofocal.lab.longtail import rarer_class
from cyclofocal.lab.messages import preview
from cyclofocal.lab.metrics import (
    Array,
    LabelArray,
    compute_metrics,
    default_metric,
    log_softmax,
    metrics_with,
    recall_per_class,
    reliability,
    two_class_auroc,
)
from cyclofocal.lab.recipes.loss import COSINE_SCALE
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.settings import AnyRecipe
from cyclofocal.lab.records import CONFUSION_CLASSES, VALIDATION_LOSS, RunRecord, best_epoch, has_stopped, system
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.accelerator import from_main, start_accelerator
from cyclofocal.lab.training.batches import build_loader, check_last_batch, epoch_batches
from cyclofocal.lab.training.early_stopping import build_measure, check_early_stopping
from cyclofocal.lab.training.epoch import TrainContext, run_epoch
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.mixup import build_mixer
from cyclofocal.lab.training.models import check_model
from cyclofocal.lab.training.post_hoc import PostHoc, choose_post_hoc, without_prior
from cyclofocal.lab.training.predict import predict
from cyclofocal.lab.training.predictions import PREDICTIONS, Predictions, sample_ids, write
from cyclofocal.lab.training.progress import RunProgress
from cyclofocal.lab.training.run_folder import (
    DamagedRunError,
    Row,
    RunFolder,
    RunMismatchError,
    refuse_obstacle,
    stored_record,
)
from cyclofocal.lab.training.sampler import class_aware_batches
from cyclofocal.lab.training.saved_model import MODEL_FILES, check_can_be_saved, save_model
from cyclofocal.lab.training.schedule import never_focal
from cyclofocal.lab.training.train_state import TrainState, build_state, initial_model, try_custom_loss

if TYPE_CHECKING:
    from accelerate import Accelerator


RESUMED = ("rows", "seconds", "data", "model", "optimizer", "criterion", "average")
"""Names in a checkpoint that a run is resumed from; with early stopping also "best"."""

DECLARED_AT_START = ("command", "primary_metric", "margin")
"""Fields of a record that were declared when its run was first started."""

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
        load: reads the data of a recipe below a folder, for a seed.
        build: makes the state at its beginning.
        batches: gives the indices of every batch of an epoch, in all processes together.
        evaluate: predicts the test set; gives its logits and metrics, and writes the task's files.
        begin: called once, before the first epoch.
        fit: trains; None is :func:`fit`, epoch by epoch.
        keeps_weights: the last checkpoint is stored for good, whatever the job's options, for a later stage needs it.
    """

    load: Callable[[Recipe, Path, int], DataSet]
    build: Callable[[Job, DataSet, "Accelerator"], TrainState]
    batches: Callable[[Job, DataSet, int], tuple[Tensor, ...]]
    evaluate: Callable[[Training], tuple[Array, Metrics]]
    begin: Callable[[Training], None] = lambda training: None
    fit: Callable[[Training], None] | None = None
    keeps_weights: bool = False


def train(job: Job, task: Task | None = None) -> RunRecord:
    """Train one model and evaluate it once, on the test set, after the last epoch.

    Split, initialisation, data order and augmentation follow from the seed alone, so the runs of two losses at one
    seed are a pair. With a folder the run is stored after every epoch, resumes where it was stopped, ends as if it
    had not been (bit for bit on a CPU), and is not run again once it has ended. The folder is not locked here; see
    :func:`cyclofocal.lab.compare.grid.run_job`.

    Args:
        job: what to train, where and how.
        task: None is plain training, of images or a table.

    Raises:
        FloatingPointError: the loss, or a logit of the validation set, is no longer finite; says where.
        RunMismatchError: the folder holds another run, or its record or checkpoint.
        DamagedRunError: a file in the folder cannot be used.
        MissingDataError, DamagedDataError, ValueError: before the first step.
    """
    started, task = time.perf_counter(), task or PLAIN
    check_model(job.recipe)
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
        results = evaluate_run(training) if job.evaluates else {"metrics": {}} | _chosen(training)
    return finish_run(training, results)


def check_every_class_is_tested(data: DataSet) -> None:
    """Refuse before training what could not be evaluated after it.

    Raises:
        ValueError: a class without a test image.
    """
    absent = sorted(set(range(len(data.classes))) - set(data.test.labels.tolist()))
    if absent:
        names = preview([f"{c} ({data.classes[c]})" for c in absent])
        raise ValueError(
            f"{data.test.title}: {len(absent)} of {len(data.classes)} classes have no test image, so their accuracy is"
            f" undefined: {names}"
        )


def finish_run(training: Training, results: dict[str, Any]) -> RunRecord:
    """Make the record of a finished run and write it where the run has a folder.

    Args:
        training: after its last epoch.
        results: fields of the record about the test set; see :func:`evaluate_run`.
    """
    job, data, rows, accelerator = training.job, training.data, training.rows, training.state.accelerator
    record = RunRecord(
        **{name: value for name, value in job.identity.items() if name not in ("test", "all_data")},
        device=_device_name(accelerator.device),
        train_counts=list(data.counts),
        epochs=[{name: value for name, value in row.items() if name != "seconds"} for row in rows],
        seconds=round(training.seconds, 3),
        data=data.title,
        weights=_evaluated_weights(training),
        epoch_seconds=[row["seconds"] for row in rows],
        processes=accelerator.num_processes,
        threads=torch.get_num_threads(),
        command=job.options.command,
        primary_metric=job.options.primary_metric or default_metric([len(data.classes)]),
        margin=job.options.margin,
        classes=list(data.classes),
        validation_samples=0 if data.validation is None else len(data.validation),
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
    chosen["positive"] = rarer_class(data.counts)
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
    device, workers = state.accelerator.device, options.workers
    loader = build_loader(data.train, recipe, device, workers, training=True, every_epoch=True)
    validate = _validator(training)
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


def load_data(recipe: Recipe, root: Path, seed: int) -> DataSet:
    """The recipe's data set."""
    return load(recipe.data, root, seed)


def with_data_digest(recipe: AnyRecipe, root: Path) -> tuple[AnyRecipe, DataSet]:
    """Fix a recipe to the present content of its data by a digest; the recipe and the data.

    Raises:
        MissingDataError, DamagedDataError, ValueError: they cannot be used.
    """
    data = load_data(recipe, root, 0)
    if not isinstance(recipe.data, TableData):
        return recipe.with_data(digest=data.digest_with_test), data
    changes = load_table(recipe.data).changes
    return recipe.with_data(digest=table_digest(recipe.data.source, changes)), data


def _open_folder(job: Job, task: Task, accelerator: "Accelerator") -> RunFolder | None:
    """Open the folder of a job, after checking the paths of its files."""
    if job.folder is None:
        return None
    last = job.recipe.total_epochs - 1 if task.keeps_weights else None
    folder = RunFolder(job.folder, job.identity, accelerator.is_main_process, job.options.checkpoint_seconds, last)
    for name in (PREDICTIONS, *MODEL_FILES):
        refuse_obstacle(job.folder / name)
    return folder


def _load(recipe: Recipe, root: Path, seed: int) -> DataSet:
    return load_data(recipe, root, seed)


def _load_all(job: Job) -> DataSet:
    """The data set with its test samples among the training samples."""
    return load(job.recipe.data, job.options.root, job.seed, test_too=True)


def _build(job: Job, data: DataSet, accelerator: "Accelerator") -> TrainState:
    scale = COSINE_SCALE if job.loss.max_margin else 0.0
    model = initial_model(job.recipe, len(data.classes), job.seed, data.train.n_features, scale)
    return build_state(job, model, accelerator, data.counts)


def _batches(job: Job, data: DataSet, epoch: int) -> tuple[Tensor, ...]:
    if job.loss.sampler:
        return class_aware_batches(data.train.labels, job.seed, epoch, job.recipe.batch_size, per_class=1)
    return epoch_batches(job.seed, epoch, len(data.train), job.recipe.batch_size)


def _evaluate(training: Training) -> tuple[Array, Metrics]:
    job, data = training.job, training.data
    found = predictions_of(training, data.test)
    write_predictions(training, found)
    return found.logits, compute_metrics(found.logits, data.test.labels, data.counts, job.recipe.groups)


def predictions_of(training: Training, *splits: Samples) -> Predictions:
    """Logits of all samples of the splits."""
    job, data, accelerator = training.job, training.data, training.state.accelerator

    def logits_of(samples: Samples) -> Array:
        loader = build_loader(samples, job.recipe, accelerator.device, job.options.workers)
        return predict(training.state.eval_model, loader, len(samples), job.recipe.batch_size, accelerator).numpy()

    return Predictions(
        np.concatenate([logits_of(split) for split in splits]),
        np.concatenate([split.labels for split in splits]),
        np.array(data.counts),
        job.loss.title,
        np.concatenate([sample_ids(split) for split in splits]),
        data.classes,
        {} if training.chosen is None else training.chosen.thresholds,
    )


def write_predictions(training: Training, predictions: Predictions) -> None:
    """Write predictions into the folder of the run."""
    if training.folder and training.state.accelerator.is_main_process:
        write(predictions, training.folder.folder / PREDICTIONS)


PLAIN = Task(_load, _build, _batches, _evaluate)
"""Training on images or a table, with the loss of the logits alone."""


def _warn_never_focal(job: Job, steps: int, main: bool) -> None:
    """Warn of a cyclical loss whose focal phase is never met, unless a command has done so before."""
    said = never_focal(job.recipe, job.loss, steps)
    if said and main and (job.recipe.clock == "step" or not job.options.command):
        print(said, file=sys.stderr)


def _validator(training: Training) -> Callable[[int], dict[str, float | None]]:
    """Make a function that measures the validation set after an epoch; empty where there is no such set."""
    job, state, split = training.job, training.state, training.data.validation
    if split is None:
        return lambda epoch: {}
    loader = build_loader(split, job.recipe, state.accelerator.device, job.options.workers, every_epoch=True)
    measure = build_measure(job, training.data.counts, torch.from_numpy(split.labels))

    def validate(epoch: int) -> dict[str, float | None]:
        logits = predict(state.eval_model, loader, len(split), job.recipe.batch_size, state.accelerator)
        where = f"{job.loss.title}, seed {job.seed}, epoch {epoch}"
        return _validated(logits, split.labels, where) | measure(logits, where)

    return validate


def evaluate_run(training: Training) -> dict[str, Any]:
    """Evaluate the test set; the fields of the record about it.

    Validation data choose a temperature, the strength of an adjustment by the class prior, and thresholds, with which
    the same logits are evaluated again.
    """
    data, groups = training.data, training.job.recipe.groups
    training.chosen = chosen = _post_hoc(training)
    logits, metrics = training.task.evaluate(training)
    target = data.test.labels
    tuned = metrics_with(logits, target, chosen.positive, chosen.temperature, chosen.thresholds)
    return {
        "metrics": metrics | tuned,
        **_fields(chosen),
        "adjusted": compute_metrics(without_prior(logits, data.counts, chosen.tau), target, data.counts, groups),
        **_details(logits, target, len(data.classes)),
    }


def _chosen(training: Training) -> dict[str, Any]:
    """Fields of a record about choices on validation data; none where the model is not for use."""
    return _fields(_post_hoc(training)) if training.job.all_data else {}


def _post_hoc(training: Training) -> PostHoc:
    chosen = choose_post_hoc(*_validation_logits(training), training.data.counts)
    return (
        chosen._replace(tau=0.0) if training.job.loss.sampler else chosen
    )  # balanced batches leave no prior to adjust


def _fields(chosen: PostHoc) -> dict[str, Any]:
    return {name: getattr(chosen, name) for name in ("tau", "temperature", "threshold", "thresholds")}


def _validation_logits(training: Training) -> tuple[Array | None, Labels]:
    """Logits and labels of the validation set; None and no labels without one."""
    job, state, split = training.job, training.state, training.data.validation
    if split is None:
        return None, np.zeros(0, dtype=np.int64)
    loader = build_loader(split, job.recipe, state.accelerator.device, job.options.workers, every_epoch=True)
    logits = predict(state.eval_model, loader, len(split), job.recipe.batch_size, state.accelerator)
    return logits.numpy(), split.labels


def _details(logits: Array, target: Labels, classes: int) -> dict[str, Any]:
    """Fields of a record about each class and each bin of confidence."""
    p, predicted = np.exp(log_softmax(logits.astype(np.float64))), logits.argmax(1)
    return {
        "per_class": recall_per_class(predicted, target, classes).round(6).tolist(),
        "reliability": reliability(p, target).round(6).tolist(),
        "test_counts": np.bincount(target, minlength=classes).tolist(),
        "confusion": _confusion(predicted, target, classes) if classes <= CONFUSION_CLASSES else [],
    }


def _confusion(predicted: LabelArray, target: Labels, classes: int) -> list[list[int]]:
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(target, predicted, labels=range(classes)).tolist()


def _validated(logits: Tensor, target: Labels, where: str) -> dict[str, float | None]:
    if not logits.isfinite().all():
        raise FloatingPointError(f"{where}: a logit of the validation set is not finite; the model has diverged")
    labels = torch.from_numpy(target)
    right = (logits.argmax(1) == labels).double()
    present = labels.bincount()
    recall = labels.bincount(weights=right)[present > 0] / present[present > 0]
    auroc = {"validation_auroc": two_class_auroc(logits.numpy(), target)} if logits.shape[1] == 2 else {}
    return auroc | {
        "validation_accuracy": right.mean().item(),
        "validation_balanced_accuracy": recall.mean().item(),
        "validation_nll": F.cross_entropy(logits.double(), labels).item(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
