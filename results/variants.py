"""Single changes of the cyclical focal loss, for `cyclofocal compare ... --losses results/variants.py:NAME`.

All have the published setting (gammas 2/2/3, factor 4, label smoothing 0.1) and the class prior in the logits (tau 1);
`base` is `cyclical:tau=1`. PLAN.md says what they are for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cyclofocal import CyclicalFocalLoss, cyclical_focal_loss, log_prior
from cyclofocal.schedules import cyclical_eta

CAP = 0.45
SETTINGS = {"gamma_pos": 2.0, "gamma_neg": 2.0, "gamma_hc": 3.0, "label_smoothing": 0.1}


class _Variant(CyclicalFocalLoss):
    def __init__(self, class_counts: Tensor, schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__(**SETTINGS, logit_offset=log_prior(class_counts).float(), schedule=schedule)


class Capped(_Variant):
    """Eta never above 0.45, where the loss of two confusable classes has a single minimum."""

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts, lambda progress: min(cyclical_eta(progress, 4.0), CAP))


class Mirrored(_Variant):
    """Hard, easy, hard: eta is 0 at the beginning and the end, and 1 at a quarter of the training."""

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts, lambda progress: 1 - cyclical_eta(progress, 4.0))


class Detached(_Variant):
    """Weights without gradient: every term of the cross-entropy is multiplied by a constant."""

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        log_p = (logits.float() + self.logit_offset).log_softmax(1)
        own = torch.nn.functional.one_hot(target, logits.shape[1]).to(log_p.dtype)
        smoothing = SETTINGS["label_smoothing"]
        q = own * (1 - smoothing) + smoothing / logits.shape[1]
        return -(q * _weights(log_p.detach().exp(), own, float(self.eta)) * log_p).sum(1).mean()


class Normalised(_Variant):
    """Loss divided by the mean weight of the batch's targets, so that the effective learning rate stays the same."""

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            p = (logits.float() + self.logit_offset).softmax(1)
            own = torch.nn.functional.one_hot(target, logits.shape[1]).to(p.dtype)
            weight = (own * _weights(p, own, float(self.eta))).sum(1).mean()
        return super().forward(logits, target) / weight


class EtaByClass(_Variant):
    """Eta of a class c is eta * (1 - n_c / n_max): the head stays focal, the tail follows the cycle."""

    share: Tensor

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)
        self.register_buffer("share", (1 - class_counts / class_counts.max()).float())

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        logits = logits.float() + self.logit_offset
        focal, easy = (cyclical_focal_loss(logits, target, eta=eta, reduction="none", **SETTINGS) for eta in (0.0, 1.0))
        eta = float(self.eta) * self.share[target]
        return ((1 - eta) * focal + eta * easy).mean()  # the loss is linear in eta


def _weights(p: Tensor, own: Tensor, eta: float) -> Tensor:
    """Weights of all terms, (N, C); ``own`` is the one-hot target."""
    target = (1 - eta) * (1 - p) ** SETTINGS["gamma_pos"] + eta * (1 + p) ** SETTINGS["gamma_hc"]
    other = (1 - eta) * p ** SETTINGS["gamma_neg"] + eta
    return own * target + (1 - own) * other
