"""What is measured: ours, torch's own losses, those of other packages, and any of the user's."""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclofocal import binary_cyclical_focal_loss, cyclical_focal_loss, kernels

Step = Callable[[], Any]
"""One forward and backward; what it returns is dropped."""

MOST_LOOPED = 10**9
"""Logits times classes up to which a loss that loops over the classes takes seconds, not minutes."""

OURS: dict[str, Any] = {"gamma_pos": 2.0, "gamma_neg": 2.0, "gamma_hc": 3.0, "label_smoothing": 0.1}


class UnfitError(ValueError):
    """A loss cannot take these logits, or not here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """Logits (N, C, ...) that need a gradient, and class indices (N, ...)."""

    logits: Tensor
    target: Tensor

    @functools.cached_property
    def one_hot(self) -> Tensor:
        """The target in the logits' shape and dtype; made once, outside what is measured."""
        dense = torch.zeros_like(self.logits, requires_grad=False)
        return dense.scatter_(1, self.target.unsqueeze(1), 1.0)


@dataclass(frozen=True)
class Candidate:
    """A loss to be measured.

    Attributes:
        title: as in the tables.
        package: the distribution it comes from; not measured where that is not installed.
        settings: what it was called with, in words.
        prepare: the step on a problem; raises :class:`UnfitError` where there is none.
        backend: of ours, the one that is forced.
    """

    title: str
    package: str
    prepare: Callable[[Problem], Step]
    settings: str = ""
    backend: str = ""

    @property
    def installed(self) -> bool:
        try:
            return bool(version(self.package)) if self.package else True
        except PackageNotFoundError:
            return False


def candidates(device: str) -> list[Candidate]:
    """Every loss the benchmark knows; the first is the one that all are compared with."""
    fused = {"cpu": "native", "cuda": "triton"}[device]
    return [
        Candidate("torch cross_entropy", "torch", _indices(F.cross_entropy)),
        Candidate(
            "torch cross_entropy, smoothed",
            "torch",
            _indices(functools.partial(F.cross_entropy, label_smoothing=0.1)),
            "label_smoothing=0.1",
        ),
        Candidate("copy of the logits (floor)", "torch", _copy, "x.clone(), no backward"),
        *(_ours(f"cyclofocal, {name}", _softmax, name) for name in (fused, "plain")),
        *(_ours(f"cyclofocal sigmoid, {name}", _sigmoid, name) for name in (fused, "plain")),
        Candidate("torch BCE with logits", "torch", _dense(F.binary_cross_entropy_with_logits), "one-hot"),
        Candidate("torchvision sigmoid focal", "torchvision", _torchvision, "alpha=0.25, gamma=2, one-hot"),
        Candidate("kornia focal", "kornia", _kornia, "alpha=None, gamma=2"),
        Candidate("MONAI focal", "monai", _monai, "gamma=2, use_softmax=True, one-hot"),
        Candidate("segmentation-models focal", "segmentation-models-pytorch", _smp, "multiclass, gamma=2"),
        Candidate("liger-kernel cross-entropy", "liger-kernel", _liger, "overwrites the logits"),
        Candidate("timm ASL, single label", "timm", _timm, "gamma_pos=1, gamma_neg=4, eps=0.1"),
    ]


def _ours(title: str, prepare: Callable[[Problem], Step], backend: str) -> Candidate:
    def checked(problem: Problem) -> Step:
        reason = kernels.describe().get(backend, "available")
        if reason != "available":
            raise UnfitError(f"the {backend} backend is not available: {reason}")
        return prepare(problem)

    settings = ", ".join(f"{name}={value:g}" for name, value in OURS.items())
    return Candidate(title, "cyclofocal", checked, f"{settings}, eta=0.5 as a 0-d tensor", backend)


def _step(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Step:
    """The gradient is handed on as inside a network, not accumulated in ``.grad``."""
    return lambda: torch.autograd.grad(loss(logits), logits)


def _indices(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem], Step]:
    return lambda problem: _step(problem.logits, lambda logits: loss(logits, problem.target))


def _dense(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Problem], Step]:
    def prepare(problem: Problem) -> Step:
        target = problem.one_hot
        return _step(problem.logits, lambda logits: loss(logits, target))

    return prepare


def _copy(problem: Problem) -> Step:
    return problem.logits.detach().clone


def _softmax(problem: Problem) -> Step:
    eta = torch.tensor(0.5, device=problem.logits.device)
    return _indices(functools.partial(cyclical_focal_loss, eta=eta, **OURS))(problem)


def _sigmoid(problem: Problem) -> Step:
    eta = torch.tensor(0.5, device=problem.logits.device)
    return _dense(functools.partial(binary_cyclical_focal_loss, eta=eta, **OURS))(problem)


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
    if problem.logits.numel() * classes > MOST_LOOPED:
        raise UnfitError(f"it loops over the classes, and {classes:,} of them would take minutes a call")
    return _indices(importlib.import_module("segmentation_models_pytorch.losses").FocalLoss("multiclass"))(problem)


def _liger(problem: Problem) -> Step:
    if problem.logits.device.type != "cuda":
        raise UnfitError("it needs a GPU")
    if problem.logits.dim() != 2:
        raise UnfitError("it takes logits (N, C) only")
    loss = importlib.import_module("liger_kernel.transformers.cross_entropy").LigerCrossEntropyLoss()
    own = problem.logits.detach().clone().requires_grad_()  # it writes the gradient over its input
    return _step(own, lambda logits: loss(logits, problem.target))


def _timm(problem: Problem) -> Step:
    if problem.logits.dim() != 2:
        raise UnfitError("it takes logits (N, C) only")
    return _indices(importlib.import_module("timm.loss").AsymmetricLossSingleLabel())(problem)


def user_candidate(spec: str) -> Candidate:
    """The loss that ``FILE`` or ``FILE:NAME`` names: a function of (logits, target), or a module.

    A module class is constructed without arguments. The name may be left out where the file has one loss only.

    Raises:
        ValueError: no such file or name, or nothing that could be a loss; the message says what there is.
    """
    path, name = _split(spec)
    module = _import(path)
    losses = [key for key, value in vars(module).items() if not key.startswith("_") and _may_be_loss(value, module)]
    listed = f"it has {', '.join(losses)}" if losses else "it has no function, nn.Module class or nn.Module"
    if not name and len(losses) != 1:
        raise ValueError(f"{str(path)!r}: give the loss as {path}:NAME; {listed}")
    name = name or losses[0]
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{str(path)!r} has no loss {name!r}; {listed}")
    loss = getattr(module, name)
    if isinstance(loss, type):
        loss = _construct(loss, f"{path}:{name}")
    return Candidate(f"{path.name}:{name}", "", _indices_on_device(loss))


def _indices_on_device(loss: Any) -> Callable[[Problem], Step]:
    def prepare(problem: Problem) -> Step:
        return _indices(loss.to(problem.logits.device) if isinstance(loss, nn.Module) else loss)(problem)

    return prepare


def _split(spec: str) -> tuple[Path, str]:
    head, _, name = spec.rpartition(":")
    path, name = (Path(spec), "") if Path(spec).is_file() or not head else (Path(head), name)
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist; it must be a Python file, or FILE:NAME")
    return path, name


def _import(path: Path) -> Any:
    name = f"_against_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ValueError(f"{str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickles of the file look here
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{str(path)!r} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _may_be_loss(value: Any, module: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, type) and not issubclass(value, nn.Module):
        return False
    return callable(value) and getattr(value, "__module__", "") == module.__name__


def _construct(loss: type, named: str) -> Any:
    if not issubclass(loss, nn.Module):
        raise ValueError(f"{named} is a class but no nn.Module; give a function of (logits, target) or a module")
    try:
        return loss()
    except Exception as error:
        raise ValueError(f"{named} cannot be constructed without arguments: {error}") from error
