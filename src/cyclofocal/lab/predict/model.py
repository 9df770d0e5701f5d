"""A trained model: its network, transform and classes, and predictions as scikit-learn's classifiers give them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cyclofocal.lab.data.dataset import Samples, on_demand
from cyclofocal.lab.data.encoder import TableEncoder
from cyclofocal.lab.data.files import decode, files
from cyclofocal.lab.metrics import Array, LabelArray, log_softmax, probability_of
from cyclofocal.lab.predict.rows import prepare
from cyclofocal.lab.recipes.recipe import Recipe
from cyclofocal.lab.training.augment import scale
from cyclofocal.lab.training.batches import build_loader
from cyclofocal.lab.training.post_hoc import without_prior
from cyclofocal.lab.training.saved_model import ModelDescription
from cyclofocal.lab.training.transforms import EvalTransform

if TYPE_CHECKING:
    from pandas import DataFrame

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ImageTransform:
    """Turn an image into the network's input: float32 (channels, image_size, image_size), normalised."""

    def __init__(self, recipe: Recipe) -> None:
        self.resize, self.scale = EvalTransform(recipe), scale(recipe, 255, torch.device("cpu"))

    def __call__(self, image: Image.Image | str | Path) -> Tensor:
        """Input of an image, or of an image file."""
        if not isinstance(image, Image.Image):
            image = decode(str(image), str(image))
        return self.scale(self.resize(image, (0, 0, 0))[None])[0]


class TableTransform:
    """Turn rows of a table into the network's input: float32 (N, inputs)."""

    def __init__(self, encoder: TableEncoder) -> None:
        self.encoder = encoder

    def __call__(self, frame: "DataFrame") -> Tensor:
        """Inputs of a data frame, which must have the columns of the training; others are ignored."""
        return torch.from_numpy(self.encoder.transform(prepare(frame, self.encoder, "data frame")))


def new_images(paths: Sequence[str]) -> Samples:
    """Images of files, which are read on demand and have no class."""
    return on_demand(files(Path(), list(paths)), np.zeros(len(paths)), "new images")


class TrainedModel:
    """A trained classifier.

    Attributes:
        module: network, in evaluation mode; it gives logits (N, C).
        transform: from an image or a data frame to the input of ``module``.
        classes: names of the classes, in the order of the logits.
        recipe: recipe of the run, without its data.
        description: content of ``model.json``.
    """

    def __init__(
        self, module: nn.Module, recipe: Recipe, description: ModelDescription, encoder: TableEncoder | None
    ) -> None:
        self.module, self.recipe, self.description, self.encoder = module, recipe, description, encoder
        self.classes = tuple(description.classes)
        self.transform: Any = ImageTransform(recipe) if encoder is None else TableTransform(encoder)

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Names of the classes, under scikit-learn's name."""
        return np.array(self.classes)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.module.parameters()).device

    def logits(self, samples: Any, batch_size: int = 0) -> NDArray[np.float32]:
        """Logits (N, C).

        Args:
            samples: inputs of the network, a tensor; for a table, a data frame; for images, a list of paths or of
                PIL images.
            batch_size: number of rows that are computed at once; 0 is that of the training, which gives the logits of
                its test samples to the bit.

        Raises:
            ValueError: a column that is missing, or whose values are of another kind than in training.
            UnreadableImageError: an image cannot be decoded; names its path.
        """
        if isinstance(samples, Tensor) or self.encoder is not None:
            inputs = samples if isinstance(samples, Tensor) else self.transform(samples)
            return self._concatenated(inputs.split(batch_size or self.recipe.batch_size))
        if isinstance(samples, str | Path):
            samples = [samples]
        if all(isinstance(sample, str | Path) for sample in samples):
            return self._concatenated(self.image_batches(list(map(str, samples))))
        return self._concatenated(torch.stack([self.transform(x) for x in part]) for part in self._parts(samples))

    def predict_proba(self, samples: Any, calibrated: bool = False, balanced: bool = False) -> Array:
        """Probabilities (N, C); see :meth:`logits` and :meth:`probabilities`."""
        return self.probabilities(self.logits(samples), calibrated, balanced)

    def predict(self, samples: Any, balanced: bool = False) -> NDArray[np.str_]:
        """Name of the most probable class of each sample, (N,)."""
        return self.classes_[self.predict_proba(samples, balanced=balanced).argmax(1)]

    def probabilities(self, logits: Array, calibrated: bool = False, balanced: bool = False) -> Array:
        """Probabilities (N, C) of logits.

        Args:
            logits: (N, C).
            calibrated: divide the logits by the temperature that was fitted to validation data.
            balanced: take the class prior of the training data out, with the strength chosen on validation data.

        Raises:
            ValueError: both at once, or no temperature is stored.
        """
        self.check_adjustment(calibrated, balanced)
        found = logits.astype(np.float64)
        if calibrated:
            found /= self.description.temperature or 1.0
        if balanced:
            return np.exp(log_softmax(without_prior(found, self.description.train_counts, self.description.tau)))
        return np.exp(log_softmax(found))

    def check_adjustment(self, calibrated: bool, balanced: bool) -> None:
        """Refuse an adjustment that is not stored with the model.

        Raises:
            ValueError: as of :meth:`probabilities`.
        """
        if calibrated and balanced:
            raise ValueError("calibrated and balanced exclude each other: the temperature was fitted without the shift")
        if calibrated and self.description.temperature is None:
            raise ValueError("calibrated needs a temperature, but the run had no validation data to fit one to")

    def at_threshold(self, logits: Array, threshold: float | None = None) -> LabelArray:
        """Class of each sample, (N,): the rarer of two classes from a threshold on.

        Args:
            logits: (N, 2).
            threshold: probability, in [0, 1]; default: the stored one, of the best F1 on validation data.

        Raises:
            ValueError: not two classes, or no threshold is stored and none is given.
        """
        if len(self.classes) != 2:
            raise ValueError(f"the model has {len(self.classes)} classes; a threshold is for two")
        positive = self.description.positive
        threshold = self.description.threshold if threshold is None else threshold
        if threshold is None:
            raise ValueError("no threshold is stored; it is chosen on validation data, of which the run had none")
        return np.where(probability_of(logits, positive) >= threshold, positive, 1 - positive)

    def image_batches(self, paths: Sequence[str], workers: int = 0) -> Iterator[Tensor]:
        """Inputs of image files, a batch at a time, read by a number of processes."""
        loader = build_loader(new_images(paths), self.recipe, self.device, workers)
        return loader.eval_batches(torch.arange(len(paths)).split(self.recipe.batch_size))

    @torch.no_grad()
    def batch_logits(self, inputs: Tensor) -> NDArray[np.float32]:
        """Logits of one batch."""
        precision = PRECISIONS.get(self.recipe.precision)
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            return self.module(inputs.to(self.device)).float().cpu().numpy()

    def _concatenated(self, batches: Any) -> NDArray[np.float32]:
        found = [self.batch_logits(batch) for batch in batches]
        return np.concatenate(found) if found else np.zeros((0, len(self.classes)), dtype=np.float32)

    def _parts(self, samples: Any) -> Iterator[Any]:
        size = self.recipe.batch_size
        return (samples[start : start + size] for start in range(0, len(samples), size))
