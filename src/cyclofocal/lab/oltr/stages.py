"""The two stages of open long-tailed recognition: plain training, then the second stage on top of it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cyclofocal.lab.data.dataset import DataSet
from cyclofocal.lab.data.splits import check_apart
from cyclofocal.lab.hashes import content_hash
from cyclofocal.lab.metrics import Array
from cyclofocal.lab.oltr.backbone import Backbone
from cyclofocal.lab.oltr.evaluation import evaluate_logits
from cyclofocal.lab.oltr.network import OpenLongTailed
from cyclofocal.lab.oltr.open_set_data import OpenData, hold_out, open_images, with_unknown
from cyclofocal.lab.oltr.stage1 import Stage1Error, stage1_model, stage1_weights, trained_model
from cyclofocal.lab.oltr.stage_recipe import WEIGHT, StageRecipe, TwoStages
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.head import HeadRecipe
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.batches import build_loader
from cyclofocal.lab.training.features import HEAD
from cyclofocal.lab.training.job import Job, RunOptions
from cyclofocal.lab.training.loop import Metrics, Task, Training
from cyclofocal.lab.training.models import classifier_of
from cyclofocal.lab.training.optim import optimizer_over, weight_groups
from cyclofocal.lab.training.run_folder import run_folder
from cyclofocal.lab.training.sampler import class_aware_batches
from cyclofocal.lab.training.schedule import ScheduledValues
from cyclofocal.lab.training.train import PLAIN, evaluate_classes, load_data, predictions_of, write_predictions
from cyclofocal.lab.training.train_state import TrainState, build_state

if TYPE_CHECKING:
    from accelerate import Accelerator


def stage2_job(stages: TwoStages, loss: LossSettings, seed: int, out: Path, options: RunOptions) -> Job:
    """The job of stage 2 with that of its stage 1, each in a subfolder of ``out``."""
    first, second = stages.pair(loss)
    recipe = with_stage1_digest(stages)
    stage1 = Job(stages.first, first, seed, run_folder(out, stages.first, first, seed), options)
    return Job(recipe, second, seed, run_folder(out, recipe, second, seed), options, stage1)


def with_stage1_digest(stages: TwoStages) -> StageRecipe:
    """The recipe of stage 2 with its stage 1 written into it, so that another stage 1 makes another run.

    Seed and loss are not, for runs of all seeds and losses are one experiment.
    """
    return replace(stages.second, first=content_hash([stages.first.flat(), [loss.flat() for loss, _ in stages.losses]]))


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe: a stage of open long-tailed recognition, a head, a detector, or plain training."""
    if isinstance(recipe, HeadRecipe):
        return HEAD
    if isinstance(recipe, DetectionRecipe):
        from cyclofocal.lab.detection.task import DETECTION  # which imports torchvision

        return DETECTION
    if not isinstance(recipe, StageRecipe):
        return PLAIN
    return STAGE1 if recipe.stage == 1 else STAGE2


def load_open(recipe: Recipe, root: Path, seed: int) -> OpenData:
    """The recipe's data set and its open set, which must not have an image in common."""
    assert isinstance(recipe, StageRecipe)
    data = load_data(recipe, root, seed)
    if recipe.held_out_classes:
        return hold_out(data, recipe.held_out_classes)
    if not recipe.open_source:
        return with_unknown(data, None)
    open_root = Path(recipe.open_root) if recipe.open_root else None
    found = with_unknown(data, open_images(Path(recipe.open_source), open_root))
    check_apart(data.title, found.splits)
    return found


def build_stage1(job: Job, data: DataSet, accelerator: "Accelerator") -> TrainState:
    """The state of stage 1 at its beginning."""
    assert isinstance(job.recipe, StageRecipe)
    _check_loss(job.loss)
    state = build_state(job, stage1_model(job.recipe, len(data.classes), job.seed), accelerator, data.counts)
    scale_features(state, job.recipe.features_lr_scale)
    return state


def build_stage2(job: Job, data: DataSet, accelerator: "Accelerator") -> TrainState:
    """The state of stage 2 at its beginning, with the weights of stage 1; its memory is not filled yet.

    Raises:
        Stage1Error: there is no stage 1, or it has not ended.
    """
    recipe = job.recipe
    assert isinstance(recipe, StageRecipe)
    _check_loss(job.loss)
    if job.stage1 is None:
        raise Stage1Error("stage is 2; stage 2 begins with weights of stage 1, and the job names no stage 1")
    model = trained_model(recipe, len(data.classes), job.seed, stage1_weights(job.stage1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        backbone = Backbone(model, (recipe.channels, recipe.image_size, recipe.image_size))
        reduce = functools.partial(accelerator.reduce, reduction="sum") if accelerator.num_processes > 1 else None
        network = OpenLongTailed(backbone, recipe.frozen, reduce)
    state = functools.partial(OpenTrainState, centroid_weight=recipe.centroid_weight)
    drawn_alike = [1] * len(data.classes)  # the batches are class-aware, so there is no prior to take out
    return build_state(job, network, accelerator, drawn_alike, _optimizer, state)


@dataclass
class OpenTrainState(TrainState):
    """Learns with the loss of the logits and the centroid loss of the features."""

    centroid_weight: float = WEIGHT

    def loss(self, images: Tensor, target: Tensor, now: ScheduledValues) -> tuple[Tensor, Tensor]:
        logits, apart = self.wrapped_model(images, target)
        loss = self.criterion(logits if now.temperature == 1 else logits / now.temperature, target)
        return loss + self.centroid_weight * apart, logits


def scale_features(state: TrainState, scale: float) -> None:
    """Scale the learning rate of all weights of stage 1 but the classifier's by ``scale``."""
    if scale == 1:
        return
    own = {id(weight) for weight in classifier_of(state.model).parameters()}
    groups = state.optimizer.param_groups
    for group in list(groups):
        features = [weight for weight in group["params"] if id(weight) not in own]
        group["params"] = [weight for weight in group["params"] if id(weight) in own]
        groups.append(group | {"params": features, "lr_scale": scale})


def fill_memory(training: Training) -> None:
    """Fill the memory with the mean features of the training images, which are not augmented."""
    accelerator, recipe, images = training.state.accelerator, training.job.recipe, training.data.train
    network = training.state.model
    assert isinstance(network, OpenLongTailed)
    network.eval()
    own = torch.arange(accelerator.process_index, len(images), accelerator.num_processes).split(recipe.batch_size)
    plain = build_loader(images, recipe, accelerator.device, training.job.options.workers)
    labels = torch.from_numpy(images.labels).to(accelerator.device)

    def features() -> Iterator[tuple[Tensor, Tensor]]:
        for indices, batch in zip(own, plain.eval_batches(own), strict=True):
            yield network.features(batch), labels[indices.to(accelerator.device)]

    network.memory.fill(features(), network.reduce)


def class_aware(job: Job, data: DataSet, epoch: int) -> tuple[Tensor, ...]:
    """Batches with every class as often as any other."""
    recipe = job.recipe
    assert isinstance(recipe, StageRecipe)
    return class_aware_batches(data.train.labels, job.seed, epoch, recipe.batch_size, recipe.per_class)


def predict_open(training: Training) -> tuple[Array, Metrics]:
    """Logits of the known test images, and the metrics of known and unknown ones; all logits are written."""
    recipe, data = training.job.recipe, training.data
    assert isinstance(recipe, StageRecipe)
    assert isinstance(data, OpenData)
    found = predictions_of(training, *(split for split in (data.test, data.unknown) if split is not None))
    found = replace(found, title=f"{found.title}, stage {recipe.stage}")
    write_predictions(training, found)
    return found.logits[found.known], evaluate_logits(found, recipe.threshold, recipe.groups).numbers


def _check_loss(loss: LossSettings) -> None:
    if loss.sampler:
        raise ValueError(
            f"{loss.title}: stage 2 of open long-tailed recognition draws class-balanced batches for every loss;"
            " compare this sampler on an experiment of one stage"
        )
    if loss.max_margin:
        raise ValueError(
            f"max_margin of {loss.title} is {loss.max_margin:g}; margins need a normalised last layer, which neither"
            " stage of open long-tailed recognition has: compare this loss on a plain experiment"
        )


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of stage 2, with the weights grouped by their learning rates."""
    assert isinstance(network, OpenLongTailed)
    assert isinstance(recipe, StageRecipe)
    parts = [
        (network.classifier, 1.0),
        (network.memory, recipe.centroids_lr_scale),
        (nn.ModuleList([network.attention, network.backbone]), recipe.features_lr_scale),
    ]
    groups: list[dict[str, Any]] = [
        group | {"lr_scale": scale} for part, scale in parts for group in weight_groups(part, recipe) if group["params"]
    ]
    return optimizer_over(groups, recipe)


STAGE1 = PLAIN._replace(
    load=load_open,
    build=build_stage1,
    evaluate=functools.partial(evaluate_classes, predict_test=predict_open),
    keeps_weights=True,
)
STAGE2 = STAGE1._replace(build=build_stage2, batches=class_aware, begin=fill_memory, keeps_weights=False)
