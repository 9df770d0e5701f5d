"""Checks of arguments: a wrong call is refused before any work, with the value, the rule and the remedy."""

import functools
import inspect
import math
import re
import warnings
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

Value = TypeVar("Value")
MONOTONE_GAMMA_HC = 3.59
"""Above it the high-confidence loss rises with p in a band, so its gradient has the wrong sign there."""

INSIDE = re.compile(r"torch\b|cyclofocal\b(?!\.lab\b)")
"""Modules that stand between a warning and the line it is about; the laboratory is a user of the library."""

FROM_COUNTS = "; if from_counts made it, give from_counts one count for each class"
"""End of an error about a tensor of the wrong length that the user may never have seen."""

REDUCTIONS = ("mean", "sum", "none")
LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SoftmaxSettings(NamedTuple):
    """Numbers that define the softmax loss; see ``functional.cyclical_focal_loss``."""

    gamma_pos: float
    gamma_neg: float
    gamma_hc: float
    ignore_index: int
    label_smoothing: float


class SigmoidSettings(NamedTuple):
    """Numbers that define the sigmoid loss; see ``functional.binary_cyclical_focal_loss``."""

    gamma_pos: float
    gamma_neg: float
    gamma_hc: float
    alpha: float | None
    probability_margin: float
    label_smoothing: float


def check_softmax_call(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eta: float | Tensor,
    settings: SoftmaxSettings,
    reduction: str,
) -> None:
    """Refuse a softmax call that ``F.cross_entropy`` would refuse, and settings out of range."""
    _check_settings(eta, settings, reduction)
    check_logits_dtype("logits", logits)
    if logits.dim() == 0:
        raise ValueError("logits is a scalar; it must be (C,), (N, C) or (N, C, d1, ...)")
    _check_device(logits, target=target, weight=weight)
    class_dim = 0 if logits.dim() == 1 else 1
    classes = logits.shape[class_dim]
    if classes == 0:
        raise ValueError(f"logits of shape {tuple(logits.shape)} has no class; dimension {class_dim} must be >= 1")
    check_class_weight("weight", weight, classes)
    if target.is_floating_point():
        _check_probabilities(logits, target, settings.ignore_index)
    else:
        _check_indices(logits, target, class_dim, settings.ignore_index)


def check_sigmoid_call(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    eta: float | Tensor,
    settings: SigmoidSettings,
    reduction: str,
) -> None:
    """Refuse a sigmoid call that ``F.binary_cross_entropy_with_logits`` would refuse, and settings out of range."""
    _check_settings(eta, settings, reduction)
    check_sides(settings.alpha, settings.probability_margin)
    check_logits_dtype("logits", logits)
    _check_device(logits, target=target, weight=weight, pos_weight=pos_weight)
    if target.shape != logits.shape:
        hint = ""
        if not target.is_floating_point() and target.dim() < max(logits.dim(), 1):
            hint = "; class indices belong to cyclical_focal_loss (softmax), this one takes a 0/1 target per logit"
        raise ValueError(f"target has shape {tuple(target.shape)}, logits {tuple(logits.shape)}; they must agree{hint}")
    _check_broadcast("weight", weight, logits)
    _check_broadcast("pos_weight", pos_weight, logits)
    if can_read(target) and target.numel():
        low, high = bounds(target)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"target has values from {low} to {high}; a sigmoid target must lie in [0, 1]"
                " (class indices belong to cyclical_focal_loss)"
            )


def check_unit_interval(name: str, value: float | Tensor) -> None:
    """Refuse a number, or a tensor that can be read without stalling a device, outside [0, 1]."""
    if isinstance(value, Tensor):
        if not can_read(value):
            return
        if value.dim() == 0:
            value = value.item()
    if bool(((value >= 0) & (value <= 1)).all()) if isinstance(value, Tensor) else 0 <= value <= 1:
        return
    raise ValueError(f"{name} is {value}; it must lie in [0, 1]")


def can_read(tensor: Tensor) -> bool:
    """Return True if the values can be read here: on the CPU, outside of tracing and function transforms."""
    return (
        tensor.is_cpu
        and not is_traced()
        and has_memory(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def has_memory(tensor: Tensor) -> bool:
    """Return True for a tensor or an ordinary subclass; False for fake, distributed and other wrappers."""
    return type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl


def without_subclass(value: Value) -> Value:
    """Return an ordinary subclass (a mask of torchvision, an image of MONAI) as a plain tensor."""
    if isinstance(value, Tensor) and type(value) is not Tensor and not torch.compiler.is_compiling():
        return cast(Value, value.as_subclass(Tensor)) if has_memory(value) else value
    return value


def is_traced() -> bool:
    """Return True where operations are recorded, or seen by a dispatch mode, which a call into C would escape."""
    return torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def is_one(grad: Tensor) -> bool:
    """True if the upstream gradient is known to be 1, the usual factor; never waits for a device."""
    return grad.is_cpu and not is_traced() and grad.item() == 1


def is_transformed(grad: Tensor | None = None) -> bool:
    """Return True inside ``torch.func`` transforms and forward-mode differentiation, and for a batched ``grad``."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad))
    )


def _check_settings(eta: float | Tensor, settings: SoftmaxSettings | SigmoidSettings, reduction: str) -> None:
    if isinstance(eta, Tensor) and eta.dim() > 0:
        raise ValueError(f"eta has shape {tuple(eta.shape)}; it must be a float or a 0-d tensor")
    check_unit_interval("eta", eta)
    check_gammas(settings.gamma_pos, settings.gamma_neg, settings.gamma_hc)
    check_reduction(reduction)
    check_unit_interval("label_smoothing", settings.label_smoothing)


@functools.lru_cache
def needs_no_check(settings: SoftmaxSettings | SigmoidSettings) -> bool:
    """Return True if the settings need no error or warning."""
    alpha, margin = getattr(settings, "alpha", None), getattr(settings, "probability_margin", 0.0)
    return (
        0 <= settings.label_smoothing <= 1
        and 0 <= settings.gamma_pos < math.inf
        and 0 <= settings.gamma_neg < math.inf
        and 0 <= settings.gamma_hc <= MONOTONE_GAMMA_HC
        and (alpha is None or 0 <= alpha <= 1)
        and 0 <= margin < 1
    )


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(map(repr, REDUCTIONS))}")


def check_gammas(gamma_pos: float, gamma_neg: float, gamma_hc: float) -> None:
    for name, gamma in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg), ("gamma_hc", gamma_hc)):
        if not 0 <= gamma < math.inf:
            raise ValueError(f"{name} is {gamma}; it must be a finite number >= 0 (0 turns it off)")
    if gamma_hc > 100:
        raise ValueError(f"gamma_hc is {gamma_hc}; (1 + p)^gamma_hc overflows above 100, and 2 to 3 is usual")
    if gamma_hc > MONOTONE_GAMMA_HC and not torch.compiler.is_compiling():
        _warn_not_monotone()


def check_sides(alpha: float | None, probability_margin: float) -> None:
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie in [0, 1], or be None to weigh both sides equally")
    if not 0 <= probability_margin < 1:
        raise ValueError(f"probability_margin is {probability_margin}; it must lie in [0, 1)")


@functools.cache
def _warn_not_monotone() -> None:
    """Warn once per process that the high-confidence loss is not monotone."""
    warn_caller(
        f"a gamma_hc above {MONOTONE_GAMMA_HC} makes the high-confidence loss rise with the probability of the true"
        " class in a band (for 4: from p = 0.155 to 0.443), where its gradient pushes the wrong way; 2 or 3 is usual"
    )


def warn_caller(message: str) -> None:
    """Warn at the line that called the library: the first one outside of it and of torch, which calls modules."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and INSIDE.match(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the loss, and of everything that it is computed from, for logits of ``dtype``."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def check_logits_dtype(name: str, tensor: Tensor) -> None:
    """Refuse a dtype in which the losses are not computed."""
    check_floating(name, tensor)
    if tensor.dtype not in LOGITS_DTYPES:
        raise TypeError(
            f"{name} has dtype {tensor.dtype}; it must be float16, bfloat16, float32 or float64: pass {name}.float()"
        )


def check_memory(name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype, count: int) -> None:
    """Refuse memory that a kernel would misread: it needs ``count`` contiguous numbers on this device."""
    if (
        tensor.dtype is dtype
        and tensor.numel() == count
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and tensor.device == device
    ):
        return
    raise ValueError(
        f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()} on {tensor.device}; a"
        f" kernel must be given {count} contiguous numbers of {dtype} on {device}"
    )


def check_floating(name: str, tensor: Tensor) -> None:
    """Refuse what is no floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a floating-point tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has dtype {tensor.dtype}; it must be a floating-point tensor")


def _check_device(logits: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != logits.device:
            raise ValueError(f"{name} is on {other.device}, logits on {logits.device}; move them to one device")


def check_class_weight(name: str, weight: Tensor | None, classes: int) -> None:
    """Refuse a class weight that is not one floating-point factor per class."""
    if weight is None:
        return
    check_floating(name, weight)
    if weight.shape != (classes,):
        raise ValueError(f"{name} has shape {tuple(weight.shape)}; it must be ({classes},), one per class{FROM_COUNTS}")


def add_offset(logits: Tensor, offset: Tensor, class_dim: int) -> Tensor:
    """Add one number per class to the logits, in the dtype of the loss, after checking it."""
    check_logits_dtype("logits", logits)
    check_floating("logit_offset", offset)
    _check_device(logits, logit_offset=offset)
    single = class_dim == -1 and offset.shape == (1,)  # one label, for which the logits may lack a dimension
    if not single and (logits.dim() == 0 or offset.shape != (logits.shape[class_dim],)):
        raise ValueError(
            f"logit_offset has shape {tuple(offset.shape)}; for logits of shape {tuple(logits.shape)} it must hold one"
            f" number for each class, dimension {class_dim}{FROM_COUNTS}"
        )
    dtype = compute_dtype(logits.dtype)
    if class_dim >= 0:
        offset = offset.view((-1,) + (1,) * (logits.dim() - 1 - class_dim))
    return logits.to(dtype) + (offset[0] if single else offset).to(dtype)


def check_sample_weight(sample_weight: Tensor, device: torch.device, shape: tuple[int, ...]) -> Tensor:
    """Return the weight of every element of an unreduced loss of this shape; refuse what is not one per sample."""
    check_floating("sample_weight", sample_weight)
    if sample_weight.device != device:
        raise ValueError(f"sample_weight is on {sample_weight.device}, logits on {device}; move them to one device")
    if sample_weight.shape not in (shape, shape[:1]):
        both = " or ".join(dict.fromkeys((str(tuple(shape[:1])), str(tuple(shape)))))
        raise ValueError(f"sample_weight has shape {tuple(sample_weight.shape)}; it must be {both}")
    if can_read(sample_weight) and not bool((sample_weight >= 0).all()):
        raise ValueError(f"sample_weight holds {sample_weight.min().item():g}; it must be at least 0")
    return sample_weight.view(sample_weight.shape + (1,) * (len(shape) - sample_weight.dim())).expand(shape)


def _check_broadcast(name: str, weight: Tensor | None, logits: Tensor) -> None:
    if weight is None:
        return
    check_floating(name, weight)
    shape, sizes = tuple(weight.shape), tuple(logits.shape)
    last = sizes[max(len(sizes) - len(shape), 0) :]
    fits = len(shape) == len(last) and all(a in (1, b) for a, b in zip(shape, last, strict=True))
    if not fits:
        raise ValueError(f"{name} has shape {shape}; it must broadcast to that of logits, {sizes}")


def _check_probabilities(logits: Tensor, target: Tensor, ignore_index: int) -> None:
    if target.shape != logits.shape:
        raise ValueError(
            f"target is {target.dtype} of shape {tuple(target.shape)}, so class probabilities, but logits has shape"
            f" {tuple(logits.shape)}; give probabilities that shape, or pass class indices as int64"
        )
    if ignore_index >= 0:
        raise ValueError(f"ignore_index is {ignore_index}, but target holds probabilities, which have no index")


def _check_indices(logits: Tensor, target: Tensor, class_dim: int, ignore_index: int) -> None:
    if target.dtype == torch.bool or target.is_complex():
        raise TypeError(f"target has dtype {target.dtype}; it must hold class indices (int64) or probabilities (float)")
    shape = logits.shape[:class_dim] + logits.shape[class_dim + 1 :]
    if target.shape != shape and not (class_dim == 0 and target.shape == (1,)):
        if target.shape == logits.shape:
            raise ValueError(
                f"target is {target.dtype} of the logits' shape {tuple(target.shape)}: if it is one-hot over classes"
                " pass target.float(); if each logit is a binary decision use binary_cyclical_focal_loss"
            )
        raise ValueError(
            f"target has shape {tuple(target.shape)}; for logits of shape {tuple(logits.shape)} class indices must"
            f" have shape {tuple(shape)}"
        )
    if can_read(target) and target.numel():
        check_index_values(target, logits.shape[class_dim], ignore_index)


def check_index_values(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise IndexError for an index that is neither a class nor ignored."""
    if not target.numel():
        return
    low, high = bounds(target)
    if low >= 0 and high < classes:
        return  # the common case: one pass over the target
    index = target.to(torch.int64)  # narrow and unsigned integers would wrap around in a comparison
    wrong = ((index < 0) | (index >= classes)) & (index != ignore_index)
    if target.dtype == torch.uint64:
        wrong |= index < 0  # 2^63 or more
    if bool(wrong.any()):
        value = index[wrong][0].item()
        value += 2**64 if target.dtype == torch.uint64 and value < 0 else 0
        raise IndexError(
            f"target holds class {value} for {classes} classes; indices must lie in"
            f" [0, {classes - 1}] or equal ignore_index ({ignore_index})"
        )


def bounds(target: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest value."""
    target = target.detach()
    if target.dtype in (torch.uint16, torch.uint32, torch.uint64):
        target = target.to(torch.int64)
    elif target.is_floating_point() and target.dtype not in LOGITS_DTYPES:
        target = target.to(torch.float32)
    low, high = torch.aminmax(target)
    return low.item(), high.item()
