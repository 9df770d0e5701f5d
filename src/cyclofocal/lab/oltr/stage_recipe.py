"""The recipe of a stage of open long-tailed recognition, and the pair of both stages."""

from dataclasses import dataclass, field

from cyclofocal.lab.data.config import DataConfig
from cyclofocal.lab.oltr.open_set_metrics import THRESHOLD
from cyclofocal.lab.recipes.loss import LossSettings
from cyclofocal.lab.recipes.recipe import Facts, Recipe

WEIGHT = 0.01


@dataclass(frozen=True)
class StageRecipe(Recipe):
    """A stage: 1 is plain training, 2 has attention, memory, meta-embedding and class-aware sampling.

    Attributes:
        stage: 1 or 2.
        held_out_classes: number of classes, the last ones of the source, that are not trained; their test images are
            the open set.
        open_source: a list file or a folder of images of no known class, the open set; "": none.
        open_root: where the paths of a list begin; "": in its own folder.
        threshold: confidence below which a test image is rejected as unknown.
        per_class: images of a class at a time, in stage 2.
        weights_file: weights that stage 1 begins with, of Caffe's ResNet-152 or another in its layout; "": none.
        feature_length: number of features that stage 1 narrows to before the classifier; 0: it does not.
        features_lr_scale: learning rate of the first stage's weights and of the attention, times ``learning_rate``.
        frozen: stage 2 leaves the first stage's weights as they are, but for the layer that narrows.
        centroids_lr_scale: learning rate of the memory, times ``learning_rate``.
        centroid_weight: of the centroid loss in the total.
        first: a hash of stage 1 and its losses, set by the program; the same for all seeds and losses.

    Raises:
        ValueError: as of a recipe; a stage 2 with mixed targets or a moving average.
    """

    stage: int = 1
    held_out_classes: int = 0
    open_source: str = ""
    open_root: str = ""
    threshold: float = THRESHOLD
    per_class: int = 4
    weights_file: str = ""
    feature_length: int = 0
    features_lr_scale: float = 1.0
    frozen: bool = False
    centroids_lr_scale: float = 1.0
    centroid_weight: float = WEIGHT
    first: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage not in (1, 2):
            raise ValueError(f"stage is {self.stage}; it must be 1 or 2")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}; it must be a probability, in [0, 1]")
        for name in (
            *("held_out_classes", "feature_length", "features_lr_scale", "centroids_lr_scale", "centroid_weight"),
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.held_out_classes and self.open_source:
            raise ValueError(
                f"held_out_classes is {self.held_out_classes} and open_source {self.open_source!r}; give one open set"
            )
        if self.weights_file and self.pretrained:
            raise ValueError(f"weights_file is {self.weights_file!r} and pretrained true; the weights come from one")
        if self.stage == 2 and (self.mixup or self.cutmix or self.ema_decay or self.aug_splits > 1):
            raise ValueError("stage 2 has no mixup, cutmix, ema_decay or aug_splits; set them to 0, 0, 0 and 1")


@dataclass(frozen=True)
class TwoStages:
    """Both stages of an experiment, and the losses of each, in the same order.

    Attributes:
        first, second: recipes of the stages, of the same data and model.
        losses: pairs of the loss of stage 1 and that of stage 2, which have the same name.
        facts: cost and expected result.
        custom_images: True if the images are the user's, which are checked for copies before training.
    """

    first: StageRecipe
    second: StageRecipe
    losses: tuple[tuple[LossSettings, LossSettings], ...]
    facts: Facts = field(default_factory=Facts)
    custom_images: bool = False

    def __post_init__(self) -> None:
        if (self.first.stage, self.second.stage) != (1, 2):
            raise ValueError(f"stages are {self.first.stage} and {self.second.stage}; they must be 1 and 2")
        if patience := max(self.first.early_stopping, self.second.early_stopping):
            raise ValueError(f"early_stopping is {patience}; both stages train all their epochs, so it must be 0")
        first, second = self.first.flat(), self.second.flat()
        for name in SHARED:
            if first[name] != second[name]:
                raise ValueError(
                    f"{name} is {first[name]!r} in stage 1 and {second[name]!r} in stage 2; both stages must agree"
                )

    def pair(self, loss: LossSettings) -> tuple[LossSettings, LossSettings]:
        """The losses of the stages by the name of a loss; one that has no pair is the loss of both."""
        return next((pair for pair in self.losses if pair[0].name == loss.name), (loss, loss))


SHARED = (*DataConfig("").flat(), "held_out_classes", "model", "width", "feature_length", "image_size", "channels")
"""Fields in which both stages must agree."""
