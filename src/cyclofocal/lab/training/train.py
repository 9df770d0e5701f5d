"""The one training loop: a recipe, a loss and a seed in, a record out."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.lab.data import DataSet, load
from cyclofocal.lab.data.dataset import Labels
from cyclofocal.lab.messages import preview
from cyclofocal.lab.metrics import PRIMARY, Array, compute_metrics, log_softmax, recall_per_class, reliability
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import RunRecord, system
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.batches import check_shares, source
from cyclofocal.lab.training.epoch import Course, run_epoch
from cyclofocal.lab.training.learner import Learner, build_learner, initial_model, try_own_loss
from cyclofocal.lab.training.mixup import build_mixer
from cyclofocal.lab.training.models import check_model
from cyclofocal.lab.training.predict import predict
from cyclofocal.lab.training.progress import Display
from cyclofocal.lab.training.run_folder import DamagedRunError, OtherRunError, Row, Run, identity
from cyclofocal.lab.training.schedule import never_focal

if TYPE_CHECKING:
    from accelerate import Accelerator


RESUMED = ("rows", "seconds", "data", "model", "optimizer", "criterion", "average")
"""Names in a checkpoint that a run is resumed from."""


@dataclass(frozen=True)
class Setup:
    """Where and how a run runs; nothing here changes its numbers but by rounding.

    Attributes:
        root: folder where data sets are looked for.
        folder: of this run; None keeps nothing on disk, so that the run cannot go on after a kill.
        workers: processes that read images, where they do not lie in memory.
        cpu: stay on the CPU.
        progress: show a bar, or lines where there is no terminal.
        trackers: names that Accelerate knows, such as "tensorboard"; they write into ``folder``.
        command: for the record.
        checkpoint_seconds: see :class:`~cyclofocal.lab.training.run_folder.Run`; 0 keeps a checkpoint of every epoch.
        primary_metric: for the record.
    """

    root: Path = Path("data")
    folder: Path | None = None
    workers: int = 0
    cpu: bool = False
    progress: bool = False
    trackers: tuple[str, ...] = ()
    command: str = ""
    checkpoint_seconds: float = 0
    primary_metric: str = PRIMARY


def train(recipe: Recipe, loss: LossSettings, seed: int, setup: Setup | None = None, *, test: bool = True) -> RunRecord:
    """Train one model and evaluate it once, on the test set, after the last epoch.

    Split, initialisation, data order and augmentation follow from the seed alone, so the runs of two losses at one
    seed are a pair. With a folder the run is stored after every epoch, goes on where it was stopped, ends as if it
    had not been (bit for bit on a CPU), and is not run again once it has ended.

    Args:
        recipe, loss, seed: what decides the numbers.
        setup: where and how.
        test: False never touches the test set, as the choice of settings must not; the record's ``metrics``,
            ``per_class`` and ``reliability`` are then empty.

    Raises:
        FloatingPointError: the loss, or a logit of the validation set, is no longer finite; says where.
        OtherRunError: the folder holds another run, or its record or checkpoint.
        DamagedRunError: a file in the folder cannot be used.
        MissingDataError, DamagedDataError, ValueError: before the first step.
    """
    started, setup = time.perf_counter(), setup or Setup()
    check_model(recipe)
    accelerator = start_accelerator(recipe, setup)
    what = identity(recipe, loss, seed)
    run = None
    if setup.folder:
        run = Run(setup.folder, _kind(what, test), accelerator.is_main_process, setup.checkpoint_seconds)
    if run and (done := from_main(accelerator, run.finished() if accelerator.is_main_process else None)):
        return done
    with rng.kept():
        data = load_data(recipe, setup.root, seed)
        check_shares(len(data.train), recipe.batch_size, accelerator.num_processes)
        if test:
            check_every_class_is_tested(data)
        make = partial(initial_model, inputs=data.train.n_features)
        learner = build_learner(recipe, loss, len(data.classes), seed, accelerator, make)
        rows, earlier = resume(learner, run, data) if run else ([], 0.0)
        fit(learner, data, recipe, loss, seed, setup, run, rows, earlier)
        logits = _test_logits(learner, data, recipe, setup) if test else None
    seconds = earlier + time.perf_counter() - started
    metrics = {} if logits is None else compute_metrics(logits, data.test.labels, data.counts, recipe.groups)
    return conclude(what, learner, data, rows, logits, metrics, seconds, setup, run)


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


def conclude(
    what: dict[str, Any],
    learner: Learner,
    data: DataSet,
    rows: list[Row],
    logits: Array | None,
    metrics: dict[str, float | None],
    seconds: float,
    setup: Setup,
    run: Run | None,
) -> RunRecord:
    """The record of a run that has ended with these logits of the test set, written where it has a folder.

    Logits are None of a run that leaves the test set alone.
    """
    accelerator = learner.accelerator
    record = RunRecord(
        **what,
        device=_device_name(accelerator.device),
        train_counts=list(data.counts),
        epochs=[{name: value for name, value in row.items() if name != "seconds"} for row in rows],
        metrics=metrics,
        seconds=round(seconds, 3),
        data=data.title,
        weights="last epoch" if learner.average is None else "moving average",
        epoch_seconds=[row["seconds"] for row in rows],
        processes=accelerator.num_processes,
        threads=torch.get_num_threads(),
        command=setup.command,
        primary_metric=setup.primary_metric,
        classes=list(data.classes),
        validation_samples=0 if data.validation is None else len(data.validation),
        system=system(),
        columns=data.columns,
        **({} if logits is None else _details(logits, data)),
    )
    if run and accelerator.is_main_process:
        run.finish(record)
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.wait_for_everyone()
    return record


def fit(
    learner: Learner,
    data: DataSet,
    recipe: Recipe,
    loss: LossSettings,
    seed: int,
    setup: Setup,
    run: Run | None,
    rows: list[Row],
    earlier: float,
    course_type: type[Course] = Course,
) -> None:
    """Train for all epochs of the recipe that ``rows`` does not have yet, and append theirs.

    Says of a cyclical loss that its focal phase is never met, unless a command has said so before.
    """
    accelerator, started = learner.accelerator, time.perf_counter()
    training = source(data.train, recipe, accelerator.device, setup.workers, training=True)
    validation = source(data.validation, recipe, accelerator.device, setup.workers) if data.validation else None
    course = course_type(recipe, loss, seed, data.train, training, build_mixer(recipe, len(data.classes)))
    steps = len(course.batches(0))
    said = never_focal(recipe, loss, steps)
    if said and accelerator.is_main_process and (recipe.clock == "step" or not setup.command):
        print(said, file=sys.stderr)
    shown = setup.progress and accelerator.is_main_process
    with Display(
        f"{recipe.name} {loss.name} seed {seed}", recipe.total_epochs * steps, len(rows) * steps, shown
    ) as bar:
        for epoch in range(len(rows), recipe.total_epochs):
            row = run_epoch(learner, course, epoch, bar)
            if validation is not None and data.validation is not None:
                images = len(data.validation)
                logits = predict(learner.evaluated, validation, images, recipe.batch_size, accelerator)
                row |= _validated(logits, data.validation.labels, f"{loss.title}, seed {seed}, epoch {epoch}")
            rows.append(row)
            accelerator.log({name: value for name, value in row.items() if value is not None}, step=epoch)
            if run and accelerator.is_main_process:
                spent = earlier + time.perf_counter() - started
                run.keep(epoch, {"rows": rows, "seconds": spent, "data": data.digest, **learner.state_dict()})
            bar.epoch(row, recipe.total_epochs)


def resume(learner: Learner, run: Run, data: DataSet) -> tuple[list[Row], float]:
    """Bring the learner to where the run was stored last; its rows, and the seconds it has taken so far.

    Raises:
        OtherRunError: the run began on other data.
        DamagedRunError: the checkpoint is of another model.
    """
    content = None
    if learner.accelerator.is_main_process:
        content, damaged = run.resume(RESUMED)
        for error in damaged:
            print(f"damaged checkpoint, the one before is used: {error}", file=sys.stderr)
    content = from_main(learner.accelerator, content)
    if content is None:
        return [], 0.0
    if content["data"] != data.digest:
        raise OtherRunError(
            f"{run.folder}: this run began on other data: the labels or names of {data.title} have changed since;"
            " remove the folder to begin anew"
        )
    try:
        learner.load_state_dict(content)
    except (KeyError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise DamagedRunError(
            f"{run.folder}: its newest checkpoint is of another model or optimiser ({said}); move it out of the folder,"
            " and run the same command again"
        ) from None
    return content["rows"], content["seconds"]


def load_data(recipe: Recipe, root: Path, seed: int) -> DataSet:
    """The recipe's data set."""
    return load(recipe.data, root, seed)


def pinned(recipe: Recipe, root: Path) -> tuple[Recipe, DataSet]:
    """The recipe of a reader's own images, held to the files and labels that are there now, and these.

    Raises:
        MissingDataError, DamagedDataError, ValueError: they cannot be used.
    """
    data = load_data(recipe, root, 0)
    return recipe.with_data(digest=data.digest_with_test), data


def try_own_losses(recipe: Recipe, losses: Sequence[LossSettings], root: Path) -> None:
    """Call every loss of the reader's own once, on as many classes as the recipe has, before anything is trained.

    Raises:
        MissingDataError, DamagedDataError, ValueError: the data cannot be read, or a loss cannot be used.
    """
    if any(loss.file for loss in losses):
        classes = len(load_data(recipe, root, 0).classes)
        for loss in losses:
            try_own_loss(recipe, loss, classes)


def start_accelerator(recipe: Recipe, setup: Setup) -> "Accelerator":
    """Device, precision, processes and trackers.

    Raises:
        ValueError: half precision that the device does not have, or a tracker that is not to be had.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.tracking import get_available_trackers

    available = {getattr(kind, "value", kind) for kind in get_available_trackers()}
    if missing := sorted(set(setup.trackers) - available):
        raise ValueError(f"tracker {', '.join(missing)} is not installed")
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    trackers = list(setup.trackers) or None
    accelerator = Accelerator(
        mixed_precision=recipe.precision, cpu=setup.cpu, log_with=trackers, project_dir=setup.folder
    )
    if recipe.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision is fp16, which is too slow on a CPU and not scaled there; use bf16 or no")
    if trackers:
        accelerator.init_trackers(recipe.name)
    return accelerator


def from_main(accelerator: "Accelerator", content: Any) -> Any:
    """The main process's ``content``, in every process."""
    if accelerator.num_processes == 1:
        return content
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([content])[0]


def _kind(what: dict[str, Any], test: bool) -> dict[str, Any]:
    """What a run's folder says it holds; one whose test set was left alone is not taken for one that was tested."""
    return what if test else {**what, "test": False}


def _test_logits(learner: Learner, data: DataSet, recipe: Recipe, setup: Setup) -> Array:
    accelerator = learner.accelerator
    test = source(data.test, recipe, accelerator.device, setup.workers)
    return predict(learner.evaluated, test, len(data.test), recipe.batch_size, accelerator).numpy()


def _details(logits: Array, data: DataSet) -> dict[str, Any]:
    """What a record holds of the test set beside its metrics."""
    p, target = np.exp(log_softmax(logits.astype(np.float64))), data.test.labels
    recall = recall_per_class(logits.argmax(1), target, len(data.classes))
    return {
        "per_class": recall.round(6).tolist(),
        "reliability": reliability(p, target).round(6).tolist(),
        "test_counts": np.bincount(target, minlength=len(data.classes)).tolist(),
    }


def _validated(logits: Tensor, target: Labels, where: str) -> dict[str, float]:
    if not logits.isfinite().all():
        raise FloatingPointError(f"{where}: a logit of the validation set is not finite; the model has diverged")
    labels = torch.from_numpy(target)
    right = (logits.argmax(1) == labels).double()
    present = labels.bincount()
    recall = labels.bincount(weights=right)[present > 0] / present[present > 0]
    return {
        "validation_accuracy": right.mean().item(),
        "validation_balanced_accuracy": recall.mean().item(),
        "validation_nll": F.cross_entropy(logits.double(), labels).item(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
