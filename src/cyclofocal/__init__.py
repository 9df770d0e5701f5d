"""Cyclical focal loss for PyTorch."""

from cyclofocal.functional import binary_cyclical_focal_loss, cyclical_focal_loss
from cyclofocal.linear import linear_cyclical_focal_loss
from cyclofocal.losses import BinaryCyclicalFocalLoss, CyclicalFocalLoss
from cyclofocal.sharded import sharded_cyclical_focal_loss

__version__ = "0.1.0"

__all__ = [
    "BinaryCyclicalFocalLoss",
    "CyclicalFocalLoss",
    "binary_cyclical_focal_loss",
    "cyclical_focal_loss",
    "linear_cyclical_focal_loss",
    "sharded_cyclical_focal_loss",
]
