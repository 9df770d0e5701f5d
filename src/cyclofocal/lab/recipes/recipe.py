"""What an experiment consists of, as plain values that a record can hold."""

from dataclasses import dataclass

from cyclofocal.lab.longtail import ShotGroups


@dataclass(frozen=True)
class LossSettings:
    """One softmax loss at its settings; all five are the cyclical focal loss at some of them.

    ``cyclical_factor`` ``None`` stops the clock at eta 0, the (asymmetric) focal loss; all gammas 0 is cross-entropy.
    """

    name: str
    title: str
    gamma_pos: float = 0.0
    gamma_neg: float = 0.0
    gamma_hc: float = 0.0
    cyclical_factor: float | None = None
    label_smoothing: float = 0.0

    @property
    def is_cross_entropy(self) -> bool:
        return self.gamma_pos == self.gamma_neg == self.gamma_hc == 0


@dataclass(frozen=True)
class Recipe:
    """A data set, a model, an optimiser and their settings; everything of a run but the loss and the seed."""

    name: str
    title: str
    classes: int
    test_per_class: int
    head_images: int
    imbalance: float
    groups: ShotGroups
    width: int
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: int
    momentum: float
    weight_decay: float


CROSS_ENTROPY = LossSettings("ce", "cross-entropy")
SMOOTHED = LossSettings("smoothed", "label smoothing", label_smoothing=0.1)
FOCAL = LossSettings("focal", "focal", gamma_pos=2.0, gamma_neg=2.0)
ASYMMETRIC = LossSettings("asymmetric", "asymmetric focal", gamma_pos=0.0, gamma_neg=4.0, label_smoothing=0.1)
CYCLICAL = LossSettings(
    "cyclical",
    "cyclical focal",
    gamma_pos=2.0,
    gamma_neg=2.0,
    gamma_hc=3.0,
    cyclical_factor=4.0,
    label_smoothing=0.1,
)

LOSSES = (CROSS_ENTROPY, SMOOTHED, FOCAL, ASYMMETRIC, CYCLICAL)
"""Cyclical: the settings of the published CIFAR and ImageNet commands."""
