"""Losses to measure: cyclofocal's, torch's, those of other packages, and user-defined ones."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclofocal import (
    BinaryCyclicalFocalLoss,
    CyclicalFocalLoss,
    binary_cyclical_focal_loss,
    class_weights,
    cyclical_focal_loss,
    kernels,
    log_prior,
)
from cyclofocal.lab.recipes.custom_loss import load_loss
from cyclofocal.lab.recipes.parse_losses import custom_loss

Step = Callable[[], Any]
"""One forward and backward pass; its result is ignored."""

LossFunction = Callable[..., Tensor]

FUSED_BACKENDS = {"cpu": "native", "cuda": "triton"}
"""Fastest kernel backend of a device."""

MAX_LOOPED = 10**9
"""Largest number of logits times classes for losses that loop over the classes; above it a call takes minutes."""

REFERENCES = {
    "softmax": "torch cross_entropy",
    "sigmoid": "torch BCE with logits",
    "layer": "torch linear + cross_entropy",
}
"""Title of the loss of torch that the losses of a family are compared with."""

CYCLOFOCAL_SETTINGS: dict[str, Any] = {"gamma_pos": 2.0, "gamma_neg": 2.0, "gamma_hc": 3.0, "label_smoothing": 0.1}


TOTAL_STEPS = 10**9
"""Length of the schedule of cyclofocal's modules, more steps than are measured."""


class UnfitError(ValueError):
    """A loss that does not support these logits or this device; the message gives the reason."""


@dataclass(frozen=True)
class Problem:
    """Logits (N, C, ...) that need a gradient, and class indices (N, ...)."""

    logits: Tensor
    target: Tensor

    @property
    def logits_bytes(self) -> int:
        return self.logits.nbytes

    def first(self, rows: int) -> "Problem":
        """Return the problem of the first ``rows`` rows."""
        return Problem(self.logits[:rows].detach().requires_grad_(), self.target[:rows])

    @functools.cached_property
    def one_hot(self) -> Tensor:
        """The target in the logits' shape and dtype; built once, outside the measured time."""
        dense = torch.zeros_like(self.logits, requires_grad=False)
        return dense.scatter_(1, self.target.unsqueeze(1), 1.0)


@dataclass(frozen=True)
class Candidate:
    """A loss to measure.

    Attributes:
        title: its name in the tables.
        package: distribution that provides it; not measured if that is not installed.
        settings: its arguments, as text.
        prepare: returns the step for a problem; raises :class:`UnfitError` for unsupported ones.
        family: "softmax", "sigmoid" or "layer", which decides what its time is compared with.
        backend: the kernel backend to force; "" for losses of other packages.
    """

    title: str
    package: str
    prepare: Callable[[Any], Step]
    family: str = "softmax"
    settings: str = ""
    backend: str = ""

    @property
    def installed(self) -> bool:
        try:
            return bool(version(self.package)) if self.package else True
        except PackageNotFoundError:
            return False


def candidates(device: str) -> list[Candidate]:
    """All built-in losses of logits; the first of a family is the reference of its ratios."""
    fused = FUSED_BACKENDS[device]
    return [
        Candidate(REFERENCES["softmax"], "torch", _indices(F.cross_entropy)),
        Candidate(REFERENCES["sigmoid"], "torch", _dense(F.binary_cross_entropy_with_logits), "sigmoid", "one-hot"),
        Candidate(
            "torch cross_entropy, smoothed",
            "torch",
            _indices(functools.partial(F.cross_entropy, label_smoothing=0.1)),
            settings="label_smoothing=0.1",
        ),
        Candidate("copy of the logits (floor)", "torch", _copy, settings="x.clone(), no backward"),
        *(cyclofocal_candidate(f"cyclofocal, {name}", _softmax, name) for name in (fused, "plain")),
        *(cyclofocal_candidate(f"cyclofocal {name}, {fused}", step, fused) for name, step in _VARIANTS.items()),
        *(cyclofocal_candidate(f"cyclofocal sigmoid, {name}", _sigmoid, name, "sigmoid") for name in (fused, "plain")),
        cyclofocal_candidate(f"cyclofocal sigmoid as function, {fused}", _sigmoid_function, fused, "sigmoid"),
        Candidate("torchvision sigmoid focal", "torchvision", _torchvision, "sigmoid", "alpha=0.25, gamma=2, one-hot"),
        Candidate("kornia focal", "kornia", _kornia, settings="alpha=None, gamma=2"),
        Candidate("MONAI focal", "monai", _monai, settings="gamma=2, use_softmax=True, one-hot"),
        Candidate("segmentation-models focal", "segmentation-models-pytorch", _smp, settings="multiclass, gamma=2"),
        Candidate("liger-kernel cross-entropy", "liger-kernel", _liger, settings="overwrites the logits"),
        Candidate("timm ASL, single label", "timm", _timm, settings="gamma_pos=1, gamma_neg=4, eps=0.1"),
    ]


def compiled_candidates(device: str) -> list[Candidate]:
    """Losses inside a graph that ``torch.compile`` makes, forward and backward."""
    fused = FUSED_BACKENDS[device]
    smoothed = functools.partial(F.cross_entropy, label_smoothing=0.1)
    return [
        Candidate("torch cross_entropy, compiled", "torch", _indices(compiled(F.cross_entropy))),
        Candidate(
            "torch cross_entropy, smoothed, compiled",
            "torch",
            _indices(compiled(smoothed)),
            settings="label_smoothing=0.1",
        ),
        cyclofocal_candidate(f"cyclofocal, compiled, {fused}", _softmax_compiled, fused),
    ]


def compiled(loss: LossFunction, options: dict[str, Any] | None = None) -> LossFunction:
    """Compile a loss for the shapes it is called with, and no others; ``options`` are those of Inductor."""
    return torch.compile(loss, dynamic=False, options=options)


def cyclofocal_candidate(
    title: str, prepare: Callable[[Any], Step], backend: str, family: str = "softmax"
) -> Candidate:
    """A loss of cyclofocal; unfit where its backend is not available."""

    def checked(problem: Any) -> Step:
        reason = kernels.describe().get(backend, "available")
        if reason != "available":
            raise UnfitError(f"the {backend} backend is not available: {reason}")
        return prepare(problem)

    settings = ", ".join(f"{name}={value:g}" for name, value in CYCLOFOCAL_SETTINGS.items())
    is_module = prepare in (_softmax, _softmax_compiled, _sigmoid, _with_offset, _with_weights)
    clock = f"total_steps={TOTAL_STEPS}" if is_module else "eta=0.5"
    return Candidate(title, "cyclofocal", checked, family, f"{settings}, {clock}", backend)


def _step(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Step:
    """Return the gradient, as inside a network, instead of accumulating it in ``.grad``."""
    return lambda: torch.autograd.grad(loss(logits), logits)


def _indices(loss: LossFunction) -> Callable[[Problem], Step]:
    return lambda problem: _step(problem.logits, lambda logits: loss(logits, problem.target))


def _dense(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem], Step]:
    def prepare(problem: Problem) -> Step:
        target = problem.one_hot
        return _step(problem.logits, lambda logits: loss(logits, target))

    return prepare


def _copy(problem: Problem) -> Step:
    return problem.logits.detach().clone


def _module(problem: Problem, **settings: Any) -> CyclicalFocalLoss:
    loss = CyclicalFocalLoss(total_steps=TOTAL_STEPS, **CYCLOFOCAL_SETTINGS, **settings)
    return loss.to(problem.logits.device)


def _softmax(problem: Problem, **settings: Any) -> Step:
    return _indices(_module(problem, **settings))(problem)


def _softmax_compiled(problem: Problem) -> Step:
    return _indices(compiled(_module(problem)))(problem)


def _softmax_function(problem: Problem) -> Step:
    return _indices(functools.partial(cyclical_focal_loss, eta=0.5, **CYCLOFOCAL_SETTINGS))(problem)


def _sigmoid(problem: Problem) -> Step:
    loss = BinaryCyclicalFocalLoss(total_steps=TOTAL_STEPS, **CYCLOFOCAL_SETTINGS)
    return _dense(loss.to(problem.logits.device))(problem)


def _sigmoid_function(problem: Problem) -> Step:
    return _dense(functools.partial(binary_cyclical_focal_loss, eta=0.5, **CYCLOFOCAL_SETTINGS))(problem)


def _with_offset(problem: Problem) -> Step:
    return _softmax(problem, logit_offset=log_prior(_long_tail(problem)).float())


def _with_weights(problem: Problem) -> Step:
    return _softmax(problem, weight=class_weights(_long_tail(problem)).float())


_VARIANTS = {"as function": _softmax_function, "with offset": _with_offset, "with class weights": _with_weights}


def _long_tail(problem: Problem) -> Tensor:
    """Counts of classes that fall from 1,000 to 10."""
    return torch.logspace(3, 1, problem.logits.shape[1]).round()


def _torchvision(problem: Problem) -> Step:
    loss = importlib.import_module("torchvision.ops").sigmoid_focal_loss
    return _dense(functools.partial(loss, reduction="mean"))(problem)


def _kornia(problem: Problem) -> Step:
    loss = importlib.import_module("kornia.losses").focal_loss
    return _indices(functools.partial(loss, alpha=None, gamma=2.0, reduction="mean"))(problem)


def _monai(problem: Problem) -> Step:
    return _dense(importlib.import_module("monai.losses.focal_loss").FocalLoss(use_softmax=True))(problem)


def _smp(problem: Problem) -> Step:
    classes = problem.logits.shape[1]
    if problem.logits.numel() * classes > MAX_LOOPED:
        raise UnfitError(f"it loops over the classes, and {classes:,} of them would take minutes a call")
    return _indices(importlib.import_module("segmentation_models_pytorch.losses").FocalLoss("multiclass"))(problem)


def _liger(problem: Problem) -> Step:
    if problem.logits.device.type != "cuda":
        raise UnfitError("it needs a GPU")
    if problem.logits.dim() != 2:
        raise UnfitError("it takes logits (N, C) only")
    loss = importlib.import_module("liger_kernel.transformers.cross_entropy").LigerCrossEntropyLoss()
    logits = problem.logits.detach().clone().requires_grad_()  # it overwrites its input with the gradient
    return _step(logits, lambda x: loss(x, problem.target))


def _timm(problem: Problem) -> Step:
    if problem.logits.dim() != 2:
        raise UnfitError("it takes logits (N, C) only")
    return _indices(importlib.import_module("timm.loss").AsymmetricLossSingleLabel())(problem)


def user_candidate(spec: str) -> Candidate:
    """The loss of a user's file, given as in a comparison: ``PATH.py:FUNCTION``, ``NAME=PATH.py:FUNCTION``.

    Raises:
        ValueError: it is not written like this, or :func:`~cyclofocal.lab.recipes.parse_losses.custom_loss` refuses it.
    """
    loss = custom_loss(spec)
    if loss is None:
        raise ValueError(f"{spec!r} is not a Python file with a loss; give PATH.py:FUNCTION")
    path, _, function = loss.file.rpartition(":")
    title = f"{Path(path).name}:{function}" if loss.name == function else loss.name
    return Candidate(title, "", _indices_on_device(load_loss(loss.file, loss.digest)))


def _indices_on_device(loss: Any) -> Callable[[Problem], Step]:
    def prepare(problem: Problem) -> Step:
        return _indices(loss.to(problem.logits.device) if isinstance(loss, nn.Module) else loss)(problem)

    return prepare
