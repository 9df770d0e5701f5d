"""Custom losses from a Python file: a function, or a module of torch."""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclofocal.lab.hashes import file_hash
from cyclofocal.lab.messages import MissingDataError

if TYPE_CHECKING:
    from torch import Tensor

Criterion = Callable[["Tensor", "Tensor"], "Tensor"]
"""Mean loss of logits (N, C) and target."""

TRIED_ROWS = 8

COUNTS_ARGUMENT = "class_counts"
"""Parameter by which a custom loss asks for the training samples per class."""


def file_digest(path: Path) -> str:
    """Hash a file of losses; 16 hexadecimal digits of SHA-256.

    Raises:
        MissingDataError: no such file.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such file; a custom loss is PATH.py:FUNCTION")
    return file_hash(path)


def load_loss(file: str, digest: str, class_counts: Sequence[int] | None = None) -> Criterion:
    """Load the loss ``PATH:NAME``; every call imports the file again, so that runs share no state.

    Args:
        file: NAME is a function of logits (N, C) and target, which gives the mean loss; or a ``torch.nn.Module`` that
            does, or a class of such. For a detector it gives the sum over logits (anchors, C) and targets of that
            shape. A parameter ``class_counts`` of the function or the class is given the training samples per class,
            an int64 tensor (C,); a class may take no other argument. A method ``set_progress`` is called with the
            progress of training, in [0, 1], as that of :class:`cyclofocal.CyclicalFocalLoss`.
        digest: expected :func:`file_digest`.
        class_counts: training samples per class; None where there are none.

    Raises:
        MissingDataError: no such file.
        ValueError: it is not the file of that digest, cannot be imported, has no such name, or that is not a loss; or
            it asks for class counts, and there are none.
    """
    import torch

    loss = _named(file, digest)
    if _asks_for_counts(loss):
        if class_counts is None:
            raise ValueError(
                f"{file}: it asks for {COUNTS_ARGUMENT}, which only a training has; it cannot be used here"
            )
        counts = torch.tensor(list(class_counts))
        is_class, loss = isinstance(loss, type), functools.partial(loss, **{COUNTS_ARGUMENT: counts})
        return _made(loss, file) if is_class else loss
    return _made(loss, file) if isinstance(loss, type) else _without_weights(loss, file)


def check_loss(file: str, digest: str) -> None:
    """Refuse a loss that :func:`load_loss` would refuse, as far as that is known without class counts.

    Raises:
        MissingDataError, ValueError: of :func:`load_loss`.
    """
    if not _asks_for_counts(_named(file, digest)):
        load_loss(file, digest)


def _named(file: str, digest: str) -> Any:
    """The function, module or class that ``PATH:NAME`` names."""
    path, _, name = file.rpartition(":")
    if (found := file_digest(Path(path))) != digest:
        raise ValueError(f"{path}: its content has changed (SHA-256 {found}, was {digest}); repeat the command")
    content = _imported(Path(path), digest)
    if not hasattr(content, name):
        raise ValueError(f"{path}: it has no {name!r}; it has {_listed(_defined(content))}")
    loss = getattr(content, name)
    if not callable(loss):
        raise ValueError(f"{file}: it is of type {type(loss).__name__}; it must be a function or a torch module")
    return loss


def _asks_for_counts(loss: Any) -> bool:
    try:
        return COUNTS_ARGUMENT in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # written in C
        return False


def _made(make: Callable[[], Any], file: str) -> Criterion:
    """An instance of a class of losses."""
    try:
        criterion = make()
    except Exception as error:  # custom code can raise anything
        raise ValueError(
            f"{file}: the class cannot be made without arguments other than {COUNTS_ARGUMENT} ({_describe(error)})"
        ) from error
    if not callable(criterion):
        raise ValueError(f"{file}: it is of type {type(criterion).__name__}; it must be a function or a torch module")
    return _without_weights(criterion, file)


def only_loss(path: Path) -> str:
    """Name of the one loss that a file defines, for a call that does not give it.

    Raises:
        MissingDataError: no such file.
        ValueError: it cannot be imported, or defines no loss or several; the message lists them.
    """
    found = _defined(_imported(path, file_digest(path)))
    if len(found) != 1:
        raise ValueError(
            f"'{path}' does not say which function of the file is the loss; give PATH.py:FUNCTION. It has"
            f" {_listed(found)}"
        )
    return found[0]


def try_loss(file: str, digest: str, class_counts: Sequence[int], soft: bool = False, boxes: bool = False) -> None:
    """Call the loss once on random logits, on the CPU, with its backward pass.

    Args:
        file, digest: arguments of :func:`load_loss`.
        class_counts: training samples per class of the experiment.
        soft: pass probabilities (N, C), as after mixup, instead of indices (N,).
        boxes: pass 0 or 1 for each anchor and class (N, C), as a detector does; the loss is then their sum.

    Raises:
        MissingDataError: no such file.
        ValueError: it raises, returns no finite number, or one that does not depend on the logits.
    """
    import torch

    criterion, classes = load_loss(file, digest, class_counts), len(class_counts)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(TRIED_ROWS, classes, generator=generator, requires_grad=True)
    target = torch.arange(TRIED_ROWS) % classes
    given = f"probabilities (N, {classes}), because the recipe mixes images" if soft else "class indices (N,)"
    given = f"0 or 1 for each anchor and class (N, {classes})" if boxes else given
    try:
        if (set_progress := getattr(criterion, "set_progress", None)) is not None:
            set_progress(0.0)
        loss = criterion(logits, torch.nn.functional.one_hot(target, classes).float() if soft or boxes else target)
    except Exception as error:  # custom code can raise anything
        raise ValueError(
            f"{file}: called with logits (N, {classes}) and {given} it raises {_describe(error)}"
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.shape != () or not loss.is_floating_point():
        seen = f"a tensor {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(
            f"{file}: it returns {seen}; it must return one number as a tensor, the"
            f" {'sum of the loss over anchors and classes' if boxes else 'mean loss of the batch'}"
        )
    if not loss.isfinite():
        raise ValueError(f"{file}: it returns {loss.item()} for ordinary logits; it must be finite")
    if not loss.requires_grad:
        raise ValueError(f"{file}: its result has no gradient with respect to the logits, so nothing would be learnt")
    try:
        loss.backward()
    except Exception as error:
        raise ValueError(f"{file}: its backward pass raises {_describe(error)}") from error


def _defined(content: Any) -> list[str]:
    """Public functions and module classes of the file itself, and modules that it has made, in its order."""
    from torch import nn

    def may_be_loss(value: Any) -> bool:
        if isinstance(value, nn.Module):
            return True
        if isinstance(value, type) and not issubclass(value, nn.Module):
            return False
        return callable(value) and getattr(value, "__module__", "") == content.__name__

    return [name for name, value in vars(content).items() if not name.startswith("_") and may_be_loss(value)]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "no function and no torch module"


def _imported(path: Path, digest: str) -> Any:
    """Import the file as a separate module."""
    name = f"cyclofocal_custom_loss_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # custom code can raise anything
        raise ValueError(f"{path}: it cannot be imported ({_describe(error)})") from error
    return module


def _without_weights(criterion: Any, file: str) -> Criterion:
    from torch import nn

    if isinstance(criterion, nn.Module) and (weights := [name for name, _ in criterion.named_parameters()]):
        raise ValueError(f"{file}: it has weights ({', '.join(weights)}), which nothing would train; make them buffers")
    found: Criterion = criterion
    return found


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
