"""Extract features and the classifier of a finished run."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cyclofocal.lab.data.config import TableData
from cyclofocal.lab.data.dataset import Samples
from cyclofocal.lab.oltr.backbone import Backbone
from cyclofocal.lab.oltr.stage1 import Stage1Error, last_weights, trained_model
from cyclofocal.lab.oltr.stage_recipe import StageRecipe
from cyclofocal.lab.oltr.stages import load_open
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import flat_schema
from cyclofocal.lab.schema import fault
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.accelerator import start_accelerator
from cyclofocal.lab.training.batches import build_loader
from cyclofocal.lab.training.job import RunOptions
from cyclofocal.lab.training.predict import predict
from cyclofocal.lab.training.predictions import Predictions
from cyclofocal.lab.training.run_folder import stored_identity

Featured = tuple[Tensor, Tensor]
"""Features (N, D) and labels (N,)."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of every image, on the CPU.

    Attributes:
        recipe, seed: of the run.
        title: of the run.
        classifier: its own.
        train: of the training images, not augmented.
        validation: None where there are none.
        test: with the unknown images, labelled -1, behind the known ones.
        counts: training images per class.
    """

    recipe: StageRecipe
    seed: int
    title: str
    classifier: nn.Linear
    train: Featured
    validation: Featured | None
    test: Featured
    counts: tuple[int, ...]

    def predictions(self, logits: Tensor, title: str) -> Predictions:
        """Logits of the test images, ready to be evaluated and written."""
        return Predictions(logits.detach().numpy(), self.test[1].numpy(), np.array(self.counts), title)


def features_of(folder: Path, options: RunOptions) -> Features:
    """Features of the images of a run.

    Args:
        folder: of a run that has ended, of one stage or of stage 1.
        options: where its data set lies, and whether to stay on the CPU; the rest is unused.

    Raises:
        Stage1Error: no such run, one that has not ended or left no weights, a stage 2, or a run on a table.
        MissingDataError, DamagedDataError, ValueError: of its data.
    """
    recipe, title, seed = read_run(folder)
    weights = last_weights(folder)
    accelerator = start_accelerator(recipe, options)
    with rng.preserve_rng_state():
        data = load_open(recipe, options.root, seed)
        backbone = Backbone(
            trained_model(recipe, len(data.classes), seed, weights),
            (recipe.channels, recipe.image_size, recipe.image_size),
        ).to(accelerator.device)

        def of(images: Samples) -> Featured:
            pixels = build_loader(images, recipe, accelerator.device, options.workers)
            found = predict(backbone, pixels, len(images), recipe.batch_size, accelerator)
            return found, torch.from_numpy(images.labels)

        tests = [of(images) for images in (data.test, data.unknown) if images is not None]
        return Features(
            recipe,
            seed,
            title,
            _linear(backbone),
            of(data.train),
            None if data.validation is None else of(data.validation),
            (torch.cat([features for features, _ in tests]), torch.cat([labels for _, labels in tests])),
            data.counts,
        )


def read_run(folder: Path) -> tuple[StageRecipe, str, int]:
    """Recipe, title of the loss, and seed of a run, from its folder.

    Raises:
        Stage1Error: no such run, a stage 2, or a run on rows of numbers.
    """
    if not (folder / "run.json").is_file():
        raise Stage1Error(f"{folder}: no run there; it must be a folder with a run.json")
    run = stored_identity(folder)
    said = fault(run.get("recipe"), flat_schema(StageRecipe), "recipe") or fault(run.get("loss"), LossSettings, "loss")
    if said or not isinstance(run.get("seed"), int):
        raise Stage1Error(f"{folder / 'run.json'}: {said or 'it has no seed'}")
    for field, what in (("backbone_digest", "a head on frozen features, without a network"), ("task", "a detector")):
        if run["recipe"].get(field):
            raise Stage1Error(f"{folder}: {what}; give the run of a network that classifies images")
    try:
        recipe = StageRecipe.from_flat(run["recipe"] | {"precision": "no"})
    except (KeyError, TypeError):
        raise Stage1Error(f"{folder}: a run of another version of cyclofocal; run it again") from None
    except ValueError as error:
        raise Stage1Error(f"{folder / 'run.json'}: {error}") from None
    if recipe.stage == 2:
        raise Stage1Error(f"{folder}: a stage 2, whose classifier is not linear; give the folder of its stage 1")
    if isinstance(recipe.data, TableData):
        raise Stage1Error(f"{folder}: a run on a table; other classifiers are fitted to features of images")
    return replace(recipe, channels_last=False), run["loss"]["title"], run["seed"]


def _linear(backbone: Backbone) -> nn.Linear:
    classes, length = backbone.weight.shape
    classifier = nn.Linear(length, classes, bias=backbone.bias is not None)
    with torch.no_grad():
        classifier.weight.copy_(backbone.weight)
        if backbone.bias is not None:
            classifier.bias.copy_(backbone.bias)
    return classifier
