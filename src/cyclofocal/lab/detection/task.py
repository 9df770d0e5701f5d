"""Training of a detector, and its evaluation by average precision."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cyclofocal.integrations.torchvision import replace_loss
from cyclofocal.lab.data.coco import coco_results
from cyclofocal.lab.data.dataset import DataSet, Samples
from cyclofocal.lab.detection.batches import BoxLoader
from cyclofocal.lab.detection.network import build_detector, check_detector
from cyclofocal.lab.detection.precision import check_evaluation, evaluate_boxes
from cyclofocal.lab.recipes.criterion import build_box_criterion
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.records import write_atomically
from cyclofocal.lab.training.batches import epoch_batches
from cyclofocal.lab.training.job import Job
from cyclofocal.lab.training.loop import Metrics, Task, Training
from cyclofocal.lab.training.predictions import DETECTIONS
from cyclofocal.lab.training.schedule import ScheduledValues
from cyclofocal.lab.training.train import load_data
from cyclofocal.lab.training.train_state import TrainState, build_state

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class DetectionState(TrainState):
    """Learns with the classification and box losses of the detector."""

    def loss(self, images: Any, target: Any, now: ScheduledValues) -> tuple[Tensor, None]:
        losses: dict[str, Tensor] = self.wrapped_model(images, target)
        return torch.stack([*losses.values()]).sum(), None


def check_detection(recipe: Recipe) -> None:
    """Refuse a recipe whose backbone there is not, and packages that the evaluation needs.

    Raises:
        ValueError, MissingDataError: says what to give or to install.
    """
    assert isinstance(recipe, DetectionRecipe)
    check_evaluation()
    check_detector(recipe)


def build_detection(job: Job, data: DataSet, accelerator: "Accelerator") -> TrainState:
    """The state at the beginning, with the job's loss in the head of the detector."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = build_detector(_recipe(job), len(data.classes))
    state = build_state(
        job, model, accelerator, data.counts, make_learner=DetectionState, make_criterion=build_box_criterion
    )
    criterion = state.criterion
    replace_loss(model, lambda logits, target: criterion(logits, target))  # a module would be among its weights
    return state


@torch.no_grad()
def detect(model: nn.Module, loader: BoxLoader, n_images: int, accelerator: "Accelerator") -> list[dict[str, Tensor]]:
    """Boxes, labels and scores of the images of a split, in their pixels, on the CPU; the same in every process."""
    from accelerate.utils import gather_object

    training = model.training
    model.eval()
    rank, world = accelerator.process_index, accelerator.num_processes
    mine, found = torch.arange(rank, n_images, world), []
    with accelerator.autocast():
        for index, image in zip(mine.tolist(), loader.eval_images(mine), strict=True):
            (one,) = model([image])
            boxes = one["boxes"].float() / loader.scale_of(index)
            found.append({"boxes": boxes.cpu(), "labels": one["labels"].cpu(), "scores": one["scores"].float().cpu()})
    model.train(training)
    if world == 1:
        return found
    parts: list[list[dict[str, Tensor]]] = gather_object([found])
    return [parts[index % world][index // world] for index in range(n_images)]


def _recipe(job: Job) -> DetectionRecipe:
    assert isinstance(job.recipe, DetectionRecipe)
    return job.recipe


def _batches(job: Job, data: DataSet, epoch: int) -> tuple[Tensor, ...]:
    return epoch_batches(job.seed, epoch, len(data.train), job.recipe.batch_size)


def _loader(training: Training, images: Samples | None = None) -> Any:
    job = training.job
    device = training.state.accelerator.device
    return BoxLoader(images or training.data.train, _recipe(job), device, job.options.workers)


def _validator(training: Training) -> Callable[[int], Metrics]:
    split = training.data.validation
    if split is None or split.boxes is None:
        return lambda epoch: {}
    loader, boxes = _loader(training, split), split.boxes

    def validate(epoch: int) -> Metrics:
        state = training.state
        found = detect(state.eval_model, loader, len(split), state.accelerator)
        metrics = evaluate_boxes(found, boxes, training.data.counts).metrics
        return {f"validation_{key}": metrics[key] for key in ("ap", "ap50")}

    return validate


def _evaluate(training: Training) -> dict[str, Any]:
    job, data, state = training.job, training.data, training.state
    if not job.evaluates:
        return {"metrics": {}}
    assert data.test.boxes is not None
    found = detect(state.eval_model, _loader(training, data.test), len(data.test), state.accelerator)
    if training.folder and state.accelerator.is_main_process:
        results = coco_results([boxes.image_id for boxes in data.test.boxes], found, data.category_ids)
        write_atomically(training.folder.folder / DETECTIONS, json.dumps(results).encode())
    metrics, per_class, curve = evaluate_boxes(found, data.test.boxes, data.counts)
    return {
        "metrics": metrics,
        "per_class": [round(number, 6) for number in per_class],
        "precision_recall": [round(number, 4) for number in curve],
        "test_counts": list(data.test.class_counts(len(data.classes))),
    }


DETECTION = Task(
    check=check_detection,
    load=load_data,
    build=build_detection,
    batches=_batches,
    evaluate=_evaluate,
    loader=_loader,
    validator=_validator,
)
"""Training of a detector on images with boxes."""
