"""Label smoothing along the class prior, for `cyclofocal compare ... --losses results/prior_smoothing.py:NAME`.

With the prior in the logits the usual smoothing moves the decision: at its minimum a class of probability prior_j has
the logit log(smoothing / C) - log(prior_j), which for a rare class exceeds the logit of a learnt frequent one where the
frequent class is more than C (1 - smoothing) / smoothing times as frequent. A share of the prior itself leaves all
other classes at one logit. PLAN.md says what the losses are for.
"""

from typing import Any

import torch
from torch import Tensor

from cyclofocal import CyclicalFocalLoss, log_prior

SMOOTHING = 0.1


class _PriorSmoothed(CyclicalFocalLoss):
    prior: Tensor

    def __init__(self, class_counts: Tensor, **settings: Any) -> None:
        offset = log_prior(class_counts).float()
        super().__init__(**settings, logit_offset=offset)
        self.register_buffer("prior", offset.exp())

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        if not self.training:
            return super().forward(logits, target, sample_weight)
        own = torch.nn.functional.one_hot(target, logits.shape[1])
        return super().forward(logits, torch.lerp(own.float(), self.prior, SMOOTHING), sample_weight)


class PriorSmoothed(_PriorSmoothed):
    """Logit-adjusted cross-entropy, a tenth of the target spread along the prior."""

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts, gamma_pos=0.0, gamma_neg=0.0, gamma_hc=0.0)


class CyclicalPriorSmoothed(_PriorSmoothed):
    """The cyclical focal loss with the prior in the logits, a tenth of the target spread along the prior."""
