"""Other classifiers on the features of a first stage: retrained, normalised or rescaled."""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from cyclofocal.lab.messages import preview
from cyclofocal.lab.training import rng
from cyclofocal.lab.training.batches import epoch_batches
from cyclofocal.lab.training.optim import Criterion
from cyclofocal.lab.training.sampler import CLASS_AWARE, class_aware_batches
from cyclofocal.ranges import check_at_least
from cyclofocal.schedules import cosine, epoch_progress

Classifier = TypeVar("Classifier", bound=nn.Module)

RETRAIN = CLASS_AWARE + 1
"""Purpose of the random numbers: the second part of the key, after the seed."""


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit to stored features by SGD, with a cosine decay of the learning rate.

    Attributes:
        sampling: "class-aware", every class alike; or "plain", every image once an epoch.
        epochs, batch_size: at least 1.
        learning_rate: of the first epoch, > 0.
        momentum, weight_decay: of SGD.

    Raises:
        ValueError: a setting out of its range.

    The defaults are those of Kang et al. (ICLR 2020) for ImageNet-LT.
    """

    sampling: Literal["class-aware", "plain"] = "class-aware"
    epochs: int = 10
    batch_size: int = 512
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.sampling not in ("class-aware", "plain"):
            raise ValueError(f"sampling is {self.sampling!r}; it must be 'class-aware' or 'plain'")
        check_at_least("epochs", self.epochs)
        check_at_least("batch_size", self.batch_size)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be greater than 0")


BALANCED = FitConfig()
PLAIN_SAMPLING = FitConfig(sampling="plain")


def fit_crt(
    features: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    criterion: Criterion = nn.functional.cross_entropy,
    fit: FitConfig = BALANCED,
) -> nn.Linear:
    """Classifier re-training (cRT): a new linear classifier on frozen features, every class sampled alike.

    With ``PLAIN_SAMPLING`` and a criterion with ``logit_offset`` it is a balanced softmax on frozen features.

    Args:
        features: (N, D), stage 1's of the training images.
        labels: (N,).
        classes: C.
        seed: of the initialisation and the sampling.
        criterion: mean loss of logits and labels; a cyclical one has its clock set, over the epochs of ``fit``,
            which must be 3 or more for it to meet its focal phase.
        fit: how.

    Raises:
        ValueError: features that are not finite or do not fit the labels, a class without image, a label beyond them.

    Reference: Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020.
    """
    _check(features, labels, classes)
    with rng.seeded(seed, RETRAIN):
        classifier = nn.Linear(features.shape[1], classes)
    return _fitted(classifier.to(features), features, labels, seed, criterion, fit)


def fit_lws(
    classifier: nn.Linear,
    features: Tensor,
    labels: Tensor,
    seed: int,
    criterion: Criterion = nn.functional.cross_entropy,
    fit: FitConfig = BALANCED,
) -> "ScaledClassifier":
    """Learnable weight scaling (LWS): stage 1's classifier with one factor per class, which alone is learnt.

    Arguments, errors and reference as of :func:`retrained`; ``classifier`` is left as it is.
    """
    _check(features, labels, classifier.out_features)
    return _fitted(ScaledClassifier(classifier).to(features), features, labels, seed, criterion, fit)


def tau_normalised(classifier: nn.Linear, tau: float = 1.0) -> nn.Linear:
    r"""Tau-normalisation: every class's weight divided by its norm to the power of tau, and no bias.

    .. math:: \tilde w_c = w_c / |w_c|^\tau

    tau 0 leaves the weights unchanged, tau 1 gives all the same length. Choose it on validation images, in [0, 1].

    Raises:
        ValueError: tau is not a finite number of at least 0, or a weight is all 0.

    Reference: Kang et al., ICLR 2020, section 4.
    """
    if not 0 <= tau < float("inf"):
        raise ValueError(f"tau is {tau}; it must be at least 0 and finite")
    with torch.no_grad():
        norms = torch.linalg.vector_norm(classifier.weight, dim=1, keepdim=True)
        if not norms.all():
            raise ValueError(f"the weight of class {int(norms.argmin())} is all 0; it cannot be normalised")
        normalised = nn.utils.skip_init(
            nn.Linear, classifier.in_features, classifier.out_features, bias=False, dtype=norms.dtype
        ).to(norms.device)
        normalised.weight.copy_(classifier.weight / norms**tau)
    return normalised


class ScaledClassifier(nn.Module):
    """A linear classifier whose weights stay, and whose logits have a factor per class."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", classifier.weight.detach().clone())
        self.register_buffer("bias", None if classifier.bias is None else classifier.bias.detach().clone())
        self.scales = nn.Parameter(torch.ones(classifier.out_features))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of ``features`` (N, D)."""
        return self.scales * nn.functional.linear(features, self.weight, self.bias)


def _fitted(
    classifier: Classifier, features: Tensor, labels: Tensor, seed: int, criterion: Criterion, fit: FitConfig
) -> Classifier:
    """The classifier after all epochs of the fit."""
    optimizer = torch.optim.SGD(
        classifier.parameters(), fit.learning_rate, momentum=fit.momentum, weight_decay=fit.weight_decay
    )
    for epoch in range(fit.epochs):
        if hasattr(criterion, "set_progress"):
            criterion.set_progress(epoch_progress(epoch, fit.epochs))
        optimizer.param_groups[0]["lr"] = fit.learning_rate * cosine(1 - epoch / fit.epochs)
        for batch in _batches(labels, seed, epoch, fit):
            loss = criterion(classifier(features[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return classifier


def _batches(labels: Tensor, seed: int, epoch: int, fit: FitConfig) -> tuple[Tensor, ...]:
    if fit.sampling == "plain":
        return epoch_batches(seed, epoch, len(labels), fit.batch_size)
    return class_aware_batches(labels.cpu().numpy(), seed, epoch, fit.batch_size)


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
        raise ValueError(
            f"features are {tuple(features.shape)} and labels {tuple(labels.shape)}; they must be (N, D) and (N,)"
        )
    if not features.isfinite().all():
        raise ValueError("features hold a value that is not finite: the first stage has diverged")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels are {labels.min()} to {labels.max()}; they must be 0 to {classes - 1}")
    empty = (labels.bincount(minlength=classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{len(empty)} of {classes} classes have no image: {preview(empty)}")
