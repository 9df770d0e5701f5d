"""The fused losses in Triton: value and gradient together, on a GPU (CUDA or ROCm).

Launches the kernels in ``triton_indices.py``, ``triton_probabilities.py``, ``triton_sigmoid.py`` and
``triton_scale.py``, which need triton and are imported at first use. Nothing here waits for the device. With
``TRITON_INTERPRET=1``, set before the first use, the same kernels run slowly on the CPU.
"""

import contextlib
import functools
import importlib.util
import math
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings, check_memory, compute_dtype
from cyclofocal.equation import Eta, softmax_denominator

THREADS = 512  # of the largest program
LOOP = 4096  # logits of a tile whose rows come in several blocks
TILE = 1024  # logits that are worth a program
WIDE_FROM = 2**30  # logits from which offsets have 64 bits, well before a lane past the end overflows 32


def reason() -> str:
    """Return why this backend cannot be used; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1":
        if not torch.cuda.is_available():
            return "torch sees no GPU (CUDA or ROCm)"
        if torch.version.hip is None and torch.cuda.get_device_capability() < (7, 0):
            return "triton needs a GPU of compute capability 7.0 or later"
    return _import_problem()


def available() -> bool:
    """Return True if triton is installed, and a GPU or triton's interpreter can run it."""
    return not reason()


@functools.cache
def _import_problem() -> str:
    """Return why triton does not load; empty if it does."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton is installed but does not load: {error}"
    return ""


def softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eta: Eta,
    settings: SoftmaxSettings,
    reduction: str,
    *,
    with_grad: bool,
    strict: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient of ``logits`` (N, C, ...); ``target`` (N, ...) indices or (N, C, ...) probabilities.

    All tensors contiguous; weight and probabilities in the dtype of the loss. The caller has checked everything but
    that indices lie in [0, C): a row whose index does not, and is not ``ignore_index``, becomes nan. (``strict`` has no
    effect: to refuse it would stall the device.)
    """
    from cyclofocal.kernels.triton_indices import softmax_by_index
    from cyclofocal.kernels.triton_probabilities import softmax_by_probabilities

    gamma_pos, gamma_neg, gamma_hc, ignore_index, label_smoothing = settings
    shape, classes = logits.shape, logits.shape[1]
    rows = shape.numel() // classes
    soft, mean = target.is_floating_point(), reduction == "mean"
    plan = _plan(shape, elements=16 if soft or logits.dtype == torch.float64 else 32)
    loss, grad = _results(logits, shape[:1] + shape[2:], plan.programs, reduction, with_grad)
    check_memory("logits", logits, logits.device, logits.dtype, shape.numel())
    check_memory("target", target, logits.device, loss.dtype if soft else torch.int64, shape.numel() if soft else rows)
    if weight is not None:
        check_memory("weight", weight, logits.device, loss.dtype, classes)
    denominator = softmax_denominator(target, weight, ignore_index) if mean else 1
    eta, pointer = _eta(eta, logits)
    non_target_prob = label_smoothing / classes
    numbers = [eta, gamma_pos, gamma_neg, gamma_hc, 1 - label_smoothing + non_target_prob, non_target_prob]
    arguments: tuple[Any, ...]
    if soft:
        numbers.append(1 / max(rows, 1) if mean else 1.0)
        arguments = (logits, target, weight, pointer, loss, grad, *_bits(numbers))
    else:
        divisor = denominator if mean else None
        arguments = (logits, target, weight, divisor, pointer, loss, grad, *_bits(numbers), ignore_index)
    _launch(
        softmax_by_probabilities if soft else softmax_by_index,
        plan.programs,
        plan.warps,
        (*arguments, classes, plan.positions, plan.tiles, *plan.strides),
        LOWEST=torch.finfo(loss.dtype).min,
        SMOOTHED=non_target_prob != 0,
        ALIGNED=plan.aligned,
        ROWS=plan.rows,
        BLOCK=plan.block,
        **_constants(logits, settings, reduction),
    )
    return _reduced(loss, reduction, denominator), grad


def sigmoid(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    eta: Eta,
    settings: SigmoidSettings,
    reduction: str,
    *,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient of ``logits`` of any shape.

    ``target`` and ``weight`` have that shape, ``pos_weight`` too or that of the last dimension. All tensors are
    contiguous, all but the logits in the dtype of the loss.
    """
    from cyclofocal.kernels.triton_sigmoid import sigmoid_by_element

    gamma_pos, gamma_neg, gamma_hc, alpha, probability_margin, label_smoothing = settings
    count = logits.numel()
    programs = -(-count // TILE)
    loss, grad = _results(logits, logits.shape, programs, reduction, with_grad)
    period = count if pos_weight is None else pos_weight.numel()
    check_memory("logits", logits, logits.device, logits.dtype, count)
    check_memory("target", target, logits.device, loss.dtype, count)
    if weight is not None:
        check_memory("weight", weight, logits.device, loss.dtype, count)
    if pos_weight is not None:
        check_memory(
            "pos_weight", pos_weight, logits.device, loss.dtype, count if period == count else logits.shape[-1]
        )
    eta, pointer = _eta(eta, logits)
    sides = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    scale = 1 / max(count, 1) if reduction == "mean" else 1.0
    numbers = [eta, gamma_pos, gamma_neg, gamma_hc, *sides, probability_margin, label_smoothing, scale]
    _launch(
        sigmoid_by_element,
        programs,
        4,
        (logits, target, weight, pos_weight, pointer, loss, grad, *_bits(numbers), count, period),
        MARGIN=probability_margin != 0,
        BLOCK=TILE,
        **_constants(logits, settings, reduction),
    )
    return _reduced(loss, reduction, count), grad


def scale_(grad: Tensor, factor: Tensor) -> None:
    """Scale the saved gradient in place by the upstream gradient; a no-op when that is 1, and never synchronises."""
    from cyclofocal.kernels.triton_scale import scale_elements

    flat = grad.movedim(1, -1).reshape(-1) if not grad.is_contiguous() else grad.view(-1)
    if flat.data_ptr() != grad.data_ptr():  # an order of dimensions that no operator here makes
        grad.mul_(factor)
        return
    count, factor = flat.numel(), factor.to(compute_dtype(grad.dtype))
    _launch(scale_elements, -(-count // TILE), 4, (flat, factor, count), WIDE=count >= WIDE_FROM, BLOCK=TILE)


class _Plan(NamedTuple):
    """Division of rows into tiles, one for each program. Strides are of samples, positions and classes."""

    rows: int
    block: int
    warps: int
    positions: int
    tiles: int
    programs: int
    strides: tuple[int, int, int]
    aligned: int


def _plan(shape: torch.Size, elements: int) -> _Plan:
    """Plan tiles whose lanes run along contiguous memory: the classes of 2-d logits, the positions of all others.

    A thread holds up to ``elements`` of a tile's logits.
    """
    samples, classes, positions = shape[0], shape[1], math.prod(shape[2:])
    block = _power_of_2(classes)
    on_chip = THREADS * elements
    if positions == 1:
        samples, positions, strides, aligned = 1, samples, (0, classes, 1), math.gcd(classes, 16)
        least, most = 1, max(1, min(128, TILE // block))
        elements = 16 if classes > 256 else 8  # the state of several short rows fills a thread's registers
    else:
        strides, aligned = (classes * positions, 1, positions), 1
        least, most = 32, 128 if classes <= 32 else 32
    least, rows = (min(bound, _power_of_2(positions)) for bound in (least, most))
    if block * least > on_chip:
        block, rows = max(1, LOOP // least), least
    threads = min(THREADS, max(32, rows, rows * block // elements))
    tiles = -(-positions // rows)
    return _Plan(rows, block, max(1, threads // 32), positions, tiles, samples * tiles, strides, aligned)


def _power_of_2(number: int) -> int:
    """Return the next power of 2, at least 1."""
    return 1 << max(number - 1, 0).bit_length()


def _results(
    logits: Tensor, shape: torch.Size, programs: int, reduction: str, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Allocate the losses, or one sum per program, and the gradient."""
    loss = logits.new_empty(shape if reduction == "none" else programs, dtype=compute_dtype(logits.dtype))
    return loss, torch.empty_like(logits) if with_grad else None


def _reduced(loss: Tensor, reduction: str, denominator: Tensor | int) -> Tensor:
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / denominator


def _eta(eta: Eta, logits: Tensor) -> tuple[float, Tensor | None]:
    """Return eta as a number, or as memory of the device, without waiting for it."""
    if not isinstance(eta, Tensor):
        return float(eta), None
    if eta.device.type == "cpu" != logits.device.type:
        return eta.item(), None
    return 0.0, eta.to(logits.device, non_blocking=True)


def _bits(numbers: Sequence[float]) -> tuple[int, ...]:
    """Return the bits of float64 numbers as integers."""
    return struct.unpack(f"{len(numbers)}q", struct.pack(f"{len(numbers)}d", *numbers))


def _constants(logits: Tensor, settings: SoftmaxSettings | SigmoidSettings, reduction: str) -> dict[str, int | bool]:
    """Return the constants that are compiled into a kernel of either family."""
    gammas = {"POS": settings.gamma_pos, "NEG": settings.gamma_neg, "HC": settings.gamma_hc}
    whole = {name: int(gamma) if gamma in range(9) else -1 for name, gamma in gammas.items()}
    return {**whole, "REDUCED": reduction != "none", "WIDE": logits.numel() >= WIDE_FROM}


def _launch(kernel: Any, programs: int, warps: int, arguments: tuple[Any, ...], **constants: Any) -> None:
    """Launch a kernel on the device of the tensors; Triton would take the current one."""
    if programs == 0:
        return
    logits = arguments[0]
    with torch.cuda.device(logits.device) if logits.is_cuda else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **constants, num_warps=warps)
