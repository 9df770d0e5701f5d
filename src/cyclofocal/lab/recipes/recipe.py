"""Recipe of an experiment, as plain values for records."""

import functools
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass, replace
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from cyclofocal.lab.data.config import DEFAULTS, FIELD_TYPES, LATER_FIELDS, DataConfig, data_config
from cyclofocal.lab.longtail import OLTR, ShotGroups

CycleRange = tuple[float, float]
"""Smallest and largest value of a cycling setting: the first at eta 1, the second at eta 0."""


CROPS = ("crop", "crop-flip")
"""Augmentations with a random crop, on the device."""

NOT_STORED = ("data", "facts", "features_folder")
"""Fields of a recipe that a record holds in another form, or not at all."""

NOT_STORED_IF_OFF = ("early_stopping",)
"""Fields that a record lacks at their defaults, so that earlier runs keep their identity."""


@dataclass(frozen=True)
class Facts:
    """Cost, result and command of a recipe; no part of its identity.

    Attributes:
        cost: time on which hardware.
        expected: result to expect.
        command: command line that runs it; "" for ``cyclofocal reproduce NAME``.
    """

    cost: str = "depends on the data"
    expected: str = "not yet run"
    command: str = ""


@dataclass(frozen=True)
class Recipe:
    """Data, model, optimizer and their settings: everything of a run but the loss and the seed.

    Attributes:
        name, title: name in commands and paths, and readable title.
        data: source of the samples and how its splits are made.
        groups: convention of many-, medium- and few-shot classes.
        model: one of :data:`cyclofocal.lab.training.models.MODELS`, or any name that timm knows.
        width: channels or units of the first layer of built-in models; 0 is their default, and required by timm's.
        pretrained: begin with timm's ImageNet weights.
        image_size: height and width of the model's input, in pixels.
        channels: channels of the model's input, 1 (grey) or 3 (RGB).
        mean, std: mean and standard deviation of the pixels in [0, 1], per channel or one for all.
        epochs: epochs of the learning-rate schedule.
        cooldown_epochs: epochs after it, at ``min_learning_rate``; part of the training that eta spans.
        early_stopping: epochs without a smaller validation loss after which training stops; the weights of the epoch
            with the smallest are evaluated and stored. 0: off, the last epoch counts, as without validation data. See
            :func:`~cyclofocal.lab.training.early_stopping.build_measure`. Schedules span all epochs either way.
        batch_size: batch size over all processes.
        optimizer: "sgd", "adamw" (its first beta is ``momentum``), or any name that timm knows.
        learning_rate: learning rate after the warm-up.
        momentum, nesterov, weight_decay: settings of the optimizer.
        decay_norms: apply weight decay to biases and normalisation layers too.
        schedule: "cosine" or "linear" to ``min_learning_rate``, or "step": times ``decay`` at each of ``milestones``.
        milestones: epochs at which "step" decays.
        warmup_epochs: epochs of a linear warm-up, times the schedule.
        warmup_learning_rate: its initial value; None is one step of ``warmup_epochs + 1`` equal ones.
        clock: scheduled values change from "epoch" to epoch (as published) or from "step" to step.
        augment: "none"; "crop", for images whose mirror images are of other classes; "crop-flip"; or "timm": random
            resized crop, flip, ``auto_augment``.
        crop_padding: pixels around the image before a random crop of "crop" and "crop-flip".
        cutout: side in pixels of a square that "crop" and "crop-flip" blank; 0: none.
        auto_augment: timm's name of a policy for "timm", such as "rand-m9-mstd0.5-inc1".
        random_erasing: probability of timm's random erasing (per pixel), for "timm".
        aug_splits: copies of every image in a batch, the first without ``auto_augment`` and erasing; 1: off.
        split_batch_norm: separate batch statistics for each split.
        mixup, cutmix: parameter of the Beta distribution; 0: off.
        ema_decay: decay of an exponential moving average of the weights, which is then evaluated; 0: none.
        precision: precision of the forward pass, "no" (float32), "bf16" or "fp16".
        channels_last: use the channels-last memory layout.
        sync_batch_norm: compute batch statistics over all processes, as one process would.
        clip_norm: maximum norm of the gradient of all weights; None: not clipped.
        weight_decay_range, temperature_range, clip_norm_range: general cyclical training: smallest and largest value
            of settings that cycle with the loss (softmax temperature: logits are divided by it); None: does not.
        facts: cost, expected result and command; not compared, and not stored with the run.

    Raises:
        ValueError: a setting out of its range, or two that do not fit together.
    """

    name: str
    title: str
    data: DataConfig
    epochs: int
    learning_rate: float

    groups: ShotGroups = OLTR

    model: str = "small-resnet"
    width: int = 0
    pretrained: bool = False
    image_size: int = 32
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    cooldown_epochs: int = 0
    early_stopping: int = 0
    batch_size: int = 128
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = True
    schedule: Literal["cosine", "linear", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    min_learning_rate: float = 0.0
    warmup_epochs: int = 0
    warmup_learning_rate: float | None = None
    clock: Literal["epoch", "step"] = "epoch"

    augment: Literal["none", "crop", "crop-flip", "timm"] = "none"
    crop_padding: int = 4
    cutout: int = 0
    auto_augment: str = ""
    random_erasing: float = 0.0
    aug_splits: int = 1
    split_batch_norm: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0

    ema_decay: float = 0.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    sync_batch_norm: bool = True
    clip_norm: float | None = None
    weight_decay_range: CycleRange | None = None
    temperature_range: CycleRange | None = None
    clip_norm_range: CycleRange | None = None

    facts: Facts = field(default_factory=Facts, compare=False)

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_together()

    def with_data(self, **changes: Any) -> Self:
        """Replace fields of the data configuration."""
        return replace(self, data=replace(self.data, **changes))

    def flat(self) -> dict[str, Any]:
        """All fields and those of the data in one dictionary, as in records and run identities.

        Those of :data:`NOT_STORED_IF_OFF` are left out at their defaults.
        """
        stored = self.data.flat() | asdict(self)
        left_out = (*NOT_STORED, *(name for name in NOT_STORED_IF_OFF if not stored[name]))
        return {name: stored[name] for name in dict.fromkeys((*FIRST, *stored)) if name not in left_out}

    @classmethod
    def from_flat(cls, stored: Mapping[str, Any]) -> Self:
        """Build a recipe from the fields of a record; inverse of :meth:`flat`.

        Raises:
            TypeError: a field that this version does not know.
            ValueError: a value that it refuses.
        """
        own: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        own["data"] = data_config(own.pop("source"), **{name: own.pop(name) for name in DEFAULTS if name in own})
        if "groups" in own:
            own["groups"] = ShotGroups(**own["groups"])
        return cls(**own)

    @property
    def total_epochs(self) -> int:
        """Epochs of the schedule and of the cooldown."""
        return self.epochs + self.cooldown_epochs

    def _check_choices(self) -> None:
        hints = get_type_hints(type(self))
        for name, hint in hints.items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(hint))}")

    def _check_numbers(self) -> None:
        for names, least in LEAST.items():
            for name in names:
                if not getattr(self, name) >= least:  # also refuses nan
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("learning_rate", "decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        for name in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
                raise ValueError(f"{name} is {value}; it must be finite")
        if not all(std > 0 for std in self.std):
            raise ValueError(f"std is {self.std}; it must be greater than 0")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate is {self.min_learning_rate}; it must be at most learning_rate {self.learning_rate}"
            )
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing is {self.random_erasing}; it must be in [0, 1]")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; it must be 1 (grey) or 3 (RGB)")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values for {self.channels} channels; give 1 or"
                    f" {self.channels}"
                )
        for name in ("weight_decay_range", "temperature_range", "clip_norm_range"):
            bounds, open_end = getattr(self, name), name != "weight_decay_range"
            if bounds and not (0 <= bounds[0] <= bounds[1] and (bounds[0] > 0 or not open_end)):
                raise ValueError(
                    f"{name} is {bounds}; it must be two numbers {'0 <' if open_end else '0 <='} min <= max"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be greater than 0, or none")

    def _check_together(self) -> None:
        of_timm = {"auto_augment": "", "random_erasing": 0.0, "aug_splits": 1}
        for name, off in of_timm.items():
            if self.augment != "timm" and getattr(self, name) != off:
                raise ValueError(f"{name} is {getattr(self, name)!r} and augment is {self.augment!r}; it needs 'timm'")
        if self.cutout and self.augment not in CROPS:
            raise ValueError(f"cutout is {self.cutout} and augment is {self.augment!r}; it needs 'crop' or 'crop-flip'")
        if self.split_batch_norm and self.aug_splits < 2:
            raise ValueError(f"split_batch_norm needs aug_splits of 2 or more; it is {self.aug_splits}")
        if self.split_batch_norm and self.sync_batch_norm:
            raise ValueError("split_batch_norm and sync_batch_norm exclude each other; set one of them to false")
        if self.aug_splits > 1 and (self.mixup or self.cutmix):
            raise ValueError(f"aug_splits is {self.aug_splits}; mixup and cutmix must then be 0")
        if self.schedule == "step" and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones are {self.milestones}; they must rise")


@functools.cache
def flat_schema(kind: type[Recipe]) -> type:
    """Build a dataclass with the fields of :meth:`Recipe.flat` and their types, to check what a record holds."""
    hints = get_type_hints(kind) | {"source": str} | FIELD_TYPES
    required = ["source", *(entry.name for entry in fields(kind) if entry.default is entry.default_factory is MISSING)]
    names = [name for name in dict.fromkeys((*required, *hints)) if name not in NOT_STORED]
    required = [name for name in required if name not in NOT_STORED]
    return make_dataclass(
        f"Flat{kind.__name__}",
        [(name, hints[name]) if name in required else (name, hints[name], field(default=None)) for name in names],
    )


LEAST = {
    ("epochs", "batch_size", "image_size", "aug_splits"): 1,
    ("cooldown_epochs", "warmup_epochs", "width", "crop_padding", "cutout", "mixup", "cutmix", "weight_decay"): 0,
    ("min_learning_rate", "early_stopping"): 0,
}
"""Smallest legal value."""

FIRST = ("name", "title", "source", "epochs", "learning_rate")
"""First fields of records; the other fields of the data follow, then the other fields of the recipe."""

FLAT_DEFAULTS = (
    {
        name: value
        for name, value in Recipe("", "", DataConfig(""), epochs=1, learning_rate=1.0).flat().items()
        if name not in FIRST
    }
    | {name: DEFAULTS[name] for name in LATER_FIELDS}
    | {name: getattr(Recipe, name) for name in NOT_STORED_IF_OFF}
)
"""Values of fields that older records lack."""
