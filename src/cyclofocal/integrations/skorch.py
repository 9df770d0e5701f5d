"""skorch: the losses as a net's criterion, and the callback that sets their progress."""

from typing import Any

import torch
from torch import Tensor

from cyclofocal.integrations.host import require_host
from cyclofocal.integrations.progress import Loss, check_criterion, set_clock
from cyclofocal.ranges import check_at_least

require_host("skorch", "1.0")

from skorch.callbacks import Callback  # noqa: E402


def probabilities(logits: Tensor) -> Tensor:
    """Return the softmax of (N, C), or both sides of the sigmoid of (N,); for ``predict_nonlinearity``.

    Example:
        >>> probabilities(torch.zeros(1, 2)), probabilities(torch.zeros(1))
        (tensor([[0.5000, 0.5000]]), tensor([[0.5000, 0.5000]]))
    """
    if logits.dim() > 1:
        return logits.softmax(-1)
    return torch.stack([(-logits).sigmoid(), logits.sigmoid()], -1)


class CyclicalFocalCallback(Callback):
    """Callback that sets the clock of a net's criterion before every batch of training.

    Use it with ``criterion=CyclicalFocalLoss`` (settings as in ``criterion__gamma_hc=2.0``) and
    ``predict_nonlinearity=probabilities``, as skorch would otherwise return logits as probabilities; or with
    ``criterion=CyclicalFocalLoss.from_counts, criterion__counts=counts, criterion__tau=1.0``, which trains with the
    class prior and predicts without it. Progress follows from the epochs in the net's history, which skorch's
    checkpoints contain. Validation uses plain cross-entropy, smoothed if the criterion is.

    Args:
        total_epochs: epochs of the whole training, so that a resumed one continues its cycle; None: one cycle takes the
            ``max_epochs`` of the net, counted from the start of ``fit`` or ``partial_fit``.

    Raises:
        ValueError: total_epochs < 1; in training: the net has no ``criterion_``, the criterion counts steps
            itself, or probabilities would be logits.
        TypeError: in training: the criterion has no clock.

    Example:
        >>> from cyclofocal import CyclicalFocalLoss
        >>> from skorch import NeuralNetClassifier
        >>> settings = {"criterion": CyclicalFocalLoss, "predict_nonlinearity": probabilities}
        >>> net = NeuralNetClassifier(torch.nn.Linear(4, 3), callbacks=[CyclicalFocalCallback()], **settings)
    """

    def __init__(self, total_epochs: int | None = None) -> None:
        check_at_least("total_epochs", total_epochs)
        self.total_epochs = total_epochs

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        if not hasattr(net, "criterion_"):
            losses = [name for name, value in vars(net).items() if isinstance(value, Loss)]
            raise ValueError(
                f"{type(net).__name__} has no criterion_, whose clock this callback sets; let its"
                f" initialize_criterion set that attribute{' in place of ' if losses else ''}{', '.join(losses)}"
            )
        check_criterion(net.criterion_)
        if net.predict_nonlinearity == "auto":
            raise ValueError(
                'predict_nonlinearity is "auto", so skorch would return logits as probabilities; it must be'
                " cyclofocal.integrations.skorch.probabilities, or None to predict logits"
            )
        self.start_ = len(net.history) if self.total_epochs is None else 0

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        self.batches_ = len(net.get_iterator(dataset_train, training=True))

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        if training:
            epoch, index = len(net.history) - 1 - self.start_, len(net.history[-1]["batches"]) - 1
            total_epochs = self.total_epochs or net.max_epochs
            set_clock(net.criterion_, epoch * self.batches_ + index, total_epochs * self.batches_)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:  # noqa: N803
        net.criterion_.end_training()
