"""Cyclical focal loss for PyTorch.

Names are imported when they are first used: the commands of the laboratory that train nothing start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    for module in ("functional", "imbalance", "linear", "losses", "sharded") if name in __all__ else ():
        found = import_module(f"cyclofocal.{module}")
        if hasattr(found, name):
            globals()[name] = getattr(found, name)
            return globals()[name]
    try:
        return import_module(f"cyclofocal.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"cyclofocal.{name}":
            raise
        raise AttributeError(f"module 'cyclofocal' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
