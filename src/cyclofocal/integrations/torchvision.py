"""torchvision: the sigmoid loss in the classification heads of RetinaNet and FCOS."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import check_criterion
from cyclofocal.losses import BinaryCyclicalFocalLoss

require_host("torchvision", "0.15")

from torchvision.models.detection.fcos import FCOSHead  # noqa: E402
from torchvision.models.detection.retinanet import RetinaNetClassificationHead  # noqa: E402

THEIR_LOSS = "sigmoid_focal_loss"


def swap_loss(model: nn.Module, criterion: BinaryCyclicalFocalLoss) -> None:
    """Replace the focal loss of a RetinaNet or FCOS by ``criterion``, in place.

    Everything else remains torchvision's: the choice of anchors, the sum over them, the division by the number of
    foreground anchors. At eta 0 with ``alpha=0.25`` and gammas 2 the loss equals torchvision's.

    The criterion becomes a submodule of the model: it moves with it, and its clock is in the model's ``state_dict``
    (load other weights before). Call ``set_progress`` during training.

    Args:
        model: ``torchvision.models.detection.RetinaNet`` or ``FCOS``, or a module around one.
        criterion: ``BinaryCyclicalFocalLoss(alpha=0.25, reduction="sum")``.

    Raises:
        TypeError, ValueError: criterion is another loss, counts steps itself or does not sum; or there is no such head.
        RuntimeError: torchvision's head no longer calls the loss to replace.

    Example:
        >>> from torchvision.models.detection import retinanet_resnet50_fpn
        >>> model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
        >>> swap_loss(model, BinaryCyclicalFocalLoss(alpha=0.25, reduction="sum"))
        >>> model.head.classification_head.criterion.alpha
        0.25
    """
    if not isinstance(criterion, BinaryCyclicalFocalLoss):
        raise TypeError(f"criterion is a {type(criterion).__name__}; it must be a BinaryCyclicalFocalLoss")
    check_criterion(criterion, "and call criterion.set_progress(progress) before each epoch or step")
    if criterion.reduction != "sum":
        raise ValueError(f'reduction is {criterion.reduction!r}; it must be "sum", the head divides by its foreground')
    replace_loss(model, criterion)


def replace_loss(model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace the focal loss of a RetinaNet or FCOS by any sum over logits (anchors, C) and targets of that shape.

    A module becomes a submodule of the model, a function does not.

    Raises:
        ValueError: there is no such head.
        RuntimeError: torchvision's head no longer calls the loss to replace.
    """
    heads: list[Any] = [module for module in model.modules() if isinstance(module, (*SWAPPED, *SWAPPED.values()))]
    if not heads:
        raise ValueError(f"model is a {type(model).__name__} without the head of torchvision's RetinaNet or FCOS")
    for head in heads:
        if THEIR_LOSS not in head.compute_loss.__code__.co_names and type(head) not in SWAPPED.values():
            raise RuntimeError(f"{type(head).__name__}.compute_loss does not call {THEIR_LOSS}: nothing to replace")
        head.__class__ = SWAPPED.get(type(head), type(head))
        head.criterion = criterion


def _compute_loss(theirs: Any, head: Any, *args: Any) -> Any:
    """Run torchvision's compute_loss with our loss in place of sigmoid_focal_loss."""

    def loss(inputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return head.criterion(inputs, targets)

    return FunctionType(theirs.__code__, {**theirs.__globals__, THEIR_LOSS: loss})(head, *args)


class _RetinaNetClassificationHead(RetinaNetClassificationHead):
    def compute_loss(self, *args: Any) -> Any:
        return _compute_loss(RetinaNetClassificationHead.compute_loss, self, *args)


class _FCOSHead(FCOSHead):
    def compute_loss(self, *args: Any) -> Any:
        return _compute_loss(FCOSHead.compute_loss, self, *args)


SWAPPED: dict[type, type] = {RetinaNetClassificationHead: _RetinaNetClassificationHead, FCOSHead: _FCOSHead}
