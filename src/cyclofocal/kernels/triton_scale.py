"""Triton kernel of the backward pass: scale the saved gradient by the upstream gradient; a no-op when it is 1."""
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def scale_elements(grad, factor, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Scale in place; if the factor is 1, read nothing else."""
    value = tl.load(factor)
    if value != 1:
        program = tl.program_id(0)
        if WIDE:
            program = program.to(tl.int64)
        offset = program * BLOCK + tl.arange(0, BLOCK)
        valid = offset < count
        scaled = tl.load(grad + offset, mask=valid, other=0.0).to(value.dtype) * value
        tl.store(grad + offset, scaled, mask=valid)
