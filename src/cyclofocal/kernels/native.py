"""The fused losses in C++: value and gradient in one pass over the logits, on a CPU.

A thin binding to ``native.cpp``, which is compiled at installation where there is a C++ compiler. The library is
opened at first use; :func:`available` returns True if that works, :func:`reason` why it does not.
"""

import ctypes
import functools
import math
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cyclofocal.arguments import SigmoidSettings, SoftmaxSettings, check_index_values, check_memory, compute_dtype
from cyclofocal.kernels.plain import scale_

__all__ = ["available", "instructions", "reason", "scale_", "sigmoid", "softmax"]

LIBRARY = Path(__file__).with_name("_native.so")
INSTRUCTIONS = ("baseline", "avx2", "avx512")

# struct Call in native.cpp, field by field. One packed argument costs a fifth of what ctypes takes for 24.
_pack = struct.Struct("=6q12q7d").pack
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
_CPU = torch.device("cpu")
_SCALARS = {dtype: torch.empty((), dtype=dtype, device=_CPU) for dtype in (torch.float32, torch.float64)}


@functools.cache
def reason() -> str:
    """Return why this backend cannot be used; empty if it can."""
    if not LIBRARY.exists():
        return "it was not built: install from source with a C++ compiler"
    try:
        _functions()
    except OSError as error:
        return f"it was built but does not load: {error}"
    return ""


def available() -> bool:
    """Return True if the library exists and loads."""
    return not reason()


@functools.cache
def instructions() -> int:
    """Return the instruction set in use, as an index into ``INSTRUCTIONS``: the widest that torch uses as well.

    So the environment variable ATEN_CPU_CAPABILITY (avx512, avx2 or default), which limits torch, limits the kernels.
    """
    name = torch.backends.cpu.get_cpu_capability().lower()
    limit = INSTRUCTIONS.index(name) if name in INSTRUCTIONS else 0
    return min(limit, ctypes.CDLL(str(LIBRARY)).cyclofocal_instructions())


@functools.cache
def _functions() -> tuple[Callable[[bytes], int], Callable[[bytes], int]]:
    library = ctypes.CDLL(str(LIBRARY))
    for function in (library.cyclofocal_softmax, library.cyclofocal_sigmoid):
        function.argtypes = [ctypes.c_char_p]
    return library.cyclofocal_softmax, library.cyclofocal_sigmoid


def softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    eta: float | Tensor,
    settings: SoftmaxSettings,
    reduction: str,
    *,
    with_grad: bool,
    strict: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient of ``logits`` (N, C, ...); ``target`` (N, ...) indices or (N, C, ...) probabilities.

    All tensors contiguous; weight and probabilities in the dtype of the loss. The caller has checked everything but
    that indices lie in [0, C): one that does not, and is not ``ignore_index``, is refused with an IndexError, or makes
    nan of its row if not ``strict``.
    """
    shape, count, soft = logits.shape, logits.numel(), target.dtype.is_floating_point
    dtype = compute_dtype(logits.dtype)
    check_memory("logits", logits, _CPU, logits.dtype, count)
    check_memory("target", target, _CPU, dtype if soft else torch.int64, count if soft else count // shape[1])
    if weight is not None:
        check_memory("weight", weight, _CPU, dtype, shape[1])
    grad = torch.empty_like(logits) if with_grad else None
    # torch.empty would take the default device, and longer
    unreduced = reduction == "none"
    loss = logits.new_empty(shape[:1] + shape[2:], dtype=dtype) if unreduced else torch.empty_like(_SCALARS[dtype])
    call = _pack(
        logits.data_ptr(),
        target.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0,
        loss.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        shape[0],
        shape[1],
        math.prod(shape[2:]),
        settings.ignore_index,
        soft,
        0,
        0,
        _DTYPES[logits.dtype],
        _REDUCTIONS[reduction],
        torch.get_num_threads(),
        instructions(),
        strict,
        eta,
        settings.gamma_pos,
        settings.gamma_neg,
        settings.gamma_hc,
        settings.label_smoothing,
        0.0,
        0.0,
    )
    if failure := _functions()[0](call):
        if failure == 2:
            check_index_values(target, shape[1], settings.ignore_index)
        raise MemoryError("the loss found no memory for its scratch")
    return loss, grad


def sigmoid(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    eta: float | Tensor,
    settings: SigmoidSettings,
    reduction: str,
    *,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute loss and gradient of ``logits`` of any shape.

    ``target`` and ``weight`` have that shape, ``pos_weight`` too or that of the last dimension. All tensors are
    contiguous, all but the logits in the dtype of the loss.
    """
    count, dtype = logits.numel(), compute_dtype(logits.dtype)
    period = 0 if pos_weight is None else pos_weight.numel()
    check_memory("logits", logits, _CPU, logits.dtype, count)
    check_memory("target", target, _CPU, dtype, count)
    if weight is not None:
        check_memory("weight", weight, _CPU, dtype, count)
    if pos_weight is not None:
        check_memory("pos_weight", pos_weight, _CPU, dtype, count if period in (0, count) else logits.shape[-1])
    grad = torch.empty_like(logits) if with_grad else None
    unreduced = reduction == "none"
    loss = torch.empty_like(logits, dtype=dtype) if unreduced else torch.empty_like(_SCALARS[dtype])
    call = _pack(
        logits.data_ptr(),
        target.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if pos_weight is None else pos_weight.data_ptr(),
        loss.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        count,
        1,
        1,
        0,
        False,
        period,
        settings.alpha is not None,
        _DTYPES[logits.dtype],
        _REDUCTIONS[reduction],
        torch.get_num_threads(),
        instructions(),
        0,
        eta,
        settings.gamma_pos,
        settings.gamma_neg,
        settings.gamma_hc,
        settings.label_smoothing,
        settings.alpha or 0.0,
        settings.probability_margin,
    )
    if _functions()[1](call):
        raise MemoryError("the loss found no memory")
    return loss, grad
