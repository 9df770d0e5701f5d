"""Load the model of a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cyclofocal.lab.data.config import DEFAULTS
from cyclofocal.lab.detection.network import build_detector
from cyclofocal.lab.oltr.backbone import Backbone
from cyclofocal.lab.oltr.network import OpenLongTailed
from cyclofocal.lab.oltr.stage1 import stage1_model
from cyclofocal.lab.oltr.stage_recipe import StageRecipe
from cyclofocal.lab.predict.detector import TrainedDetector
from cyclofocal.lab.predict.model import TrainedModel
from cyclofocal.lab.recipes.detection import DetectionRecipe
from cyclofocal.lab.recipes.loss import COSINE_SCALE
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.saved_model import DESCRIPTION, DamagedModelError, ModelDescription, read_model
from cyclofocal.lab.training.train_state import initial_model

ANY_DATA, ANY_BOXES = "digits", "digit-scenes"
"""Source in place of the one that a model was trained on, which need not be there any more."""


def load_model(run: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """Load the classifier of a run that ``cyclofocal train`` or ``reproduce`` finished.

    Args:
        run: folder of the run, which may have been moved; the data that it was trained on need not be there.
        device: device of the model.

    Raises:
        FileNotFoundError: no such folder, or no model in it.
        MissingDataError: a package is not installed.
        DamagedModelError: a file is missing, damaged or of another version.
        ValueError: the model is a detector.
    """
    found = load_any(run, device)
    if not isinstance(found, TrainedModel):
        raise ValueError(f"{run}: a detector, and not a classifier; `cyclofocal predict` and load_any take both")
    return found


def load_any(run: str | Path, device: str | torch.device = "cpu") -> TrainedModel | TrainedDetector:
    """Load a classifier or a detector; see :func:`load_model`."""
    folder = Path(run).expanduser()
    saved = read_model(folder)
    try:
        recipe = _recipe(saved.description.recipe)
        module = _network(recipe, saved.description)
        module.load_state_dict(saved.weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise DamagedModelError(
            f"{folder / DESCRIPTION}: of another version of cyclofocal, or changed ({said}); train it again"
        ) from None
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    module = module.to(torch.device(device)).to(memory_format=layout).eval().requires_grad_(False)
    if isinstance(recipe, DetectionRecipe):
        return TrainedDetector(module, recipe, saved.description)
    return TrainedModel(module, recipe, saved.description, saved.encoder)


def _recipe(stored: Mapping[str, Any]) -> Recipe:
    """The recipe, without its data and the weights that training began with."""
    kind = StageRecipe if "stage" in stored else DetectionRecipe if stored.get("task") == "detection" else Recipe
    own = {name: value for name, value in stored.items() if name not in DEFAULTS}
    if kind is DetectionRecipe:
        return DetectionRecipe.from_flat(own | {"source": ANY_BOXES})  # its layers follow from the first weights
    changed = {"source": ANY_DATA, "pretrained": False} | ({"weights_file": ""} if "weights_file" in own else {})
    return kind.from_flat(own | changed)


def _network(recipe: Recipe, description: ModelDescription) -> nn.Module:
    classes = len(description.classes)
    if isinstance(recipe, DetectionRecipe):
        return build_detector(recipe, classes, first_weights=False)
    if not isinstance(recipe, StageRecipe):
        scale = COSINE_SCALE if description.loss.get("max_margin") else 0.0
        return initial_model(recipe, classes, description.seed, description.inputs, scale)
    model = stage1_model(recipe, classes, description.seed)
    if recipe.stage == 1:
        return model
    return OpenLongTailed(Backbone(model, (recipe.channels, recipe.image_size, recipe.image_size)), recipe.frozen)
