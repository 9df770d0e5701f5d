"""Training of a classifier of images or rows, and its evaluation."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import DataSet, Labels, Samples
from cyclofocal.lab.data.load import load, load_table, table_digest
from cyclofocal.lab.metrics import (
    Array,
    LabelArray,
    compute_metrics,
    log_softmax,
    metrics_with,
    recall_per_class,
    reliability,
    two_class_auroc,
)
from cyclofocal.lab.recipes.loss import COSINE_SCALE
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.recipes.settings import AnyRecipe
from cyclofocal.lab.records import CONFUSION_CLASSES, RunRecord
from cyclofocal.lab.training.batches import BatchLoader, build_loader, epoch_batches
from cyclofocal.lab.training.early_stopping import build_measure
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.loop import Metrics, Task, Training, run_task
from cyclofocal.lab.training.models import check_model
from cyclofocal.lab.training.post_hoc import PostHoc, choose_post_hoc, without_prior
from cyclofocal.lab.training.predict import predict
from cyclofocal.lab.training.predictions import PREDICTIONS, Predictions, sample_ids, write
from cyclofocal.lab.training.sampler import class_aware_batches
from cyclofocal.lab.training.train_state import TrainState, build_state, initial_model

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(job: Job, task: Task | None = None) -> RunRecord:
    """Train one model and evaluate it once; :func:`~cyclofocal.lab.training.loop.run_task`.

    Args:
        job: what to train, where and how.
        task: None is plain training, of images or a table.
    """
    return run_task(job, task or PLAIN)


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


def _load(recipe: Recipe, root: Path, seed: int) -> DataSet:
    return load_data(recipe, root, seed)


def _build(job: Job, data: DataSet, accelerator: "Accelerator") -> TrainState:
    scale = COSINE_SCALE if job.loss.max_margin else 0.0
    model = initial_model(job.recipe, len(data.classes), job.seed, data.train.n_features, scale)
    return build_state(job, model, accelerator, data.counts)


def _batches(job: Job, data: DataSet, epoch: int) -> tuple[Tensor, ...]:
    if job.loss.sampler:
        return class_aware_batches(data.train.labels, job.seed, epoch, job.recipe.batch_size, per_class=1)
    return epoch_batches(job.seed, epoch, len(data.train), job.recipe.batch_size)


def _predict_test(training: Training) -> tuple[Array, Metrics]:
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


def _loader(training: Training) -> BatchLoader:
    job, device = training.job, training.state.accelerator.device
    return build_loader(training.data.train, job.recipe, device, job.options.workers, training=True, every_epoch=True)


def _validator(training: Training) -> Callable[[int], Metrics]:
    """Make a function that measures the validation set after an epoch; empty where there is no such set."""
    job, state, split = training.job, training.state, training.data.validation
    if split is None:
        return lambda epoch: {}
    loader = build_loader(split, job.recipe, state.accelerator.device, job.options.workers, every_epoch=True)
    measure = build_measure(job, training.data.counts, torch.from_numpy(split.labels))

    def validate(epoch: int) -> Metrics:
        logits = predict(state.eval_model, loader, len(split), job.recipe.batch_size, state.accelerator)
        where = f"{job.loss.title}, seed {job.seed}, epoch {epoch}"
        return _validated(logits, split.labels, where) | measure(logits, where)

    return validate


def evaluate_classes(training: Training, predict_test: Callable[[Training], tuple[Array, Metrics]]) -> dict[str, Any]:
    """Fields of the record about the validation and test set; of the latter none where the job leaves it alone.

    Validation data choose a temperature, the strength of an adjustment by the class prior, and thresholds, with which
    the same logits are evaluated again.

    Args:
        training: after its last epoch.
        predict_test: gives logits and metrics of the test set, and writes its predictions.
    """
    job, data, groups = training.job, training.data, training.job.recipe.groups
    if not job.evaluates:
        return {"metrics": {}} | (_fields(_post_hoc(training)) if job.all_data else {})
    training.chosen = chosen = _post_hoc(training)
    logits, metrics = predict_test(training)
    target = data.test.labels
    tuned = metrics_with(logits, target, chosen.positive, chosen.temperature, chosen.thresholds)
    return {
        "metrics": metrics | tuned,
        **_fields(chosen),
        "adjusted": compute_metrics(without_prior(logits, data.counts, chosen.tau), target, data.counts, groups),
        **_details(logits, target, len(data.classes)),
    }


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


def _validated(logits: Tensor, target: Labels, where: str) -> Metrics:
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


PLAIN = Task(
    check=check_model,
    load=_load,
    build=_build,
    batches=_batches,
    evaluate=partial(evaluate_classes, predict_test=_predict_test),
    loader=_loader,
    validator=_validator,
)
"""Training on images or a table, with the loss of the logits alone."""
