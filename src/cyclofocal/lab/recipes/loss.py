"""Losses that experiments compare, as plain values for records."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LossSettings:
    """Settings of a softmax loss; all five losses are the cyclical focal loss at some of them.

    ``cyclical_factor`` ``None`` stops the clock at eta 0, the (asymmetric) focal loss; all gammas 0 is cross-entropy.

    Attributes:
        learning_rate_scale: factor of the recipe's learning rate, because losses have gradients of different size.
        file: ``PATH:NAME`` of a custom loss, which has none of the settings above; "" otherwise.
        digest: hash of that file, so that a changed file is another loss.
        trials: number of trainings by which :func:`cyclofocal.lab.compare.tuning.tuned` first chooses the settings;
            0: none.
    """

    name: str
    title: str
    gamma_pos: float = 0.0
    gamma_neg: float = 0.0
    gamma_hc: float = 0.0
    cyclical_factor: float | None = None
    label_smoothing: float = 0.0
    learning_rate_scale: float = 1.0
    file: str = ""
    digest: str = ""
    trials: int = 0

    @property
    def is_cross_entropy(self) -> bool:
        return not self.file and self.gamma_pos == self.gamma_neg == self.gamma_hc == 0


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
"""All losses; the cyclical one has the settings of the published CIFAR and ImageNet commands."""
