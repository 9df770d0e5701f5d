"""Classifiers that replace a finished run's own, by name."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cyclofocal.lab.oltr.decoupled import FitConfig
    from cyclofocal.lab.oltr.features import Features

METHODS = {
    "plain": "the run's own",
    "crt": "cRT",
    "tau": "tau-norm",
    "lws": "LWS",
    "adjusted": "logit adjustment",
    "balanced-softmax": "balanced softmax",
    "class-balanced": "class-balanced weights",
    "effective-number": "effective-number weights",
}
"""Titles of the classifiers: the run's own, and those of :mod:`~cyclofocal.lab.oltr.decoupled` in its place."""


def logits_of(name: str, features: "Features", fit: "FitConfig", tau: float | None) -> "tuple[Tensor, str]":
    """Logits of the test images by one method, and what it is called."""
    import torch
    from torch.nn import CrossEntropyLoss

    from cyclofocal import CyclicalFocalLoss
    from cyclofocal.imbalance import adjust_logits, class_weights
    from cyclofocal.lab.oltr import decoupled as classifiers

    counts, test = features.counts, features.test[0]
    if name == "plain":
        return features.classifier(test), METHODS[name]
    if name == "adjusted":
        return adjust_logits(features.classifier(test), counts), METHODS[name]
    if name == "tau":
        chosen = _best_tau(features) if tau is None else tau
        return classifiers.tau_normalised(features.classifier, chosen)(test), f"{METHODS[name]}, tau {chosen:g}"
    if name == "lws":
        return classifiers.fit_lws(features.classifier, *features.train, features.seed, fit=fit)(test), METHODS[name]
    if name == "crt":
        return classifiers.fit_crt(*features.train, len(counts), features.seed, fit=fit)(test), METHODS[name]
    criteria: dict[str, Callable[[], torch.nn.Module]] = {
        "balanced-softmax": lambda: CyclicalFocalLoss.from_counts(
            counts, tau=1.0, gamma_pos=0.0, gamma_neg=0.0, gamma_hc=0.0
        ),
        "class-balanced": lambda: CrossEntropyLoss(class_weights(counts).float()),
        "effective-number": lambda: CrossEntropyLoss(class_weights(counts, "effective").float()),
    }
    plain = replace(fit, sampling="plain")
    found = classifiers.fit_crt(*features.train, len(counts), features.seed, criteria[name](), plain)
    return found(test), METHODS[name]


def _best_tau(features: "Features") -> float:
    """The tau of 0, 0.1, ..., 2 with the highest mean accuracy of the classes on validation images; 1 without them."""
    from cyclofocal.lab.metrics import recall_per_class
    from cyclofocal.lab.oltr.decoupled import tau_normalised

    if features.validation is None:
        return 1.0
    vectors, labels = features.validation

    def accuracy(tau: float) -> float:
        predicted = tau_normalised(features.classifier, tau)(vectors).argmax(1)
        return float(recall_per_class(predicted.numpy(), labels.numpy(), len(features.counts)).mean())

    return max((step / 10 for step in range(21)), key=accuracy)
