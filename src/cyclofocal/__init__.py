"""Cyclical focal loss for PyTorch."""

from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.imbalance import adjust_logits, class_counts, class_weights, log_prior
from cyclofocal.linear import linear_cyclical_focal_loss
from cyclofocal.losses import BinaryCyclicalFocalLoss, BinaryFocalLoss, CyclicalFocalLoss, FocalLoss
from cyclofocal.sharded import sharded_cyclical_focal_loss

__version__ = "0.1.0"

__all__ = [
    "BinaryCyclicalFocalLoss",
    "BinaryFocalLoss",
    "CyclicalFocalLoss",
    "FocalLoss",
    "adjust_logits",
    "binary_cyclical_focal_loss",
    "class_counts",
    "class_weights",
    "cyclical_focal_loss",
    "linear_cyclical_focal_loss",
    "log_prior",
    "sharded_cyclical_focal_loss",
]
