"""The Triton kernel of the backward pass: a gradient times the number that came from above, which mostly is 1."""
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def scale_elements(grad, factor, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Nothing is read or written but the factor where it is 1."""
    number = tl.load(factor)
    if number != 1:
        program = tl.program_id(0)
        if WIDE:
            program = program.to(tl.int64)
        place = program * BLOCK + tl.arange(0, BLOCK)
        live = place < count
        scaled = tl.load(grad + place, mask=live, other=0.0).to(number.dtype) * number
        tl.store(grad + place, scaled, mask=live)
