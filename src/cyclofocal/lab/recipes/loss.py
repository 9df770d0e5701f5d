"""Losses that experiments compare, and models for reference, as plain values for records."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class LossSettings:
    """Settings of a softmax loss; all losses are the cyclical focal loss at some of them.

    ``cyclical_factor`` ``None`` stops the clock at eta 0, the (asymmetric) focal loss; all gammas 0 is cross-entropy.
    Settings of imbalanced data follow from the training samples per class, n_c.

    Attributes:
        learning_rate_scale: factor of the recipe's learning rate, because losses have gradients of different size.
        file: ``PATH:NAME`` of a custom loss, which has none of the settings above; "" otherwise.
        digest: hash of that file, so that a changed file is another loss.
        trials: number of trainings by which :func:`cyclofocal.lab.compare.tuning.tuned` first chooses the settings;
            0: none.
        tau: factor of the logarithm of the class prior, which is added to the logits in training.
        class_weight: "", or the scheme of the class weights; see :func:`cyclofocal.class_weights`.
        weight_start: progress before which all class weights are 1.
        max_margin: largest of the margins that the target's logit is lowered by, in proportion to n_c^(-1/4) and times
            :data:`COSINE_SCALE`; the last layer is then normalised, and the logits are cosines times that scale.
        vs_gamma: exponent g of vector scaling, the factor (n_c / n_max)^g of the logits.
        smoothing_odds: odds of a learnt sample of the most frequent class over the rarest, from which the label
            smoothing follows; see :func:`cyclofocal.imbalance.matched_smoothing`. 0: off.
        sampler: "" for batches with every training sample once an epoch, or "balanced" for batches that draw every
            class as often as any other. The settings above follow from the class counts of the data all the same.
        estimator: "" for a loss of the network; else the model that is fitted in its place, one of :data:`ESTIMATORS`,
            which has none of the settings above but ``class_weight``.
        alpha: of a detection loss, share in [0, 1] of the positive side; None leaves both sides as they are.
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
    tau: float = 0.0
    class_weight: str = ""
    weight_start: float = 0.0
    max_margin: float = 0.0
    vs_gamma: float = 0.0
    sampler: str = ""
    estimator: str = ""
    alpha: float | None = None
    smoothing_odds: float = 0.0

    @property
    def needs_counts(self) -> bool:
        """True if the loss depends on the training samples per class (a custom one may as well)."""
        return any(getattr(self, name) for name in IMBALANCE)

    @property
    def is_cross_entropy(self) -> bool:
        """True for plain or smoothed cross-entropy."""
        return not (self.file or self.needs_counts) and self.gamma_pos == self.gamma_neg == self.gamma_hc == 0

    def flat(self) -> dict[str, Any]:
        """All fields as in records and run identities, which have those of :data:`OPTIONAL` only where they are set."""
        stored = asdict(self)
        return {f.name: stored[f.name] for f in fields(self) if f.name not in OPTIONAL or stored[f.name] != f.default}


IMBALANCE = ("tau", "class_weight", "weight_start", "max_margin", "vs_gamma", "smoothing_odds")
"""Settings that follow from the class counts."""

OPTIONAL = (*IMBALANCE, "sampler", "estimator", "alpha")
"""Fields that older runs do not have."""

COSINE_SCALE = 30.0
"""Largest logit of a normalised last layer."""


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

WEIGHTED = LossSettings("weighted", "weighted cross-entropy", class_weight="balanced")
"""Class weights in inverse proportion to the samples; their mean is 1."""

LOGIT_ADJUSTED = LossSettings("logit-adjusted", "logit-adjusted", tau=1.0)
"""Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021: cross-entropy of z + tau log(prior)."""

BALANCED_SOFTMAX = LossSettings("balanced-softmax", "balanced softmax", tau=1.0)
"""Ren et al., *Balanced Meta-Softmax*, NeurIPS 2020: cross-entropy of z + log(n_c), so logit adjustment at tau 1."""

CLASS_BALANCED_FOCAL = LossSettings(
    "class-balanced-focal", "class-balanced focal", gamma_pos=2.0, gamma_neg=2.0, class_weight="effective"
)
"""Cui et al., *Class-Balanced Loss Based on Effective Number of Samples*, CVPR 2019: beta 0.9999, here gamma 2."""

LDAM_DRW = LossSettings("ldam-drw", "LDAM-DRW", class_weight="effective", weight_start=0.8, max_margin=0.5)
"""Cao et al., *Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss*, NeurIPS 2019: margins
n_c^(-1/4), the largest 0.5, scale 30 on a normalised last layer, effective-number weights from 80 % of training."""

VS = LossSettings("vs", "vector scaling", tau=1.0, vs_gamma=0.3)
"""Kini et al., *Label-Imbalanced and Group-Sensitive Classification under Overparameterization*, NeurIPS 2021."""

LOSSES = (
    CROSS_ENTROPY,
    SMOOTHED,
    FOCAL,
    ASYMMETRIC,
    CYCLICAL,
    WEIGHTED,
    LOGIT_ADJUSTED,
    BALANCED_SOFTMAX,
    CLASS_BALANCED_FOCAL,
    LDAM_DRW,
    VS,
)
"""All losses; the cyclical one has the settings of the published CIFAR and ImageNet commands."""

DETECTION_LOSSES = (
    LossSettings("bce", "binary cross-entropy"),
    LossSettings("focal", "focal", gamma_pos=2.0, gamma_neg=2.0, alpha=0.25),
    LossSettings("asymmetric", "asymmetric focal", gamma_pos=0.0, gamma_neg=4.0),
    LossSettings(
        "cyclical", "cyclical focal", gamma_pos=2.0, gamma_neg=2.0, gamma_hc=3.0, cyclical_factor=4.0, alpha=0.25
    ),
    LossSettings(
        "class-balanced-focal",
        "class-balanced focal",
        gamma_pos=2.0,
        gamma_neg=2.0,
        alpha=0.25,
        class_weight="effective",
    ),
)
"""Losses over a sigmoid for the anchors of a detector; ``focal`` is that of RetinaNet as published.

A class weight multiplies alpha, so the positive side of its class alone. Reference for the exponents of
``asymmetric``: Ridnik et al., *Asymmetric Loss For Multi-Label Classification*, ICCV 2021.
"""

MAJORITY = LossSettings("majority", "majority class", estimator="majority")
"""The class frequencies as the probabilities of every sample, so the largest class as its prediction."""

LOGISTIC_REGRESSION = LossSettings("logistic-regression", "logistic regression", estimator="logistic-regression")
"""scikit-learn's, on scaled inputs, with its default C."""

LIGHTGBM = LossSettings("lightgbm", "LightGBM", estimator="lightgbm")
"""LightGBM's boosted trees at their defaults, with early stopping where there are validation rows."""


def _with_class_weights(loss: LossSettings) -> LossSettings:
    """The same model with balanced class weights, named as the command line names it."""
    name, title = f"{loss.name}:class_weight=balanced", f"{loss.title} (class_weight balanced)"
    return replace(loss, name=name, title=title, class_weight="balanced")


ESTIMATORS = (
    MAJORITY,
    LOGISTIC_REGRESSION,
    _with_class_weights(LOGISTIC_REGRESSION),
    LIGHTGBM,
    _with_class_weights(LIGHTGBM),
)
"""References, not losses: models that are fitted to the same rows, to show what a network of them is worth."""

IMBALANCED_FROM = 3.0
"""Ratio of the largest to the smallest class above which :data:`FOR_IMBALANCED` are compared by default."""

FOR_BALANCED = (CROSS_ENTROPY, SMOOTHED, FOCAL, ASYMMETRIC, CYCLICAL)
FOR_IMBALANCED = (CROSS_ENTROPY, SMOOTHED, WEIGHTED, LOGIT_ADJUSTED, FOCAL, CYCLICAL)
FOR_BOXES = (DETECTION_LOSSES[1], DETECTION_LOSSES[0], DETECTION_LOSSES[3])
"""Compared by default on images with boxes: the published loss of RetinaNet first, which is the reference."""
