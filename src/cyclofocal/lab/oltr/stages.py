"""The two stages of open long-tailed recognition: plain training, then the second stage on top of it."""

import functools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cyclofocal.lab.data import Samples
from cyclofocal.lab.data.splits import check_apart
from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.oltr.backbone import Backbone, classifier_of
from cyclofocal.lab.oltr.evaluation import evaluate
from cyclofocal.lab.oltr.network import OpenLongTailed
from cyclofocal.lab.oltr.open_set_data import OpenData, hold_out, open_images
from cyclofocal.lab.oltr.predictions import Predictions, write
from cyclofocal.lab.oltr.sampler import class_aware_batches
from cyclofocal.lab.oltr.stage1 import FirstStageError, first_model, first_weights, trained_model
from cyclofocal.lab.oltr.stage_recipe import WEIGHT, StageRecipe, TwoStages
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.records import RunRecord
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.batches import check_shares, source
from cyclofocal.lab.training.epoch import Course
from cyclofocal.lab.training.learner import Learner, build_learner
from cyclofocal.lab.training.models import check_model
from cyclofocal.lab.training.optim import build_criterion, optimizer_over, weight_groups
from cyclofocal.lab.training.predict import predict
from cyclofocal.lab.training.run_folder import Run, identity, refuse_obstacle, run_folder
from cyclofocal.lab.training.schedule import Moment
from cyclofocal.lab.training.train import Setup, conclude, fit, from_main, load_data, resume, start_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

PREDICTIONS = "predictions.npz"
"""In the folder of a run: the logits of the test set, for ``cyclofocal evaluate``."""


Pair = tuple[LossSettings, LossSettings]
"""The loss of stage 1 and that of stage 2; a cyclical one has its whole cycle in each."""


def train_first(stages: TwoStages, losses: Pair, seed: int, out: Path, setup: Setup) -> RunRecord:
    """Stage 1, kept in a folder of its own below ``out``; it goes on if it was stopped, and is not run twice.

    Raises:
        What :func:`train_stage` raises.
    """
    folder = run_folder(out, stages.first, losses[0], seed)
    return train_stage(stages.first, losses[0], seed, replace(setup, folder=folder))


def train_second(stages: TwoStages, losses: Pair, seed: int, out: Path, setup: Setup) -> RunRecord:
    """Stage 2 on top of the stage 1 that :func:`train_first` left below ``out``; likewise.

    Raises:
        What :func:`train_stage` raises.
    """
    recipe, first = on_top(stages), run_folder(out, stages.first, losses[0], seed)
    weights = first_weights(first, identity(stages.first, losses[0], seed))
    folder = run_folder(out, recipe, losses[1], seed)
    return train_stage(recipe, losses[1], seed, replace(setup, folder=folder), weights)


def on_top(stages: TwoStages) -> StageRecipe:
    """The recipe of stage 2 with its stage 1 written into it, so that another stage 1 makes another run.

    Seed and loss are not, for runs of all seeds and losses are one experiment.
    """
    return replace(
        stages.second, first=content_hash([stages.first.flat(), [asdict(loss) for loss, _ in stages.losses]])
    )


def train_stage(
    recipe: StageRecipe, loss: LossSettings, seed: int, setup: Setup, weights: dict[str, Tensor] | None = None
) -> RunRecord:
    """Train and evaluate one stage, as :func:`cyclofocal.lab.training.train.train` does, and keep the logits.

    Args:
        recipe: of the stage; one of stage 2 comes from :func:`on_top`.
        loss: of the stage.
        seed: of the run.
        setup: where and how.
        weights: of the stage 1 that stage 2 begins with, from :func:`~cyclofocal.lab.oltr.stage1.first_weights`.

    Raises:
        FirstStageError: stage 2 without weights of stage 1.
        What train raises.
    """
    started = time.perf_counter()
    check_model(recipe)
    if (weights is None) == (recipe.stage == 2):
        raise FirstStageError(f"stage is {recipe.stage}; stage 2 begins with weights of stage 1, and stage 1 with none")
    accelerator = start_accelerator(recipe, setup)
    what = identity(recipe, loss, seed)
    run = None
    if setup.folder:
        run = Run(setup.folder, what, accelerator.is_main_process)
        refuse_obstacle(setup.folder / PREDICTIONS)
    if run and (done := from_main(accelerator, run.finished() if accelerator.is_main_process else None)):
        return done
    with rng.kept():
        data = load_open(recipe, setup.root, seed)
        check_shares(len(data.known.train), recipe.batch_size, accelerator.num_processes)
        classes = len(data.known.classes)
        if weights is None:
            learner, course_type = build_learner(recipe, loss, classes, seed, accelerator, first_model), Course
            scale_features(learner, recipe.features_lr_scale)
        else:
            learner, course_type = build_open_learner(recipe, loss, classes, seed, accelerator, weights), ClassAware
        rows, earlier = resume(learner, run, data.known) if run else ([], 0.0)
        if isinstance(learner.model, OpenLongTailed) and not learner.model.memory.filled:
            fill_memory(learner.model, data.known.train, recipe, accelerator, setup.workers)
        fit(learner, data.known, recipe, loss, seed, setup, run, rows, earlier, course_type)
        found = predictions_of(learner, data, recipe, setup.workers, f"{loss.title}, stage {recipe.stage}")
    if setup.folder and accelerator.is_main_process:
        write(found, setup.folder / PREDICTIONS)
    numbers, logits = evaluate(found, recipe.threshold, recipe.groups).numbers, found.logits[found.known]
    seconds = earlier + time.perf_counter() - started
    return conclude(what, learner, data.known, rows, logits, numbers, seconds, setup, run)


def load_open(recipe: StageRecipe, root: Path, seed: int) -> OpenData:
    """The recipe's data set and its open set, which must not have an image in common."""
    data = load_data(recipe, root, seed)
    if recipe.held_out_classes:
        return hold_out(data, recipe.held_out_classes)
    if recipe.open_source:
        root_of_open = Path(recipe.open_root) if recipe.open_root else None
        found = OpenData(data, open_images(Path(recipe.open_source), root_of_open))
        check_apart(data.title, found.splits)
        return found
    return OpenData(data)


@dataclass
class OpenLearner(Learner):
    """Learns with the loss of the logits and the centroid loss of the features."""

    centroid_weight: float = WEIGHT

    def loss(self, images: Tensor, target: Tensor, now: Moment) -> tuple[Tensor, Tensor]:
        logits, apart = self.forward(images, target)
        loss = self.criterion(logits if now.temperature == 1 else logits / now.temperature, target)
        return loss + self.centroid_weight * apart, logits


class ClassAware(Course):
    """Every class as often as any other."""

    def batches(self, epoch: int) -> tuple[Tensor, ...]:
        assert isinstance(self.recipe, StageRecipe)
        return class_aware_batches(self.images.labels, self.seed, epoch, self.recipe.batch_size, self.recipe.per_class)


def build_open_learner(
    recipe: StageRecipe,
    loss: LossSettings,
    classes: int,
    seed: int,
    accelerator: "Accelerator",
    weights: dict[str, Tensor],
) -> OpenLearner:
    """The learner of stage 2 at its beginning, on the accelerator's device; its memory is not filled yet."""
    from cyclofocal.lab.training.batchnorm import sync_batch_norm

    several = accelerator.num_processes > 1
    model = trained_model(recipe, classes, seed, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = Backbone(model, (recipe.channels, recipe.image_size, recipe.image_size))
        reduce = functools.partial(accelerator.reduce, reduction="sum") if several else None
        network: nn.Module = OpenLongTailed(backbone, recipe.frozen, reduce)
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    network = network.to(accelerator.device).to(memory_format=layout)
    if recipe.sync_batch_norm and several:
        network = sync_batch_norm(network)
    criterion = build_criterion(loss)
    if isinstance(criterion, nn.Module):
        criterion.to(accelerator.device)
    forward, optimizer = accelerator.prepare(network, optimizer_over(_groups(network, recipe), recipe))
    return OpenLearner(accelerator, network, forward, optimizer, criterion, None, recipe.centroid_weight)


def scale_features(learner: Learner, scale: float) -> None:
    """Let all weights of stage 1 but the classifier's have a learning rate of their own, times ``scale``."""
    if scale == 1:
        return
    own = {id(weight) for weight in classifier_of(learner.model).parameters()}
    groups = learner.optimizer.param_groups
    for group in list(groups):
        features = [weight for weight in group["params"] if id(weight) not in own]
        group["params"] = [weight for weight in group["params"] if id(weight) in own]
        groups.append(group | {"params": features, "lr_scale": scale})


def fill_memory(
    network: OpenLongTailed, images: Samples, recipe: StageRecipe, accelerator: "Accelerator", workers: int
) -> None:
    """Fill the memory with the mean features of the training images, which are not augmented."""
    network.eval()
    own = torch.arange(accelerator.process_index, len(images), accelerator.num_processes).split(recipe.batch_size)
    plain = source(images, recipe, accelerator.device, workers)
    labels = torch.from_numpy(images.labels).to(accelerator.device)

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        for indices, batch in zip(own, plain.plain(own), strict=True):
            yield network.features(batch), labels[indices.to(accelerator.device)]

    network.memory.fill(features(), network.reduce)


def predictions_of(learner: Learner, data: OpenData, recipe: StageRecipe, workers: int, title: str) -> Predictions:
    """Logits of the known test images, and of the unknown ones after them."""
    sets = [data.known.test, *([data.unknown] if data.unknown is not None else [])]
    device = learner.accelerator.device
    logits = [
        predict(
            learner.evaluated,
            source(images, recipe, device, workers),
            len(images),
            recipe.batch_size,
            learner.accelerator,
        )
        for images in sets
    ]
    labels = np.concatenate([images.labels for images in sets])
    return Predictions(torch.cat(logits).numpy(), labels, np.array(data.known.counts), title)


def _groups(network: nn.Module, recipe: StageRecipe) -> list[dict[str, Any]]:
    """Weights by their learning rates."""
    assert isinstance(network, OpenLongTailed)
    parts = [
        (network.classifier, 1.0),
        (network.memory, recipe.centroids_lr_scale),
        (nn.ModuleList([network.attention, network.backbone]), recipe.features_lr_scale),
    ]
    return [
        group | {"lr_scale": scale} for part, scale in parts for group in weight_groups(part, recipe) if group["params"]
    ]
